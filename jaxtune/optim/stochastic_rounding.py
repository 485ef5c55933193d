"""Stochastic rounding to bfloat16: what one step is too small to change, many steps change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.precision import at_least, in_precision
from jaxtune.typing import InputError

_MOST = float(jnp.finfo(jnp.bfloat16).max)


class StochasticRoundingState(NamedTuple):
  """step: int32, updates made so far. inner: the state of the rule."""

  step: jax.Array
  inner: Any


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
  r"""Rounds to one of the two nearest bfloat16 numbers at random, so that $E[r(x)] = x$.

  Between neighbours $a \le x < b$ it is $b$ with probability $(x - a)/(b - a)$ (Gupta et al., arXiv
  1502.02551): the upper half of a float32 pattern is a bfloat16, so 16 random bits are added to the
  lower half, and the carry decides. Numbers that bfloat16 holds stay as they are, and so do
  infinities and NaN; a finite number stays finite.

  Args:
    x: any shape, read as float32.
    key: a typed key; equal keys give equal draws.
  """
  x = x.astype(jnp.float32)
  pattern = jax.lax.bitcast_convert_type(jnp.clip(x, -_MOST, _MOST), jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  upper = ((pattern + noise) >> 16).astype(jnp.uint16)
  rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def stochastic_round_params(
  inner: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
  r"""Makes the step of bfloat16 parameters right on average, however small it is.

  A bfloat16 number has 8 bits of mantissa, so $\theta + u$ rounds back to $\theta$ where
  $|u| < 2^{-9} |\theta|$, and training stalls. Here the updates are such that
  `optax.apply_updates` lands on $\theta + u$ rounded stochastically (`stochastic_round`), so that
  $E[\theta'] = \theta + u$. It needs no float32 copy of the parameters. Parameters of other dtypes
  get the updates of `inner`. Put it outermost: what is chained after it moves the target.

  Args:
    inner: the rule; its arithmetic and state are at least float32, see `in_precision`.
    seed: of the draws, which differ by step and leaf.

  Raises:
    InputError: `update` without parameters.
  """
  inner = in_precision(inner)

  def init(params):
    return StochasticRoundingState(jnp.zeros((), jnp.int32), inner.init(params))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise InputError(
        'stochastic_round_params needs the parameters: update(updates, state, params)'
      )
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    leaves, structure = jax.tree.flatten(updates)
    landing = [
      _landing(p, u, jax.random.fold_in(key, i))
      for i, (p, u) in enumerate(zip(jax.tree.leaves(params), leaves, strict=True))
    ]
    step = optax.safe_increment(state.step)
    return structure.unflatten(landing), StochasticRoundingState(step, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _landing(p: jax.Array, u: jax.Array, key: jax.Array) -> jax.Array:
  if p.dtype != jnp.bfloat16:
    return u
  p, u = at_least(p), u.astype(jnp.float32)
  # The difference is exact where it has to be: the sum of it and p rounds to the target again.
  step = at_least(stochastic_round(p + u, key)) - p
  return jnp.where(jnp.isfinite(step), step, u)
