"""Where a run ran: versions, machine, memory."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
MACHINE = ('platform', 'cpu', 'cores', 'devices')  # what two machines may differ in


def versions() -> dict[str, str]:
  """Versions and machine, ready to print and to keep beside the results.

  Keys: python, jaxtune, commit (of a source checkout, `-dirty` when changed), the packages that
  decide numbers, platform, cpu, cores (those this process may use), devices.
  """
  import jax

  import jaxtune

  found = {'python': platform.python_version(), 'jaxtune': jaxtune.__version__}
  if commit := _commit():
    found['commit'] = commit
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed'
  kinds = [device.device_kind for device in jax.devices()]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return found | {
    'platform': platform.platform(),
    'cpu': _cpu(),
    'cores': str(cores),
    'devices': ', '.join(f'{kinds.count(kind)} x {kind}' for kind in dict.fromkeys(kinds)),
  }


def peak_rss() -> int:
  """The largest resident memory of this process so far, bytes."""
  # Linux's ru_maxrss also counts the parent's memory at the time of the fork; VmHWM does not.
  for line in _lines('/proc/self/status'):
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) * 1024
  import resource  # does not exist on Windows

  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def _cpu() -> str:
  for line in _lines('/proc/cpuinfo'):
    if line.startswith('model name'):
      return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def _commit() -> str | None:
  folder = pathlib.Path(__file__).parents[1]
  prefix = _git(folder, 'rev-parse', '--show-prefix')
  if prefix != 'jaxtune/':  # an installed copy inside of some other repository
    return None
  return _git(folder, 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
  try:
    done = subprocess.run(
      ['git', *arguments], cwd=folder, capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _lines(path: str) -> list[str]:
  try:
    return pathlib.Path(path).read_text(errors='replace').splitlines()
  except OSError:
    return []
