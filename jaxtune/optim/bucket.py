"""Matrices of one shape as one batch, whatever leaves they come from."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune import tree
from jaxtune.optim.matrix_shape import require_matrices
from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError

SMALL = 2**20
"""Elements up to which a matrix is worth a copy into a batch; a larger one fills a device alone."""


def bucket_by_shape(
  inner: optax.GradientTransformation, sharding: NamedSharding | PartitionSpec | None = None
) -> optax.GradientTransformationExtraArgs:
  """Runs a rule for matrices once a shape: leaves of one shape are stacked to `[N, rows, columns]`.

  `inner` sees a dict of arrays, at least float32, in place of the tree of gradients and that of
  parameters, and its state mirrors this dict. Matrices `[rows, columns]` of one shape and dtype are
  one batch under a key such as '64x64', and so is their state. Kept apart, as they are and under
  their own path, are leaves that gain nothing from a copy: stacks of layers `[..., rows, columns]`,
  matrices of more than `SMALL` elements, and a matrix with a shape of its own. So the state of what
  is large has the shape and path of its parameter, and is sharded like it.

  With `sharding`, whole matrices are divided over devices, each of which runs `inner` on its share:
  every leaf is stacked with those of its shape, stacks flattened, the first axis is padded with
  zero matrices to a multiple of the devices, and its sharding is constrained. The state is divided
  likewise. `inner` must leave zeros zeros.

  A matrix must not depend on the others of its leaf in `inner`.

  Args:
    inner: a rule whose leaves are `[..., rows, columns]`, such as `orthogonalize()`.
    sharding: of the axis of matrices: `NamedSharding(mesh, P('data'))`, or `P('data')` under
      `jax.set_mesh`.

  Raises:
    InputError: at `init`, a leaf with fewer than two axes; a sharding with axes beyond the first,
      of no mesh, or of one with explicit axes.
  """
  inner = optax.with_extra_args_support(inner)

  def stack(buckets, x):
    leaves, stacked = jax.tree.leaves(at_least(x)), {}
    for key, at in buckets.items():
      if sharding is None and len(at) == 1:
        stacked[key] = leaves[at[0]]
        continue
      batch = jnp.concatenate([leaves[i].reshape(-1, *leaves[i].shape[-2:]) for i in at])
      if sharding is not None:
        batch = jnp.pad(batch, ((0, -len(batch) % _shards(sharding)), (0, 0), (0, 0)))
        # Whole before it is cut and after: one collective a batch, where XLA takes one a leaf.
        batch = jax.lax.with_sharding_constraint(batch, _whole(sharding))
        batch = jax.lax.with_sharding_constraint(batch, sharding)
      stacked[key] = batch
    return stacked

  def divided(state, stacked):
    """Under jit the zeros of a new state have no sharding of their own."""

    def one(path, x):
      sizes = [len(stacked[key]) for key in map(_name, path) if key in stacked]
      mirrors = bool(sizes) and x.shape[:1] == (sizes[0],)
      return jax.lax.with_sharding_constraint(x, sharding) if mirrors else x

    return state if sharding is None else jax.tree_util.tree_map_with_path(one, state)

  def init(params):
    require_matrices(params)
    stacked = stack(_buckets(params, sharding is not None), params)
    return divided(inner.init(stacked), stacked)

  def update(updates, state, params=None, **extra):
    buckets = _buckets(updates, sharding is not None)
    stacked = stack(buckets, updates)
    seen = None if params is None else stack(buckets, params)
    new, state = inner.update(stacked, state, seen, **extra)
    if sharding is not None:
      new = jax.lax.with_sharding_constraint(new, _whole(sharding))
    return _unstack(buckets, new, updates), divided(state, stacked)

  return optax.GradientTransformationExtraArgs(init, update)


def _buckets(x: Any, everything: bool) -> dict[str, list[int]]:
  """The positions of the leaves of each batch; a single leaf goes by its path."""
  flat = jax.tree_util.tree_flatten_with_path(x)[0]
  groups: dict[str, list[int]] = {}
  for i, (path, leaf) in enumerate(flat):
    key = tree.path_name(path)
    if everything or (leaf.ndim == 2 and leaf.size <= SMALL):
      dtype = jnp.promote_types(leaf.dtype, jnp.float32)
      key = 'x'.join(map(str, leaf.shape[-2:])) + ('' if dtype == jnp.float32 else f' {dtype}')
    groups.setdefault(key, []).append(i)
  if everything:
    return groups
  return {key if len(at) > 1 else tree.path_name(flat[at[0]][0]): at for key, at in groups.items()}


def _unstack(buckets: dict[str, list[int]], stacked: dict[str, jax.Array], like: Any) -> Any:
  leaves, structure = jax.tree.flatten(like)
  for key, at in buckets.items():
    batch, start = stacked[key].reshape(-1, *stacked[key].shape[-2:]), 0
    for i in at:
      end = start + math.prod(leaves[i].shape[:-2])
      leaves[i] = jax.lax.slice_in_dim(batch, start, end).reshape(leaves[i].shape)
      start = end
  return jax.tree.unflatten(structure, leaves)


def _name(key: Any) -> str:
  return tree.path_name((key,))


def _whole(sharding: NamedSharding | PartitionSpec) -> NamedSharding | PartitionSpec:
  """Whole along the axis of matrices, and along the others as the partitioner likes."""
  free = PartitionSpec(None, PartitionSpec.UNCONSTRAINED, PartitionSpec.UNCONSTRAINED)
  return NamedSharding(sharding.mesh, free) if isinstance(sharding, NamedSharding) else free


def _shards(sharding: NamedSharding | PartitionSpec) -> int:
  """Into how many parts the first axis is cut."""
  if isinstance(sharding, NamedSharding):
    spec, mesh = sharding.spec, sharding.mesh
  else:
    spec, mesh = sharding, jax.sharding.get_abstract_mesh()
  first = spec[0] if len(spec) == 1 else None
  names = (first,) if isinstance(first, str) else first
  if not names or any(name not in mesh.shape for name in names):
    raise InputError(
      f'sharding {spec} over {dict(mesh.shape)} does not say how the one axis of matrices is cut; '
      "give NamedSharding(mesh, P('data')), or P('data') under jax.set_mesh"
    )
  if AxisType.Explicit in mesh.axis_types:
    raise InputError(
      f'sharding {spec} is over explicit axes {mesh.axis_names}; make the mesh with '
      'axis_types=(AxisType.Auto, ...)'
    )
  return math.prod(mesh.shape[name] for name in names)
