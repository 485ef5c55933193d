"""Hyperparameters as scalars in the optimizer's state: read, restored, replaced, vmapped."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.schedules import Schedule
from jaxtune.typing import InputError


class HyperparameterState(NamedTuple):
  """State of a rule whose hyperparameters are data.

  step: int32, updates made so far.
  multiplier: float32, the schedule's value in the latest update (before the first: at step 0).
  hyperparameters: the scalars as given, `learning_rate` without its schedule.
  inner: the state of the rule.
  """

  step: jax.Array
  multiplier: jax.Array
  hyperparameters: dict[str, jax.Array]
  inner: Any


def with_hyperparameters(
  factory: Callable[..., optax.GradientTransformation],
  values: Mapping[str, Any],
  *,
  schedule: Callable[[jax.Array], jax.Array] | None = None,
  dtype: Any = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
  """The rule `factory(**values)`, with the values read from its state at every update.

  Learning rates among the values (`learning_rate`, ...) reach the factory multiplied by
  `schedule(step)`. The factory is called with traced scalars, so it must not branch on them.
  `optax.inject_hyperparams` differs in that its schedules replace the value instead of multiplying
  it, so that a scheduled rate cannot be swept, and in that scalars follow the parameters' dtype
  (in bfloat16, b2 = 0.999 is 1).

  What a rule reads in its own `init` (the initial accumulator of adagrad, say) is used then and
  there.

  Args:
    factory: builds the rule from keyword arguments, as `optax.adamw` does.
    values: the numbers that live in the state.
    schedule: from the step (int32, 0 for the first update) to a multiplier of `learning_rate`. The
      `warmup` of an `optim.schedule` is a hyperparameter too.
    dtype: of the scalars.
  """

  def rule(scalars, multiplier, params):
    if not jax.tree.leaves(params):  # some rules reduce over leaves and fail when there are none
      return optax.with_extra_args_support(optax.identity())
    own = {name: scalars[name] for name in values}
    return optax.with_extra_args_support(factory(**_effective(own, multiplier)))

  held = {**values, **({'warmup': schedule.warmup} if isinstance(schedule, Schedule) else {})}

  def multiplier_at(step, scalars):
    if schedule is None:
      return jnp.ones((), dtype)
    given = {name: scalars[name] for name in held if name not in values}
    return jnp.asarray(schedule(step, **given), dtype)

  def init(params):
    step = jnp.zeros((), jnp.int32)
    scalars = {name: jnp.asarray(value, dtype) for name, value in held.items()}
    multiplier = multiplier_at(step, scalars)
    inner_state = rule(scalars, multiplier, params).init(params)
    return _own(HyperparameterState(step, multiplier, scalars, inner_state), params)

  def update(updates, state, params=None, **extra):
    multiplier = multiplier_at(state.step, state.hyperparameters)
    inner = rule(state.hyperparameters, multiplier, updates)
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    step = optax.safe_increment(state.step)
    return updates, HyperparameterState(step, multiplier, state.hyperparameters, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _effective(scalars: Mapping[str, jax.Array], multiplier: jax.Array) -> dict[str, jax.Array]:
  return {
    name: value * multiplier if name.endswith('learning_rate') else value
    for name, value in scalars.items()
  }


def _own(state: Any, params: Any) -> Any:
  """Copies leaves that are the parameters themselves or occur twice.

  Some rules (dog, prodigy, schedule-free) keep the first parameters in their state; a step that
  donates both the parameters and the state would hand the same buffer over twice.
  """
  seen = {id(x) for x in jax.tree.leaves(params)}

  def own(x):
    if id(x) in seen:
      x = jnp.array(x, copy=True)
    seen.add(id(x))
    return x

  return jax.tree.map(own, state)


def _is_state(x: Any) -> bool:
  return isinstance(x, HyperparameterState)


def _states(state: Any) -> list[HyperparameterState]:
  return [x for x in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(x)]


def _one(found: list[HyperparameterState]) -> HyperparameterState:
  if len(found) != 1:
    raise InputError(
      f'the optimizer state holds {len(found)} sets of hyperparameters where one is needed; '
      'make the rule with optim.create, or pass the part of the state that you mean'
    )
  return found[0]


def hyperparameters(state: Any) -> dict[str, jax.Array]:
  """The live hyperparameters in an optimizer state, scalars (or `[lanes]` in a vmapped state).

  `learning_rate` is the effective one, `learning_rate * schedule(step)` of the latest update
  (before the first: of the first). The state may lie inside a larger one (`optax.chain`,
  `optax.MultiSteps`). The state of a plain optax rule has none: the answer is empty.

  Raises:
    InputError: more than one state made by `create` or `with_hyperparameters` inside.
  """
  states = _states(state)
  if not states:
    return {}
  found = _one(states)
  return _effective(found.hyperparameters, found.multiplier)


def set_hyperparameters(state: Any, **values: Any) -> Any:
  """The state with some hyperparameters replaced; shapes and dtypes stay, so nothing recompiles.

  `learning_rate` is the number that `create` takes: the schedule goes on multiplying it. Lanes of
  a sweep: `jax.vmap(lambda lr: optim.set_hyperparameters(state, learning_rate=lr))(rates)`.

  Raises:
    InputError: a name that the state does not hold, a shape that does not fit, or as
      `hyperparameters`.
  """
  held = _one(_states(state)).hyperparameters
  for name in values:
    if name not in held:
      raise InputError(
        f'the optimizer state holds no hyperparameter {name!r}, only {", ".join(sorted(held))}; '
        f'give {name} to optim.create for it to be there'
      )

  def replaced(name, old):
    new = jnp.asarray(values.get(name, old), old.dtype)
    if new.shape not in ((), old.shape):
      raise InputError(
        f'hyperparameter {name!r} has shape {new.shape}, the state holds {old.shape}'
      )
    return jnp.broadcast_to(new, old.shape)

  new = {name: replaced(name, old) for name, old in held.items()}
  return jax.tree.map(
    lambda x: x._replace(hyperparameters=new) if _is_state(x) else x, state, is_leaf=_is_state
  )
