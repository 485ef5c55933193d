"""Tensors of a file, read block by block straight into the stacked leaves that they belong to."""

import collections
import difflib
import json
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from jaxtune import tree
from jaxtune.interop.names import Name, Tensors, generic, located, tensors_of
from jaxtune.typing import InputError, Params

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
    spans = list(_spans(0, self.shape[0] if self.shape else 1, self.shape[1:], self.dtype))
    row = math.prod(self.shape[1:])
    return all(
      np.array_equal(self.entries(a * row, b * row), other.entries(a * row, b * row))
      for a, b in spans
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
    dtype = np.dtype(jnp.dtype(_TYPES[kind])) if kind in _TYPES else None
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


def without_copies(
  wanted: Params, names: Sequence[Name], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
  """The tensors without the copies that the table's second rows name; see `Name`.

  Where only the copy is in the file it takes the tensor's place.

  Raises:
    InputError: a copy that is none.
  """
  rows = collections.defaultdict(list)
  for name in names:
    rows[name.ours].append(name)
  left = dict(tensors)
  for path, leaf in tree.named_weights(wanted):
    first, *others = (located(row, path, leaf.shape) for row in rows[generic(path)])
    for copy in others:
      for own, second in zip(first.names, copy.names, strict=True):
        if second not in left:
          continue
        found = left.pop(second)
        if not left.setdefault(own, found).same(found):
          raise InputError(
            f'{found.file}: {found.name} differs from {left[own].name}, but the config makes them '
            'one; take the config that belongs to the weights (tie_word_embeddings, say)'
          )
  return left


def check(wanted: Params, names: Sequence[Name], tensors: Mapping[str, Tensor]) -> set[str]:
  """That every leaf has its tensors in the right shapes; returns the names of the tensors used.

  Raises:
    InputError: a tensor is missing, is not of floating type, or has another shape than the
      configuration gives it.
  """
  file = next(iter(tensors.values())).file if tensors else 'the file'
  sources = [tensors_of(names, path, leaf.shape) for path, leaf in tree.named_weights(wanted)]
  for source in sources:
    if source.total > len(tensors):
      raise InputError(
        f'{file}: holds {len(tensors)} tensors, but the config asks for {source.total} like '
        f'{source.name((0, 0))}; take the config that belongs to the weights'
      )
  used: collections.Counter[str] = collections.Counter()  # the outputs that are ours of each tensor
  for source in sources:
    for name in source.names:
      used[name] += source.matrix[source.out_axis] if source.rest else 1
  missing = [name for name in used if name not in tensors]
  if missing:
    some = listed(missing, [name for name in tensors if name not in used])
    raise InputError(f'{file}: lacks the tensor {some}; take a whole checkpoint of this model')
  for source in sources:
    for name in source.names:
      _check_one(source, used[name], tensors[name])
  return set(used)


def _check_one(source: Tensors, outputs: int, tensor: Tensor) -> None:
  shape = list(source.matrix)
  if source.row.part is not None:
    shape[source.out_axis] = outputs
  shape = shape if source.row.shape is None else list(source.row.shape)
  if list(tensor.shape) != shape:
    raise InputError(
      f'{tensor.file}: tensor {tensor.name} has the shape {list(tensor.shape)}, but the config '
      f'makes it {shape}; take the config that belongs to the weights'
    )
  if tensor.dtype is None:
    raise InputError(
      f'{tensor.file}: tensor {tensor.name} is of type {tensor.kind}; jaxtune reads '
      f'{", ".join(_TYPES)}, so take a checkpoint that is not quantized'
    )


def listed(names: Collection[str], known: Collection[str]) -> str:
  """The first few names, each with the one among the known that is nearest to it."""
  some = []
  for name in sorted(names)[:3]:
    near = difflib.get_close_matches(name, sorted(known)[:1000], 1)
    some.append(f'{name} (the nearest is {near[0]})' if near else name)
  return ', '.join(some) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def fill(
  wanted: Params,
  names: Sequence[Name],
  tensors: Mapping[str, Tensor],
  dtype: Any = None,
  shardings: Any = None,
) -> Params:
  """The parameters: each device's part of a leaf is allocated once and filled tensor by tensor.

  Leaves are made from the largest to the smallest, so that what is needed beside a leaf (a copy to
  its device) is largest when least is held. The parts of one leaf are made one after the other, so
  that never more than one of them is on its way to a device; for that, a tensor whose rows are cut
  is read once for every part.

  Args:
    wanted: the tree with shapes.
    names: the family's table.
    tensors: by name; `check` has passed.
    dtype: of all leaves; None for the widest among a leaf's tensors.
    shardings: a `jax.sharding.Sharding` for every leaf; None for the default device.
  """
  leaves = dict(tree.named_weights(wanted))
  places = dict(tree.named_weights(shardings))
  made = {}
  for path in sorted(leaves, key=lambda path: -leaves[path].size):
    shape = leaves[path].shape
    source = tensors_of(names, path, shape)
    kinds = {tensors[name].dtype for name in source.names}
    kind = jax.dtypes.canonicalize_dtype(jnp.result_type(*kinds) if dtype is None else dtype)
    if shardings is None:
      whole = tuple(slice(0, size) for size in shape)
      made[path] = jax.device_put(_read(source, tensors, whole, kind)).block_until_ready()
    else:
      parts = _parts(source, tensors, shape, places[path], kind)
      made[path] = jax.make_array_from_single_device_arrays(shape, places[path], list(parts))
  return tree.map_weights(lambda path, leaf: made[path], wanted)


def _parts(
  source: Tensors,
  tensors: Mapping[str, Tensor],
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
  dtype: np.dtype,
) -> Iterator[jax.Array]:
  """The array of every device; replicas are read once."""
  devices = collections.defaultdict(list)
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    bounds = tuple(s.indices(size)[:2] for s, size in zip(index or (), shape, strict=True))
    devices[bounds].append(device)
  for bounds, replicas in devices.items():
    part = _read(source, tensors, tuple(slice(*b) for b in bounds), dtype)
    for device in replicas:
      yield jax.device_put(part, device).block_until_ready()
    del part


def _read(
  source: Tensors, tensors: Mapping[str, Tensor], index: tuple[slice, ...], dtype: np.dtype
) -> np.ndarray:
  """`leaf[index]`."""
  array = _aligned(tuple(s.stop - s.start for s in index), dtype)
  lead = len(source.lead)
  for spot in np.ndindex(array.shape[:lead]):
    place = [s.start + i for s, i in zip(index[:lead], spot, strict=True)]
    _copy(source, tensors[source.name(place)], list(index[lead:]), array[(*spot, ...)])
  return array


def _copy(source: Tensors, tensor: Tensor, chosen: list[Any], out: np.ndarray) -> None:
  """One tensor's chosen entries into their place, block by block."""
  shape = tensor.shape if source.row.shape is None else source.matrix
  if source.row.transpose:
    out = out.swapaxes(-1, -2)
    chosen[-1], chosen[-2] = chosen[-2], chosen[-1]
  if source.row.part is not None:
    chosen[source.out_axis] = _as_slice(source.row.part[chosen[source.out_axis]])
  if not shape:
    shape, chosen, out = (1,), [slice(0, 1)], out.reshape(1)
  rows, *others = chosen
  row = math.prod(shape[1:])
  whole = isinstance(rows, slice)
  first, end = (rows.start, rows.stop) if whole else (rows.min(), rows.max() + 1)
  for start, stop in _spans(first, end, shape[1:], tensor.dtype):
    values = tensor.entries(start * row, stop * row).reshape(stop - start, *shape[1:])
    if whole:
      out[start - first : stop - first] = values[:, *others]
    else:
      here = np.flatnonzero((rows >= start) & (rows < stop))
      out[here] = values[rows[here] - start][:, *others]


def _as_slice(part: np.ndarray) -> slice | np.ndarray:
  """A run of consecutive numbers as a slice, which copies faster."""
  run = slice(int(part[0]), int(part[0]) + len(part)) if len(part) else slice(0, 0)
  return run if np.array_equal(part, np.arange(run.start, run.stop)) else part


def _spans(
  first: int, end: int, row: tuple[int, ...], dtype: np.dtype | None
) -> Iterator[tuple[int, int]]:
  """The rows from `first` to `end` in runs of about a block."""
  step = max(1, _BLOCK // max(1, math.prod(row) * (dtype.itemsize if dtype else 1)))
  for start in range(first, end, step):
    yield start, min(start + step, end)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  # JAX on CPU takes over a buffer that begins on a cache line, and copies any other.
  count = math.prod(shape) * dtype.itemsize
  buffer = np.empty(count + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + count].view(dtype).reshape(shape)
