"""Rules that look at a whole leaf, mapped over the layers that a stacked leaf holds."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from jaxtune import tree
from jaxtune.typing import InputError

STACKED: Sequence[tuple[str, int]] = (
  (r'(^|/)\d+-\d+/experts/', 2),
  (r'(^|/)\d+-\d+/', 1),
  (r'.*', 0),
)
"""Leading axes that count matrices in built-in models: layers in a segment (`encoder/0-5/`), and
layers and experts in a mixture; none elsewhere."""


def per_layer(
  inner: optax.GradientTransformation, axes: Sequence[tuple[str, int]] = STACKED
) -> optax.GradientTransformationExtraArgs:
  r"""Gives a stacked leaf `[L, ...]` the updates that its layers would get as leaves of their own.

  Rules that reduce over a leaf (the trust ratio $\lVert\theta\rVert/\lVert u\rVert$ of LARS and
  LAMB, the factored moments of Adafactor, block clipping, the matrix of Muon) mistake a stack for
  one parameter. Here `inner` runs once for each set of leading shapes, under `jax.vmap` over them:
  it sees the tree with single layers as leaves and holes in place of the others, so path rules
  inside it still work. What it reduces over *several* leaves (a global norm) would be per layer
  too: keep that outside.

  Its state is a dict from the leading shape ('6', or 'single' for leaves that are not stacked) to
  the state of `inner` with those leading axes.

  Args:
    inner: a rule that treats every leaf by itself.
    axes: `(pattern, number of leading axes that are stacked)`, see `jaxtune.tree`. Never guessed
      from `ndim`: a stack of norms `[L, D]` looks like a matrix.

  Raises:
    InputError: at `init`, a leaf with fewer axes than its rule says, or one that no rule covers.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    groups = _groups(axes, params)
    return {key: _over(lead, inner.init)(_only(params, at)) for key, lead, at in groups}

  def update(updates, state, params=None, **extra):
    leaves, structure = jax.tree.flatten(updates)
    new_state = {}

    def step(u, s, p):
      return inner.update(u, s, p, **extra)

    for key, lead, at in _groups(axes, updates):
      inputs = _only(updates, at), state[key], None if params is None else _only(params, at)
      part, new_state[key] = _over(lead, step)(*inputs)
      for i, leaf in zip(at, jax.tree.leaves(part), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves), new_state

  return optax.GradientTransformationExtraArgs(init, update)


def _groups(axes: Any, params: Any) -> list[tuple[str, tuple[int, ...], list[int]]]:
  """`(key, leading shape, positions of the leaves that have it)`."""
  groups: dict[tuple[int, ...], list[int]] = {}
  for i, route in enumerate(tree.routing(axes, params)):
    if not 0 <= route.value <= len(route.shape):
      raise InputError(
        f'axes rule {route.pattern!r} gives {route.path!r} of shape {route.shape} '
        f'{route.value} stacked axes; give 0 to {len(route.shape)}'
      )
    groups.setdefault(route.shape[: route.value], []).append(i)
  return [('x'.join(map(str, lead)) or 'single', lead, groups[lead]) for lead in sorted(groups)]


def _only(params: Any, at: list[int]) -> Any:
  """The leaves at some positions, with a hole for each other leaf and each `None`."""
  leaves, structure = jax.tree.flatten(params, is_leaf=lambda x: x is None)
  arrays = [i for i, x in enumerate(leaves) if x is not None]
  kept = {arrays[i] for i in at}
  # Optax's own mark of a hole: a `None` is a leaf to galore.
  holes = [x if i in kept else optax.MaskedNode() for i, x in enumerate(leaves)]
  return jax.tree.unflatten(structure, holes)


def _over(lead: tuple[int, ...], function: Any) -> Any:
  for _ in lead:
    function = jax.vmap(function)
  return function
