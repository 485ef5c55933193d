"""Writing a folder so that a reader sees the old one or the new one, never a part."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import safetensors

from jaxtune.typing import InputError

# Files that describe a tokenizer; they are carried over as they are.
TOKENIZER = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.txt',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
)
_OURS = {
  *TOKENIZER,
  'README.md',
  'adapter_config.json',
  'adapter_model.safetensors',
  'config.json',
  'generation_config.json',
  'jaxtune.json',
  'model.safetensors',
}


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A folder to write into, which takes the name `folder` when the block ends without an error.

  A folder of that name is replaced if it holds nothing but files of an export.

  Raises:
    InputError: the name belongs to a file, or to a folder with something else in it.
    OSError: the place is full or not writable.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  if folder.exists() and not folder.is_dir():
    raise InputError(f'{folder}: is a file; give the name of a folder to write')
  strays = sorted({p.name for p in folder.iterdir()} - _OURS) if folder.exists() else []
  if strays:
    raise InputError(
      f'{folder}: holds something else than an export ({strays[0]}); give the name of a new folder'
    )
  folder.parent.mkdir(parents=True, exist_ok=True)
  fresh, old = (folder.with_name(f'.{folder.name}.{os.getpid()}.{kind}') for kind in ('new', 'old'))
  fresh.mkdir()
  try:
    yield fresh
    if folder.exists():
      os.rename(folder, old)
    os.rename(fresh, folder)
  except safetensors.SafetensorError as error:
    raise OSError(f'{folder}: cannot be written ({error}); make room') from None
  finally:
    for leftover in (fresh, old):
      shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  """A JSON object, indented, keys in order, as the peers write it."""
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8')
