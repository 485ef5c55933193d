"""Where a model comes from: a folder, a file, or a repository on the Hugging Face Hub."""

import os
import pathlib
import re

from jaxtune.typing import InputError

# What belongs to a model in a repository; weights as pickle, or a second time, are not among it.
_WANTED = (
  'model*.safetensors',
  'adapter_model.safetensors',
  '*.json',
  '*.jinja',
  '*.model',
  '*.spm',
  '*.txt',
  'README.md',
  'LICENSE*',
)
# Folders but for the numbered modules of sentence-transformers (1_Pooling).
_UNWANTED = ('[!0-9]*/*',)


def locate(source: str | os.PathLike[str]) -> pathlib.Path:
  """The local folder or file of `source`; a Hub id is downloaded first (or found in its cache).

  Raises:
    InputError: it is neither a folder, a file, nor a Hub id that can be reached.
  """
  path = pathlib.Path(source).expanduser()
  if path.exists():
    return path
  reason = 'it does not look like one'
  if re.fullmatch(r'[A-Za-z0-9][\w.-]*(/[\w.-]+)?', str(source)):
    try:
      import huggingface_hub

      found = huggingface_hub.snapshot_download(
        str(source), allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
      )
      return pathlib.Path(found)
    except ImportError:
      reason = 'huggingface_hub is not installed: pip install jaxtune[hub]'
    except Exception as error:  # its errors share no base class across versions and HTTP libraries
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
  raise InputError(
    f'model {str(source)!r} is neither a folder, a file nor a reachable Hub id ({reason})'
  )
