"""The placement of parameters as a table: what is cut along which axis, and what a device holds."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxtune import tree


class Placed(NamedTuple):
  """One leaf on its devices.

  Attributes:
    path: of the leaf.
    shape: of the whole array.
    cut: the mesh axes along each of its axes, as `-, fsdp, tensor`; empty for a replica everywhere.
    bytes: of the whole array.
    device_bytes: of the part that one device holds.
  """

  path: str
  shape: tuple[int, ...]
  cut: str
  bytes: int
  device_bytes: int


def placement(params: Any, shardings: Any = None) -> list[Placed]:
  """One row a leaf.

  Args:
    params: arrays, or their shapes.
    shardings: from `param_shardings`; by default those that the arrays have.
  """
  if shardings is None:
    shardings = jax.tree.map(lambda x: x.sharding, params)
  rows = []
  leaves = zip(tree.paths(params), jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)
  for path, leaf, sharding in leaves:
    spec = getattr(sharding, 'spec', ())
    names = [
      '-' if axes is None else axes if isinstance(axes, str) else '+'.join(axes) for axes in spec
    ]
    shape = tuple(leaf.shape)
    part = sharding.shard_shape(shape)
    cut = ', '.join(names) if part != shape else ''
    whole = leaf.size * leaf.dtype.itemsize
    rows.append(Placed(path, shape, cut, whole, math.prod(part) * leaf.dtype.itemsize))
  return rows


def format_placement(rows: Sequence[Placed]) -> str:
  """The placement as an aligned text table, with the sums."""
  lines: list[tuple[str, ...]] = [('parameter', 'shape', 'cut along', 'MiB', 'MiB a device')]
  for row in rows:
    shape = 'x'.join(map(str, row.shape)) or '-'
    lines.append(
      (row.path, shape, row.cut or 'replicated', *_mebibytes(row.bytes, row.device_bytes))
    )
  whole, own = sum(row.bytes for row in rows), sum(row.device_bytes for row in rows)
  lines.append(('in all', '', '', *_mebibytes(whole, own)))
  return tree.aligned(lines, right=(3, 4))


def _mebibytes(*sizes: int) -> tuple[str, ...]:
  return tuple(f'{size / 2**20:,.2f}' for size in sizes)
