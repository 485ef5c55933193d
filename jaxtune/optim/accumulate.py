"""Gradients summed over several calls, each by the weight of its batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError


class AccumulatedState(NamedTuple):
  """State of `accumulate_by_weight`.

  calls: int32, calls since the last step, below `every`.
  weight: float32, the sum of their weights.
  total: the sum of their gradients times their weights, at least float32.
  inner: the state of the rule.
  """

  calls: jax.Array
  weight: jax.Array
  total: Any
  inner: Any


def accumulate_by_weight(
  inner: optax.GradientTransformation, every: int
) -> optax.GradientTransformationExtraArgs:
  r"""Takes one step in `every` calls, with the gradient of all their tokens together.

  In `update(g, state, params, weight=w)` $g$ is the mean gradient of a batch and $w$ what it is the
  mean over: its supervised tokens, or its rows. The last of `every` calls passes
  $\sum_i w_i g_i / \sum_i w_i$ and `weight` $= \sum_i w_i$ to `inner`; the others return zero
  updates. `optax.MultiSteps` weighs all batches alike, however few tokens one has. A batch of
  weight zero adds nothing. Steps of `inner`, and so of its schedule, are counted once in `every`
  calls; other extra arguments are those of the last call. Four bytes of state a parameter.

  Args:
    inner: the rule.
    every: calls to a step, at least 1.

  Raises:
    InputError: `every` out of range, or `update` without `weight`.
  """
  if isinstance(every, bool) or not isinstance(every, int) or every < 1:
    raise InputError(f'every of accumulate_by_weight is {every!r}; give a whole number above 0')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, at_least(params))
    return AccumulatedState(jnp.zeros((), jnp.int32), jnp.zeros(()), zeros, inner.init(params))

  def update(updates, state, params=None, *, weight=None, **extra):
    if weight is None:
      raise InputError(
        'accumulate_by_weight needs the weight of each batch: update(g, state, params, weight=w), '
        'where w is what g is the mean over, such as its number of tokens'
      )
    weight = jnp.asarray(weight, jnp.float32)
    total = jax.tree.map(
      lambda t, g: t + jnp.where(weight > 0, weight.astype(t.dtype) * g.astype(t.dtype), 0),
      state.total,
      updates,
    )
    weight = state.weight + weight

    def step(total, inner_state):
      safe = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
      mean = jax.tree.map(lambda t: t / safe.astype(t.dtype), total)
      new, inner_state = inner.update(mean, inner_state, params, weight=weight, **extra)
      return new, jax.tree.map(jnp.zeros_like, total), inner_state

    shapes = jax.eval_shape(step, total, state.inner)[0]

    def wait(total, inner_state):
      return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), total, inner_state

    last = state.calls == every - 1
    new, total, inner_state = jax.lax.cond(last, step, wait, total, state.inner)
    calls = jnp.where(last, 0, state.calls + 1)
    return new, AccumulatedState(calls, jnp.where(last, 0.0, weight), total, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)
