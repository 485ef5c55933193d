"""The header of a GGUF file: its metadata, and where its tensors lie.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

The `gguf` package makes several arrays for every entry of the metadata, which takes seconds for the
vocabulary of a small model and most of a minute for a large one; and it believes the counts.
"""

import itertools
import math
import mmap
import pathlib
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

from jaxtune.typing import InputError

_VERSIONS = (2, 3)
_AXES = 4  # that a tensor of llama.cpp can have
_SCALARS = {
  0: 'B',
  1: 'b',
  2: 'H',
  3: 'h',
  4: 'I',
  5: 'i',
  6: 'f',
  7: '?',
  10: 'Q',
  11: 'q',
  12: 'd',
}
_TEXT, _LIST = 8, 9
_MISSING = object()


class Stored(NamedTuple):
  """A tensor in the file.

  Attributes:
    kind: how its entries are stored.
    shape: in C order, which is the reverse of the file's.
    offset: of its first byte in the file.
    size: in bytes.
  """

  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  offset: int
  size: int


class Header(NamedTuple):
  """What a GGUF file says about itself."""

  path: pathlib.Path
  metadata: dict[str, Any]
  tensors: dict[str, Stored]


def read_header(path: pathlib.Path) -> Header:
  """Reads the header, and checks that the tensors lie in the file and apart from each other.

  Raises:
    InputError: the file is not GGUF, is cut short or damaged, or one of several.
  """
  with open(path, 'rb') as file:
    magic = file.read(4)
    if magic != b'GGUF':
      raise InputError(
        f'{path}: is not a GGUF file (it begins with {magic!r}); give a .gguf file or a folder'
      )
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      try:
        header = Header(path, *_read(_Cursor(data, 4), path))
      except InputError:
        raise
      except (ValueError, struct.error) as error:
        raise InputError(f'{path}: is damaged or cut short ({error}); download it again') from None
  parts = field(header, 'split.count', 1)
  if parts != 1:
    raise InputError(
      f'{path}: is one of {parts} parts of a model; join them with llama-gguf-split --merge'
    )
  return header


def field(header: Header, key: str, default: Any = _MISSING) -> Any:
  """One value of the metadata.

  Raises:
    InputError: it is absent and has no default.
  """
  found = header.metadata.get(key, default)
  if found is _MISSING:
    raise InputError(
      f'{header.path}: has no metadata field {key!r}; convert the model to GGUF again'
    )
  return found


class _Cursor:
  def __init__(self, data: mmap.mmap, at: int):
    self.data, self.at = data, at

  def number(self, code: str) -> Any:
    (value,) = struct.unpack_from(f'<{code}', self.data, self.at)
    self.at += struct.calcsize(code)
    return value

  def take(self, count: int) -> bytes:
    if count > len(self.data) - self.at:
      raise ValueError(f'{count} bytes at {self.at} of {len(self.data)}')
    self.at += count
    return self.data[self.at - count : self.at]

  def text(self) -> str:
    return self.take(self.number('Q')).decode()

  def value(self, kind: int) -> Any:
    if kind in _SCALARS:
      return self.number(_SCALARS[kind])
    if kind == _TEXT:
      return self.text()
    if kind != _LIST:
      raise ValueError(f'metadata of type {kind}')
    kind, count = self.number('I'), self.number('Q')
    if kind in _SCALARS:
      dtype = np.dtype(_SCALARS[kind]).newbyteorder('<')
      return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
    if kind != _TEXT or count > len(self.data) - self.at:
      raise ValueError(f'a list of {count} values of type {kind}')
    return [self.text() for _ in range(count)]


def _read(cursor: _Cursor, path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Stored]]:
  version = cursor.number('I')
  if version not in _VERSIONS:
    raise ValueError(f'version {version}, or big-endian')
  count, fields = cursor.number('Q'), cursor.number('Q')
  metadata: dict[str, Any] = {}
  for _ in range(fields):
    key = cursor.text()
    if key in metadata:
      raise ValueError(f'two fields {key!r}')
    metadata[key] = cursor.value(cursor.number('I'))
  entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
  for _ in range(count):
    name, axes = cursor.text(), cursor.number('I')
    if axes > _AXES or name in entries or not name.isprintable():
      raise ValueError(f'tensor {name!r} has {axes} axes, a strange name, or is there twice')
    shape = tuple(cursor.number('Q') for _ in range(axes))[::-1]
    entries[name] = shape, cursor.number('I'), cursor.number('Q')
  alignment = metadata.get('general.alignment', 32)
  if not isinstance(alignment, int) or alignment < 1:
    raise ValueError(f'general.alignment is {alignment!r}')
  start = -(-cursor.at // alignment) * alignment
  tensors = {
    name: _stored(path, name, shape, kind, start + offset)
    for name, (shape, kind, offset) in entries.items()
  }
  order = sorted(tensors, key=lambda name: tensors[name].offset)
  for name, following in itertools.zip_longest(order, order[1:]):
    end = tensors[name].offset + tensors[name].size
    if end > (tensors[following].offset if following else len(cursor.data)):
      raise ValueError(f'tensor {name!r} does not end before {following or "the file does"}')
  return metadata, tensors


def _stored(
  path: pathlib.Path, name: str, shape: tuple[int, ...], number: int, offset: int
) -> Stored:
  try:
    kind = gguf.GGMLQuantizationType(number)
  except ValueError:
    raise InputError(
      f'{path}: tensor {name} is of type {number}, which the gguf package does not know; '
      'take a file of another quantization (Q4_K_M, Q8_0, F16)'
    ) from None
  block, size = gguf.GGML_QUANT_SIZES[kind]
  if not shape or shape[-1] % block:
    raise ValueError(f'tensor {name!r} has rows of {shape[-1:]} entries in blocks of {block}')
  return Stored(kind, shape, offset, math.prod(shape) // block * size)
