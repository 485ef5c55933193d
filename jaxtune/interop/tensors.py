"""Tensors of a file, read block by block straight into the stacked leaves that they belong to."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from jaxtune import tree
from jaxtune.interop.names import Name, Tensors, tensors_of
from jaxtune.typing import InputError, Params

Place = Callable[[str, np.ndarray], jax.Array]

# Safetensors' names of the types that a model is computed in; float64 is narrowed, as JAX does.
_TYPES = {'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64'}
_BLOCK = 4 << 20  # bytes read at a time: a transposing copy of more falls out of the cache


class Tensor(NamedTuple):
  """A tensor that is still in its file.

  Attributes:
    file: for messages.
    name: as the file has it.
    shape: as the file has it.
    kind: the file's own word for its type.
    dtype: of the blocks; None for a type that no model is computed in.
    blocks: yields `(rows, values)`: which rows of the tensor, and they.
  """

  file: str
  name: str
  shape: tuple[int, ...]
  kind: str
  dtype: np.dtype | None
  blocks: Callable[[], Iterator[tuple[Any, np.ndarray]]]

  def read(self) -> np.ndarray:
    """The whole tensor."""
    out = np.empty(self.shape, self.dtype)
    for rows, values in self.blocks():
      out[rows] = values
    return out


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
    dtype = np.dtype(jnp.dtype(_TYPES[kind])) if kind in _TYPES else None
    start = 8 + length + entry['data_offsets'][0]
    found[name] = Tensor(
      str(path), name, shape, kind, dtype, _file_blocks(path, start, shape, dtype)
    )
  return found


def _file_blocks(
  path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype | None
) -> Callable[[], Iterator[tuple[Any, np.ndarray]]]:
  def blocks() -> Iterator[tuple[Any, np.ndarray]]:
    assert dtype is not None
    row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _BLOCK // max(1, row))
    for start in range(0, shape[0], step):
      count = min(step, shape[0] - start)
      data = np.fromfile(path, np.uint8, count * row, offset=offset + start * row)
      yield slice(start, start + count), data.view(dtype).reshape(count, *shape[1:])

  return blocks


def check(wanted: Params, names: Sequence[Name], tensors: Mapping[str, Tensor]) -> set[str]:
  """That every leaf has its tensors in the right shapes; returns the names of the tensors used.

  Raises:
    InputError: a tensor is missing, is not of floating type, or has another shape than the
      configuration gives it.
  """
  used: set[str] = set()
  missing = []
  for path, leaf in tree.named_weights(wanted):
    source = tensors_of(names, path)
    shape = leaf.shape[1:] if source.stacked else leaf.shape
    shape = shape[::-1] if source.transpose else shape
    for name in source.names:
      tensor = tensors.get(name)
      if tensor is None:
        missing.append(name)
      elif tensor.shape != shape:
        raise InputError(
          f'{tensor.file}: tensor {tensor.name} has the shape {list(tensor.shape)}, but the config '
          f'makes it {list(shape)}; take the config that belongs to the weights'
        )
      elif tensor.dtype is None:
        raise InputError(
          f'{tensor.file}: tensor {tensor.name} is of type {tensor.kind}; jaxtune reads '
          f'{", ".join(_TYPES)}, so take a checkpoint that is not quantized'
        )
    used.update(source.names)
  if missing:
    some = ', '.join(missing[:3]) + (f' and {len(missing) - 3} more' if len(missing) > 3 else '')
    file = next(iter(tensors.values())).file if tensors else 'the file'
    raise InputError(f'{file}: lacks the tensor {some}; take a whole checkpoint of this model')
  return used


def fill(
  wanted: Params,
  names: Sequence[Name],
  tensors: Mapping[str, Tensor],
  dtype: Any = None,
  place: Place | None = None,
) -> Params:
  """The parameters, each leaf allocated once and filled tensor by tensor.

  Leaves are made from the largest to the smallest, so that what is needed beside a leaf (a copy to
  its device) is largest when least is held.

  Args:
    wanted: the tree with shapes.
    names: the family's table.
    tensors: by name; `check` has passed.
    dtype: of all leaves; None for the widest among a leaf's tensors.
    place: `(path, array) -> jax.Array`; None for the default device.
  """
  leaves = dict(tree.named_weights(wanted))
  made = {}
  for path in sorted(leaves, key=lambda path: -leaves[path].size):
    source = tensors_of(names, path)
    kinds = [tensors[name].dtype for name in source.names]
    kind = jax.dtypes.canonicalize_dtype(jnp.result_type(*kinds) if dtype is None else dtype)
    array = _read_leaf(leaves[path].shape, kind, source, tensors)
    made[path] = jax.device_put(array) if place is None else place(path, array)
    made[path].block_until_ready()
    del array
  return tree.map_weights(lambda path, leaf: made[path], wanted)


def _read_leaf(
  shape: tuple[int, ...], dtype: np.dtype, source: Tensors, tensors: Mapping[str, Tensor]
) -> np.ndarray:
  array = _aligned(shape, dtype)
  for layer, name in enumerate(source.names):
    out = array[layer] if source.stacked else array
    out = out.T if source.transpose else out
    for rows, values in tensors[name].blocks():
      out[rows] = values
  return array


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  # JAX on CPU takes over a buffer that begins on a cache line, and copies any other.
  count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
  buffer = np.empty(count + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + count].view(dtype).reshape(shape)
