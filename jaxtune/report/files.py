"""Writing a file so that a reader sees the old one or the new one, never a part."""

import os
import pathlib


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes `data` to `path` atomically: a temporary file beside it, synced, then renamed.

  Raises:
    OSError: the folder is missing, full or not writable; `path` is then as it was.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:  # a full disk is reported without a name
    raise OSError(error.errno, error.strerror, str(path)) from None
  finally:
    temporary.unlink(missing_ok=True)
