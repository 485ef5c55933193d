"""Updates that a broken or outlying gradient must not make."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError


class SpikesState(NamedTuple):
  """State of `skip_spikes`.

  taken: int32, updates made. skipped: int32, updates not made.
  in_a_row: int32, updates not made since the last one made.
  norm: float32, the running mean of the gradient norms of the updates made.
  inner: the state of the rule.
  """

  taken: jax.Array
  skipped: jax.Array
  in_a_row: jax.Array
  norm: jax.Array
  inner: Any


def skip_spikes(
  inner: optax.GradientTransformation,
  factor: float = 10.0,
  decay: float = 0.99,
  warmup: int = 20,
) -> optax.GradientTransformationExtraArgs:
  r"""Skips a step whose gradient is not finite, or far longer than those before.

  With $n = \lVert g \rVert$ over all leaves, the step is taken if $n$ is finite and
  $n \le \mathrm{factor} \cdot \bar n$, or if fewer than `warmup` steps were taken. Then
  $\bar n \leftarrow \bar n + w\,(n - \bar n)$ with $w = \max(1 - \mathrm{decay}, 1/t)$ in the t-th
  step taken: the plain mean at first, then an exponential one. Otherwise the update is zero, weight
  decay included, the state of `inner` and $\bar n$ stay as they are to the bit, and `skipped` goes
  up. A lasting jump of the norm by more than `factor` would stop training: watch `skipped`, which
  is among the metrics of a train step (`observations`).

  Args:
    inner: the rule that is protected. Clipping belongs into it: after a clip no norm stands out.
    factor: how many running means long a gradient may be, > 1.
    decay: of the running mean, in [0, 1).
    warmup: steps in which only non-finite gradients are skipped, at least 1.

  Raises:
    InputError: `warmup` is not a whole number of at least 1.
  """
  if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
    raise InputError(f'warmup of skip_spikes is {warmup!r}; give a whole number of at least 1')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    taken, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return SpikesState(taken, skipped, in_a_row, jnp.zeros(()), inner.init(params))

  def update(updates, state, params=None, **extra):
    norm = jnp.asarray(optax.tree.norm(at_least(updates)), jnp.float32)
    # All gradients zero so far is no measure of the next one.
    early = (state.taken < warmup) | (state.norm == 0)
    good = jnp.isfinite(norm) & (early | (norm <= factor * state.norm))
    new_updates, new_inner = inner.update(updates, state.inner, params, **extra)

    # A select, because it fuses with the update; a cond would copy the state.
    def kept(new, old):
      return jnp.where(good, new, old)

    taken = jnp.where(good, optax.safe_increment(state.taken), state.taken)
    weight = jnp.maximum(1 - decay, 1 / jnp.maximum(taken, 1))
    return jax.tree.map(lambda u: kept(u, jnp.zeros_like(u)), new_updates), SpikesState(
      taken,
      jnp.where(good, state.skipped, optax.safe_increment(state.skipped)),
      jnp.where(good, 0, optax.safe_increment(state.in_a_row)),
      kept(state.norm + weight * (norm - state.norm), state.norm).astype(jnp.float32),
      jax.tree.map(kept, new_inner, state.inner),
    )

  return optax.GradientTransformationExtraArgs(init, update)
