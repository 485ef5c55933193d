"""Tensors, read block by block straight into the stacked leaves that they belong to."""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.interop.names import Name, Tensors, tensors_of
from jaxtune.interop.tensors import Tensor, spans
from jaxtune.typing import Params


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
  for start, stop in spans(first, end, shape[1:], tensor.dtype):
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


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  # JAX on CPU takes over a buffer that begins on a cache line, and copies any other.
  count = math.prod(shape) * dtype.itemsize
  buffer = np.empty(count + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + count].view(dtype).reshape(shape)
