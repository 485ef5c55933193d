"""Inside a step: where activations lie, and what each device computes by itself.

All of it asks for the mesh that the step is compiled for (`jax.set_mesh`, which `train.prepare`
does); without a mesh, or on one device, it does nothing.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxtune.shard.mesh import ROWS
from jaxtune.shard.place import PARAMETERS
from jaxtune.typing import InputError

# Logical axis of an activation to mesh axes. Rows are texts, or their tokens behind each other.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
  'rows': ROWS,
  'length': ('sequence',),
  'heads': ('tensor',),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'experts': ('expert',),
}


def size(*axes: str) -> int:
  """Devices along these mesh axes that work as one here: 1 inside `locally` over them."""
  sizes = _sizes()
  return math.prod(sizes.get(axis, 1) for axis in axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """`x`, cut along its named axes; an axis that its devices do not divide stays whole.

  Args:
    x: an activation.
    *names: of each of its axes, one of `ACTIVATIONS`, or None for one that stays whole.
  """
  if not _sizes():
    return x
  spec = [_cut(name) if x.shape[i] % size(*_cut(name)) == 0 else () for i, name in enumerate(names)]
  return lax.with_sharding_constraint(x, PartitionSpec(*[axes or None for axes in spec]))


def gathered(params: Any, axes: Any) -> Any:
  """Parameters as a layer computes with them: no longer cut over `fsdp`.

  Codes of few bits are gathered as codes. The backward pass scatters the sum of the gradients.

  Args:
    params: arrays and weight leaves.
    axes: the logical names of their axes, as `model.axes` gives.
  """
  sizes = _sizes()
  if 'fsdp' not in sizes:
    return params

  def one(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    found = [PARAMETERS.get((name or '').removesuffix('?')) for name in names]
    spec = [
      axis if axis in sizes and axis != 'fsdp' and x.shape[i] % sizes[axis] == 0 else None
      for i, axis in enumerate(found)
    ]
    return lax.with_sharding_constraint(x, PartitionSpec(*spec))

  return jax.tree.map(one, params, axes)


def locally(
  function: Callable[..., Any],
  inputs: Sequence[Any],
  names: Sequence[Any],
  out: Any,
  *,
  kernels: bool = False,
) -> Any:
  """`function(*inputs)`, computed by each device on its own part of the inputs.

  Cuts along mesh axes that no input names stay the compiler's.

  Args:
    function: it may call `total`, `all_gather`, `reduce_scatter` and `index`. What has a gradient
      must be among its inputs: JAX cannot differentiate what a scan in it closes over.
    inputs: arrays, trees of arrays, or None.
    names: of each input the names of its axes in `ACTIVATIONS`, None for one that is whole; a tree
      of them for a tree, or None for a tree that each device gets whole.
    out: the same of the outputs.
    kernels: whether the function may call a kernel of a TPU, which leaves no axis to the compiler,
      not one of a single device either.

  Raises:
    InputError: an axis that its devices do not divide.
  """
  known = _sizes()
  used = {axis for names in _leaves(names) for name in names for axis in _cut(name)}
  if not used & set(known):
    return function(*inputs)

  mine = used & set(known) | (_single() if kernels else set())

  def spec(names: Sequence[str | None]) -> PartitionSpec:
    # Axes of one device as well: over those that are not named gradients would be summed.
    cut = [[axis for axis in ACTIVATIONS[name] if axis in mine] if name else [] for name in names]
    return PartitionSpec(*[tuple(axes) or None for axes in cut])

  def check(names: Sequence[str | None] | None, x: Any) -> PartitionSpec:
    for i, name in enumerate(names or ()):
      axes = _cut(name)
      if x.shape[i] % size(*axes):
        raise InputError(
          f'{x.shape[i]} {name} cannot be spread over {size(*axes)} devices '
          f'({" x ".join(axes)} of the mesh); choose a multiple, or another mesh'
        )
    return spec(names or ())

  specs = jax.tree.map(
    check, tuple(names), tuple(inputs), is_leaf=lambda x: x is None or _is_names(x)
  )

  several = {axis for axis in mine if size(axis) > 1}

  # The gradient of what several devices have is summed over them, of 16 bits too in float32: less
  # is lost, and XLA's CPU compiler aborts on sums of bfloat16.
  def cast(parts: Sequence[Any], wide: bool) -> tuple[Any, ...]:
    def each(spec: PartitionSpec, part: Any, given: Any) -> Any:
      if several <= set(jax.tree.leaves(tuple(spec))):
        return part
      return jax.tree.map(lambda p, x: _cast(p, x.dtype, wide), part, given)

    return jax.tree.map(
      each, specs, tuple(parts), tuple(inputs), is_leaf=lambda s: isinstance(s, PartitionSpec)
    )

  return jax.shard_map(
    lambda *parts: function(*cast(parts, False)),
    in_specs=specs,
    out_specs=jax.tree.map(spec, out, is_leaf=_is_names),
    axis_names=mine,
    check_vma=False,
  )(*cast(inputs, True))


def total(x: Any) -> Any:
  """The sum of what all devices have, inside `locally`."""
  axes = _manual()
  return lax.psum(x, axes) if axes else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def all_gather(x: jax.Array, axis: int, mesh_axis: str) -> jax.Array:
  """The parts of an array that the devices along a mesh axis have, one behind the other."""
  return lax.all_gather(x, mesh_axis, axis=axis, tiled=True) if mesh_axis in _manual() else x


def reduce_scatter(x: jax.Array, axis: int, mesh_axis: str) -> jax.Array:
  """The device's own part of the sum over a mesh axis: the transpose of `all_gather`."""
  if mesh_axis not in _manual():
    return x
  wide = _cast(x, x.dtype, True)
  return lax.psum_scatter(wide, mesh_axis, scatter_dimension=axis, tiled=True).astype(x.dtype)


all_gather.defvjp(
  lambda x, axis, mesh_axis: (all_gather(x, axis, mesh_axis), None),
  lambda axis, mesh_axis, _, dy: (reduce_scatter(dy, axis, mesh_axis),),
)


def index(mesh_axis: str) -> Any:
  """Where the device stands along a mesh axis, inside `locally`."""
  return lax.axis_index(mesh_axis) if mesh_axis in _manual() else 0


def _cast(x: jax.Array, own: Any, wide: bool) -> jax.Array:
  """A float in its own type, or in one of at least 32 bits."""
  if not jnp.issubdtype(own, jnp.floating):
    return x
  return x.astype(jnp.promote_types(own, jnp.float32) if wide else own)


def _single() -> set[str]:
  """Axes of one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return {name for name, count in mesh.shape.items() if count == 1} - set(mesh.manual_axes)


def _manual() -> tuple[str, ...]:
  """Axes of several devices over which `locally` computes."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(name for name in mesh.manual_axes if mesh.shape[name] > 1)


def _sizes() -> dict[str, int]:
  """Devices along the axes of more than one that the compiler handles."""
  mesh = jax.sharding.get_abstract_mesh()
  return {
    name: count for name, count in mesh.shape.items() if count > 1 and name not in mesh.manual_axes
  }


def _cut(name: str | None) -> tuple[str, ...]:
  """The mesh axes of a name, those that are here."""
  return tuple(axis for axis in ACTIVATIONS[name] if axis in _sizes()) if name else ()


def _is_names(x: Any) -> bool:
  return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)


def _leaves(names: Any) -> list[tuple[str | None, ...]]:
  return jax.tree.leaves(names, is_leaf=_is_names)
