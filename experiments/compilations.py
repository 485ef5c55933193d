"""What JAX compiles is kept for the next start of the same run, which then compiles nothing."""

import os
import pathlib
import time
import warnings

import jax

UNUSED = 30 * 86400  # seconds after which what nobody has read is forgotten
# JAX keeps what took a second to compile; the many small functions of a start take longer together.
EVERYTHING = {
  'jax_persistent_cache_min_compile_time_secs': 0.0,
  'jax_persistent_cache_min_entry_size_bytes': -1,
}


def keep() -> None:
  """Sets the folder of JAX's persistent cache, in the user's cache by default.

  Another one is named by JAX_COMPILATION_CACHE_DIR, and JAX_ENABLE_COMPILATION_CACHE=0 keeps
  nothing. A folder that cannot be written costs the time to compile, and nothing else.
  """
  if not jax.config.values['jax_enable_compilation_cache']:
    return
  if not jax.config.values['jax_compilation_cache_dir']:
    folder = default()
    try:
      folder.mkdir(parents=True, exist_ok=True)
      forget(folder)
    except OSError:
      return
    if not os.access(folder, os.W_OK):
      return
    jax.config.update('jax_compilation_cache_dir', str(folder))
  for name, value in EVERYTHING.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  # What another start is still writing, or was killed in writing, is compiled.
  warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache entry')


def default() -> pathlib.Path:
  """Where it is when nobody says."""
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(cache) / 'jaxtune' / 'compiled'


def forget(folder: pathlib.Path) -> None:
  """Removes what has not been read for long, or was never written to its end.

  JAX's own limit, jax_compilation_cache_max_size, takes a package more, and a lock.
  """
  for path in folder.glob('*-cache'):
    try:
      found = path.stat()
      if found.st_atime < time.time() - UNUSED or not found.st_size:
        path.unlink()
    except FileNotFoundError:  # another start did
      pass
