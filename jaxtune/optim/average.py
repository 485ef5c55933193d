"""An average of the weights over the steps, kept beside them: what is evaluated and exported."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError, Params


class AveragedState(NamedTuple):
  """State of `average_weights`.

  step: int32, updates made. counted: int32, those of them that are in the average.
  average: of the parameters, at least float32; before the first one counts, the initial ones.
  inner: the state of the rule.
  """

  step: jax.Array
  counted: jax.Array
  average: Params
  inner: Any


def average_weights(
  inner: optax.GradientTransformation,
  decay: float | jax.Array | None = 0.999,
  *,
  start: int = 0,
  every: int = 1,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps an average of the parameters in its state; the updates are those of `inner`.

  With $\theta_k$ the parameters after the update `start + k * every`,
  $\bar\theta_k = \bar\theta_{k-1} + w_k (\theta_k - \bar\theta_{k-1})$ where
  $w_k = (1-d) / (1-d^k)$: the exponential average without its bias to the start, as
  `optax.ema(d, debias=True)` has it for updates. Without a decay $w_k = 1/k$, the plain mean
  (Polyak & Juditsky 1992), which from a `start` on and once in `every` updates is stochastic weight
  averaging, Izmailov et al. 2018, arXiv:1803.05407; keep the rate constant or cyclic there. Models
  here have no batch norm, so there are no statistics to take again.

  `averaged` reads it: `program.evaluate(optim.averaged(state.opt, state.trainable), batches)`, or
  in the loop `train.fit(..., weights=lambda s: optim.averaged(s.opt, s.trainable))`. It is saved
  and resumed with the state. Four bytes of state a parameter.

  Args:
    inner: the whole rule, with its learning rate: what it returns is what is added. Only a wrapper
      that makes some of the updates zero may go around this one (`skip_spikes`,
      `accumulate_by_weight`).
    decay: $d$, in [0, 1); an average of about the last $1/(1-d)$ steps. None for the plain mean.
    start: updates before the first that may count.
    every: updates from one that counts to the next.

  Raises:
    InputError: a number out of range, or `update` without parameters.
  """
  for name, value, least in (('start', start, 0), ('every', every, 1)):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise InputError(
        f'{name} of average_weights is {value!r}; give a whole number of at least {least}'
      )
  if isinstance(decay, int | float) and not 0 <= decay < 1:
    raise InputError(
      f'decay of average_weights is {decay!r}; give a number in [0, 1), or None for the plain mean'
    )
  inner = optax.with_extra_args_support(inner)

  def weight(count):
    if decay is None:
      return 1 / jnp.maximum(count, 1)
    d = jnp.asarray(decay, jnp.float32)
    return jnp.where(count == 1, 1, (1 - d) / (1 - d ** jnp.maximum(count, 1)))

  def init(params):
    # Copies: a step that donates the parameters and the state must not get one buffer twice.
    average = jax.tree.map(jnp.copy, at_least(params))
    zero = jnp.zeros((), jnp.int32)
    return AveragedState(zero, jnp.copy(zero), average, inner.init(params))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise InputError('average_weights needs the parameters: update(updates, state, params)')
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    step = optax.safe_increment(state.step)
    due = (step > start) & ((step - start) % every == 0)
    count = jnp.where(due, state.counted + 1, state.counted)
    new, w = optax.apply_updates(params, updates), weight(count)

    def moved(average, x):
      return jnp.where(due, average + w.astype(average.dtype) * (x - average), average)

    average = jax.tree.map(moved, state.average, at_least(new))
    return updates, AveragedState(step, count, average, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def averaged(state: Any, params: Params) -> Params:
  """The average that `average_weights` keeps anywhere in an optimizer state.

  Before the first update that counts, it is the parameters.

  Args:
    state: of the optimizer.
    params: what it updates, as a train state's `trainable`; the result has their types.

  Raises:
    InputError: the state holds no average, or several.
  """

  def is_average(x: Any) -> bool:
    return isinstance(x, AveragedState)

  found = [x for x in jax.tree.leaves(state, is_leaf=is_average) if is_average(x)]
  if len(found) != 1:
    raise InputError(
      f'the optimizer state holds {len(found)} averages of the weights where one is needed; put '
      'optim.average_weights around the rule'
    )
  (kept,) = found
  return jax.tree.map(
    lambda average, x: jnp.where(kept.counted > 0, average.astype(x.dtype), x), kept.average, params
  )
