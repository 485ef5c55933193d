"""Where every leaf lives: one table from the logical names of its axes to mesh axes."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import tree
from jaxtune.shard.mesh import ROWS
from jaxtune.shard.processes import put
from jaxtune.typing import Batch, InputError

# Logical axis of a parameter to mesh axis. Every matrix has the model's width on one side, so
# `fsdp` cuts all that is large; `tensor` cuts the other side, each part with products of its own.
PARAMETERS: Mapping[str, str] = {
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
  'experts': 'expert',
}


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def param_shardings(
  mesh: Mesh,
  params: Any,
  axes: Any,
  *,
  units: Mapping[str, int] | None = None,
  replicate: Collection[str] = (),
) -> Any:
  """The sharding of every leaf, from the logical names of its axes.

  Args:
    mesh: from `mesh`.
    params: arrays or their shapes.
    axes: `model.axes(params)`. A name that ends in `?` is cut only where the mesh axis divides it.
    units: `model.units`: entries of an axis that stay together, such as those of a head.
    replicate: names that no mesh axis cuts: those that it does not divide, by choice.

  Raises:
    InputError: an axis that the mesh axis does not divide, with its path and size; or an unknown
      name in `replicate`.
  """
  unknown = sorted(set(replicate) - set(PARAMETERS))
  if unknown:
    raise InputError(f'mesh.replicate: unknown axis {unknown[0]!r}; known: {", ".join(PARAMETERS)}')

  def one(path: Any, leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
    spec: list[str | None] = [None] * len(leaf.shape)
    for index, full in enumerate(names):
      name = (full or '').removesuffix('?')
      axis = PARAMETERS.get(name)
      if axis is None or name in replicate or axis in spec or mesh.shape[axis] == 1:
        continue
      size, unit = leaf.shape[index], (units or {}).get(name, 1)
      count = size if size % unit else size // unit
      if count % mesh.shape[axis] == 0:
        spec[index] = axis
      elif full == name:
        raise InputError(
          f'{tree.path_name(path)}: axis {name!r} has {count} entries, which '
          f'{axis}={mesh.shape[axis]} does not divide; choose a divisor, or keep the axis whole '
          f"with mesh.replicate=('{name}',)"
        )
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, params, axes)


def state_shardings(mesh: Mesh, state: Any, params: Any, shardings: Any) -> Any:
  """Shardings of a train or optimizer state: each leaf like its parameter, see `jaxtune.tree`."""
  return tree.state_shardings(state, params, shardings, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows spread over all axes that take rows; what else a row has is whole."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
  """A batch of host arrays on the devices, its rows spread; every process gives the whole batch.

  Raises:
    InputError: rows that the devices do not divide.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  devices = math.prod(mesh.shape[axis] for axis in ROWS)
  if rows % devices:
    raise InputError(
      f'a batch of {rows} rows cannot be spread over {devices} devices; '
      f'set train.batch_size to a multiple of {devices}'
    )
  return put(dict(batch), batch_sharding(mesh))
