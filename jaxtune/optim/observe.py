"""Norms of gradients, updates and parameters by group, kept in the state and read as metrics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.optim.precision import at_least
from jaxtune.optim.spikes import SpikesState
from jaxtune.typing import InputError


class ObservedState(NamedTuple):
  """Of the latest update, label -> float32 scalar; inner: the state of the rule."""

  grad_norm: dict[str, jax.Array]
  update_norm: dict[str, jax.Array]
  param_norm: dict[str, jax.Array]
  update_ratio: dict[str, jax.Array]
  inner: Any


def observe(
  inner: optax.GradientTransformation, labels: tree.Rules = (('', 'all'),)
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps the norms of each group of parameters in its state; the updates are those of `inner`.

  $\lVert g \rVert$, $\lVert u \rVert$, $\lVert \theta \rVert$ and
  $\lVert u \rVert / \lVert \theta \rVert$ over all leaves of a label, where $g$ is what `inner` is
  given, $u$ what it returns and $\theta$ the parameters before the step; the ratio is 0 where
  $\theta$ is. Read them with `observations`; a train step does. A label whose ratio stands out
  learns too fast, or hardly at all.

  Args:
    inner: the rule that is watched.
    labels: `(pattern, label)`, see `jaxtune.tree`; one for all by default.

  Raises:
    InputError: a parameter that no rule covers, or `update` without parameters.
  """
  inner = optax.with_extra_args_support(inner)

  def norms(values, names):
    squares = {name: jnp.zeros(()) for name in sorted(set(names))}
    for name, x in zip(names, jax.tree.leaves(at_least(values)), strict=True):
      squares[name] += jnp.sum(jnp.square(jnp.abs(x))).astype(jnp.float32)
    return {name: jnp.sqrt(square) for name, square in squares.items()}

  def names_of(params):
    return [str(route.value) for route in tree.routing(labels, params)]

  def init(params):
    names = names_of(params)
    zeros = [{name: jnp.zeros(()) for name in sorted(set(names))} for _ in range(4)]
    return ObservedState(*zeros, inner.init(params))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise InputError('observe needs the parameters: update(updates, state, params)')
    names = names_of(updates)
    gradient, size = norms(updates, names), norms(params, names)
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    step = norms(updates, names)
    ratio = {k: jnp.where(size[k] > 0, step[k] / size[k], 0.0) for k in size}
    return updates, ObservedState(gradient, step, size, ratio, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def observations(state: Any) -> dict[str, jax.Array]:
  """What `observe` and `skip_spikes` keep anywhere in an optimizer state, by name.

  `grad_norm/<label>`, `update_norm/<label>`, `param_norm/<label>`, `update_ratio/<label>`,
  `spikes/skipped`, `spikes/in_a_row` and `spikes/norm`: float32 scalars (or `[lanes]` in a vmapped
  state), ready to be metrics. The second of a name is `<name>.2`.
  """
  found: dict[str, jax.Array] = {}

  def add(name: str, value: jax.Array) -> None:
    number = 1 + sum(known == name or known.startswith(f'{name}.') for known in found)
    found[name if number == 1 else f'{name}.{number}'] = value

  def is_watched(x: Any) -> bool:
    return isinstance(x, ObservedState | SpikesState)

  def search(part: Any) -> None:
    for x in jax.tree.leaves(part, is_leaf=is_watched):
      if isinstance(x, ObservedState):
        for field in ('grad_norm', 'update_norm', 'param_norm', 'update_ratio'):
          for label, value in getattr(x, field).items():
            add(f'{field}/{label}', value)
      elif isinstance(x, SpikesState):
        add('spikes/skipped', x.skipped.astype(jnp.float32))
        add('spikes/in_a_row', x.in_a_row.astype(jnp.float32))
        add('spikes/norm', x.norm)
      if is_watched(x):
        search(x.inner)

  search(state)
  return found
