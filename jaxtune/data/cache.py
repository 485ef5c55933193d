"""Encoded data on disk, found again by the content of all that it was made from."""

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

import jaxtune
from jaxtune.data.encode import Encoded, Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.typing import InputError

_FORM = 1  # of the files; another one is built again


def cached(
  folder: str | os.PathLike, parts: Mapping[str, Any], build: Callable[[], Encoded]
) -> tuple[Encoded, str]:
  """What `build` gives, or gave earlier for the same parts; and a sentence that says which.

    parts = {'files': data.files.find(path), 'tokenizer': tok, 'max_length': 512}
    encoded, said = data.cached('~/.cache/jaxtune', parts, lambda: data.render_many(...))

  The name of a file in `folder` is a digest of `parts` and of jaxtune's version, so a change of one
  byte of the data, of the tokenizer, its template or a setting builds anew; a part that is missing
  here would give stale tokens. The file holds arrays and JSON (safetensors, never a pickle),
  appears whole or not at all, and is checked when it is read: a damaged one is built again.

  Args:
    folder: is made if it is not there.
    parts: by name: files (`pathlib.Path`, one or a list, by what is in them), a `Tokenizer`, or
      values that JSON can hold.
    build: gives the data.

  Raises:
    InputError: a part that is none of these, or a file that is not there.
  """
  folder = pathlib.Path(folder).expanduser()
  path = folder / f'{digest(parts)}.safetensors'
  reason = ''
  if path.exists():
    try:
      encoded = _load(path)
      return encoded, f'{len(encoded.examples):,} encoded examples from the cache {path}.'
    except Exception as error:  # whatever is wrong with it, it can be built again
      reason = f'The cache {path} was damaged ({" ".join(str(error).split())[:100]}): '
  encoded = build()
  count = f'{len(encoded.examples):,} encoded examples'
  try:
    _save(path, encoded)
  except OSError as error:
    return encoded, f'{reason}{count}, not kept: {path} cannot be written ({error.strerror}).'
  return encoded, f'{reason}{count}, {"built again and " if reason else ""}kept in {path}.'


def digest(parts: Mapping[str, Any]) -> str:
  """A name for the content of all parts, 32 hexadecimal digits; see `cached`."""
  state = hashlib.blake2b(f'{_FORM} {jaxtune.__version__}'.encode(), digest_size=16)
  for name in sorted(parts):
    state.update(f'\0{name}\0'.encode())
    for piece in _pieces(parts[name], name):
      state.update(len(piece).to_bytes(8, 'little'))
      state.update(piece)
  return state.hexdigest()


def _pieces(part: Any, name: str) -> Iterator[bytes]:
  if isinstance(part, pathlib.Path):
    part = part.expanduser()
    if not part.is_file():
      raise InputError(f'{part}: no such file, so it cannot be part of a cache')
    with open(part, 'rb') as file:
      while block := file.read(2**20):
        yield block
    yield b''
  elif isinstance(part, Tokenizer):
    yield part.encoder.to_str().encode()
    special = {**part.special._asdict(), 'texts': dict(part.special.texts)}
    yield json.dumps(special, sort_keys=True).encode()
  elif isinstance(part, list | tuple) and any(isinstance(one, pathlib.Path) for one in part):
    for one in part:
      yield from _pieces(one, name)
  else:
    try:
      yield json.dumps(part, sort_keys=True, allow_nan=True).encode()
    except (TypeError, ValueError) as error:
      raise InputError(
        f'cache: the part {name!r} is no value that JSON can hold ({error}); name it by its content'
      ) from None


def _save(path: pathlib.Path, encoded: Encoded) -> None:
  arrays = dict(_flat(encoded.examples))
  rest = {k: v for k, v in encoded._asdict().items() if k != 'examples'}
  about = {
    'form': _FORM,
    'examples': len(encoded.examples),
    'names': list(arrays),  # in the order that examples have, which the file does not keep
    'rest': rest,
    'check': _check(arrays),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  # Several processes may build the same at once; the last to finish wins, with the same content.
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    safetensors.numpy.save_file(arrays, part, {'about': json.dumps(about)})
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _load(path: pathlib.Path) -> Encoded:
  with safetensors.safe_open(path, framework='numpy') as file:
    about = json.loads(file.metadata()['about'])
    arrays = {name: file.get_tensor(name) for name in about['names']}
  if about['form'] != _FORM or about['check'] != _check(arrays):
    raise ValueError('its content is not what was written')
  rest = about['rest']
  if rest.get('names') is not None:
    rest['names'] = tuple(rest['names'])
  return Encoded(_examples(arrays, about['examples']), **rest)


def _flat(examples: Sequence[Example]) -> Iterator[tuple[str, np.ndarray]]:
  """Each value of all examples as one array; ragged ones with the offsets of the rows in it.

  `rows`, where a value is not in all examples, are those that have it.
  """
  columns: dict[str, tuple[list[int], list[np.ndarray]]] = {}
  for row, example in enumerate(examples):
    for name, value in _leaves(example):
      rows, values = columns.setdefault(name, ([], []))
      rows.append(row)
      values.append(np.asarray(value))
  for name, (rows, values) in columns.items():
    if len({value.dtype for value in values}) > 1:
      raise ValueError(f'values of {name} are of several types')
    if len(rows) < len(examples):
      yield f'{name}:rows', np.array(rows)
    if len({value.shape for value in values}) == 1:
      yield name, np.stack(values)
    else:
      yield f'{name}:offsets', np.cumsum([0, *map(len, values)])
      yield name, np.concatenate(values)


def _leaves(example: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in example.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f'{prefix}{name}/')
    else:
      yield prefix + name, value


def _examples(arrays: Mapping[str, np.ndarray], count: int) -> list[Example]:
  examples: list[Example] = [{} for _ in range(count)]
  for name, array in arrays.items():
    if ':' in name:
      continue
    *parents, key = name.split('/')
    rows = arrays.get(f'{name}:rows', range(count))
    offsets = arrays.get(f'{name}:offsets')
    for place, row in enumerate(rows):
      target = examples[row]
      for parent in parents:
        target = target.setdefault(parent, {})
      if offsets is None:
        target[key] = array[place] if array.ndim > 1 else array[place : place + 1].reshape(())
      else:
        target[key] = array[offsets[place] : offsets[place + 1]]
  return examples


def _check(arrays: Mapping[str, np.ndarray]) -> int:
  check = 0
  for name in sorted(arrays):
    array = arrays[name]
    check = zlib.crc32(f'{name} {array.dtype} {array.shape}'.encode(), check)
    check = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, check)
  return check
