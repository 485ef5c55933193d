"""Where every leaf lives: one table from logical axis names to mesh axes."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import tree
from jaxtune.shard.mesh import DATA_AXES
from jaxtune.shard.processes import put
from jaxtune.typing import Batch, InputError

# Every matrix has the model's width on one side, so this cuts all that is large.
FSDP: Mapping[str, str] = {'embed': 'fsdp'}


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def param_shardings(
  mesh: Mesh, params: Any, axes: Any, table: Mapping[str, str] | None = None
) -> Any:
  """The sharding of every leaf, from the logical names of its axes.

  Args:
    mesh: from `mesh`.
    params: arrays or their shapes.
    axes: `model.axes(params)`. A name that ends in `?` is cut only where the mesh axis divides it.
    table: logical name to mesh axis, `FSDP` by default.

  Raises:
    InputError: an axis that the mesh axis does not divide, with its path and size.
  """
  table = FSDP if table is None else table

  def one(path: Any, leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
    spec: list[str | None] = [None] * len(leaf.shape)
    for index, name in enumerate(names):
      axis = table.get(name.removesuffix('?')) if name else None
      if name and axis and axis not in spec and mesh.shape[axis] > 1:
        if leaf.shape[index] % mesh.shape[axis]:
          if name.endswith('?'):
            continue
          raise InputError(
            f'{tree.path_name(path)}: axis {name!r} has {leaf.shape[index]} entries, which '
            f'{axis}={mesh.shape[axis]} does not divide; choose a divisor or {axis}=1'
          )
        spec[index] = axis
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, params, axes)


def state_shardings(mesh: Mesh, state: Any, params: Any, shardings: Any) -> Any:
  """Shardings of a train or optimizer state: each leaf like its parameter, see `jaxtune.tree`."""
  return tree.state_shardings(state, params, shardings, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows spread over all data axes."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
  """A batch of host arrays on the devices, its rows spread; every process gives the whole batch.

  Raises:
    InputError: rows that the devices do not divide.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % devices:
    raise InputError(
      f'a batch of {rows} rows cannot be spread over {devices} devices; '
      f'set train.batch_size to a multiple of {devices}'
    )
  return put(dict(batch), batch_sharding(mesh))
