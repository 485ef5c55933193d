"""Tensors that are still in their file."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from jaxtune.typing import InputError

# Safetensors' names of the types that a model is computed in; float64 is narrowed, as JAX does.
TYPES = {'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64'}
_BLOCK = 4 << 20  # bytes read at a time: a transposing copy of more falls out of the cache


class Tensor(NamedTuple):
  """A tensor that is still in its file.

  Attributes:
    file: for messages.
    name: as the file has it.
    shape: as the file has it.
    kind: the file's own word for its type.
    dtype: of the entries; None for a type that no model is computed in.
    entries: `(start, stop) -> values`, flat, in C order; both at the ends of rows.
  """

  file: str
  name: str
  shape: tuple[int, ...]
  kind: str
  dtype: np.dtype | None
  entries: Callable[[int, int], np.ndarray]

  def read(self) -> np.ndarray:
    """The whole tensor."""
    return self.entries(0, math.prod(self.shape)).reshape(self.shape)

  def same(self, other: 'Tensor') -> bool:
    """Whether the other holds the same numbers, read side by side."""
    if self.shape != other.shape or self.dtype is None or other.dtype is None:
      return False
    row = math.prod(self.shape[1:])
    return all(
      np.array_equal(self.entries(a * row, b * row), other.entries(a * row, b * row))
      for a, b in spans(0, self.shape[0] if self.shape else 1, self.shape[1:], self.dtype)
    )


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
  """The tensors of a safetensors file by name.

  The library checks the header and where each tensor lies; bytes are then read with ordinary file
  reads, because pages of its memory map would stay in this process and double the peak.

  Raises:
    InputError: the file is cut short or damaged.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file, safetensors.safe_open(path, 'numpy'):
      length = int.from_bytes(file.read(8), 'little')
      header = json.loads(file.read(length))
  except safetensors.SafetensorError as error:
    raise InputError(
      f'{path}: is damaged or cut short ({str(error).splitlines()[0]}); download it again'
    ) from None
  header.pop('__metadata__', None)
  found = {}
  for name, entry in header.items():
    shape, kind = tuple(entry['shape']), entry['dtype']
    dtype = np.dtype(jnp.dtype(TYPES[kind])) if kind in TYPES else None
    start = 8 + length + entry['data_offsets'][0]
    found[name] = Tensor(str(path), name, shape, kind, dtype, _file_entries(path, start, dtype))
  return found


def _file_entries(
  path: pathlib.Path, offset: int, dtype: np.dtype | None
) -> Callable[[int, int], np.ndarray]:
  def entries(start: int, stop: int) -> np.ndarray:
    assert dtype is not None
    size = dtype.itemsize
    data = np.fromfile(path, np.uint8, (stop - start) * size, offset=offset + start * size)
    if len(data) < (stop - start) * size:
      raise InputError(f'{path}: became shorter while it was read; download it again')
    return data.view(dtype)

  return entries


def spans(
  first: int, end: int, row: tuple[int, ...], dtype: np.dtype | None
) -> Iterator[tuple[int, int]]:
  """The rows from `first` to `end` in runs of about a block."""
  step = max(1, _BLOCK // max(1, math.prod(row) * (dtype.itemsize if dtype else 1)))
  for start in range(first, end, step):
    yield start, min(start + step, end)
