"""How much memory lanes may take."""

import os
import pathlib
import re

import jax


def limit(gigabytes: float) -> float:
  """Bytes: what the user gave, or half of what is free, for others are on the machine too."""
  return gigabytes * 1e9 if gigabytes else available() / 2


def available() -> int:
  """Free bytes of the first device, or of the machine where the device has no memory of its own."""
  stats = jax.devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  try:
    found = re.search(r'MemAvailable: *(\d+) kB', pathlib.Path('/proc/meminfo').read_text())
  except OSError:
    found = None
  if found:
    return int(found[1]) * 1024
  return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
