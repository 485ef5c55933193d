"""Writing a folder so that a reader sees the old one or the new one, never a part."""

import contextlib
import filecmp
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors

from jaxtune.typing import InputError

INDEX = 'model.safetensors.index.json'
# What an export may consist of, whatever it was made from.
_OURS = re.compile(
  r'(adapter_config|added_tokens|config|generation_config|jaxtune|special_tokens_map|tokenizer'
  r'|tokenizer_config|vocab)\.json'
  r'|(adapter_model|model|trained|model-\d{5}-of-\d{5})\.safetensors|model\.safetensors\.index\.json'
  r'|README\.md|chat_template\.jinja|merges\.txt|tokenizer\.model|vocab\.txt'
)
# Weights in any format, and what may be a pickle.
_WEIGHTS = re.compile(
  r'.*\.(safetensors|bin|pt|pth|ckpt|pkl|pickle|joblib|npy|npz|h5|msgpack|gguf|onnx|onnx_data|ot'
  r'|tflite|mlmodel)|.*\.(safetensors|bin)\.index\.json|adapter_config\.json|jaxtune\.json'
)
_LARGEST = 100 << 20  # bytes of a file that is carried along: tokenizers take up to 40 MB


def carried(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files of a model's folder that go wherever the model goes, by their relative names.

  All but `config.json`, which is written anew, weights and whatever lies beside them in folders of
  their own, whatever may be a pickle, and what is hidden or large.
  """
  found = {}
  paths = sorted(source.rglob('*'))
  others = {path.parent for path in paths if _WEIGHTS.fullmatch(path.name)} - {source}
  for path in paths:
    if others.intersection(path.parents):
      continue
    name = path.relative_to(source).as_posix()
    hidden = any(part.startswith('.') for part in pathlib.PurePosixPath(name).parts)
    if hidden or name == 'config.json' or _WEIGHTS.fullmatch(path.name) or not path.is_file():
      continue
    with open(path, 'rb') as file:
      magic = file.read(2)
    # A pickle of any name, or torch's archive of pickles.
    if path.stat().st_size <= _LARGEST and magic != b'PK' and not magic.startswith(b'\x80'):
      found[name] = path
  return found


@contextlib.contextmanager
def new_folder(
  folder: str | os.PathLike[str], files: Mapping[str, pathlib.Path] | None = None
) -> Iterator[pathlib.Path]:
  """A folder to write into, which takes the name `folder` when the block ends without an error.

  A folder of that name is replaced if it holds nothing but files of an export.

  Args:
    folder: to write.
    files: of any name, that will be in the new folder; the old one may hold them too, the same.

  Raises:
    InputError: the name belongs to a file, or to a folder with something else in it.
    OSError: the place is full or not writable.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  if folder.exists() and not folder.is_dir():
    raise InputError(f'{folder}: is a file; give the name of a folder to write')
  for path in sorted(folder.rglob('*')) if folder.exists() else []:
    name = path.relative_to(folder).as_posix()
    copy = (files or {}).get(name)
    if path.is_dir() and any(other.startswith(f'{name}/') for other in files or {}):
      continue
    if not _OURS.fullmatch(name) and not (copy and filecmp.cmp(path, copy, shallow=False)):
      raise InputError(
        f'{folder}: holds something else than an export ({name}); give the name of a new folder'
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
  except OSError as error:
    raise OSError(f'{folder}: cannot be written ({error})') from None
  finally:
    for leftover in (fresh, old):
      shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  """A JSON object, indented, keys in order, as the peers write it."""
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8')
