"""What losses on preferences share: rows of both completions, the reference, what is reported."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.losses.log_probs import compared, learned_tokens, log_probs
from jaxtune.losses.loss import Loss
from jaxtune.options import is_on
from jaxtune.typing import Batch, InputError, Key, Params

# From the parameters of a run to those of the policy and of its reference.
Reference = Callable[[Params], tuple[Params, Params]]


def both(batch: Batch) -> Batch:
  """The rows of `chosen` and `rejected` in turn, `[2B, ...]`: a pair stays on its device."""
  chosen, rejected = batch['chosen'], batch['rejected']

  def pair(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

  return {name: pair(chosen[name], rejected[name]) for name in chosen}


def apart(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`[2B] -> [B], [B]`: what `both` put together."""
  chosen, rejected = jnp.moveaxis(rows.reshape(-1, 2), 1, 0)
  return chosen, rejected


class Ratios(NamedTuple):
  """Of each row, float32 `[B]`.

  nats: `log p(completion)` under the policy.
  log_ratio: that less the reference's.
  tokens: that they sum over, at least 1.
  kl: `KL(policy || reference)`, the mean over the row's learned tokens, in nats/token; None where
    the reference is known by its log-probabilities alone.
  """

  nats: jax.Array
  log_ratio: jax.Array
  tokens: jax.Array
  kl: jax.Array | None


def ratios(
  model: Any,
  params: Params,
  part: Batch,
  reference: Reference | None,
  chunk: int | None = None,
  key: Key | None = None,
) -> Ratios:
  """`log p(completion) - log p_reference(completion)` of each row.

  The reference's is `part['reference']` where that is present (`train.reference_log_probs`), and
  else computed with the parameters that `reference` gives.

  Raises:
    InputError: neither is there.
  """
  policy, held = (params, None) if reference is None else reference(params)
  if 'reference' in part:
    nats, tokens = log_probs(model, policy, part, chunk=chunk, key=key)
    return Ratios(nats, nats - part['reference'], jnp.maximum(tokens, 1), None)
  if held is None:
    raise InputError(
      'no reference to compare the policy with: pass reference=adapt.policy_and_reference with '
      'parameters from adapt.with_start, or examples from train.reference_log_probs'
    )
  found = compared(model, policy, held, part, chunk=chunk, key=key)
  nats, other, kl = (x.sum(axis=1) for x in found)
  tokens = jnp.maximum(learned_tokens(part).sum(axis=1, dtype=jnp.float32), 1)
  return Ratios(nats, nats - other, tokens, lax.stop_gradient(kl / tokens))


def compared_pairs(
  losses: jax.Array,
  chosen: jax.Array,
  rejected: jax.Array,
  weights: jax.Array,
  **more: jax.Array | None,
) -> Loss:
  """The sums of a loss on pairs, with the metrics that all of them have.

  Metrics: `accuracy`, the share of pairs whose chosen reward is the larger, ties by half (so that a
  policy that is its reference has 0.5; TRL counts them as lost); `margin`, chosen less rejected;
  `chosen_reward`, `rejected_reward`; and `more`.

  Args:
    losses: of each pair, `[B]`.
    chosen: rewards `[B]`.
    rejected: rewards `[B]`.
    weights: `[B]`.
    **more: further values of each pair; None for what there is not.
  """
  chosen, rejected = lax.stop_gradient((chosen, rejected))
  rows = {
    'accuracy': (jnp.sign(chosen - rejected) + 1) / 2,
    'margin': chosen - rejected,
    'chosen_reward': chosen,
    'rejected_reward': rejected,
    **{name: lax.stop_gradient(value) for name, value in more.items() if value is not None},
  }
  return weighted(losses, rows, weights)


def unpaired(
  losses: jax.Array,
  rewards: jax.Array,
  desirable: jax.Array,
  baseline: jax.Array,
  weights: jax.Array,
  kl: jax.Array | None,
) -> Loss:
  """The sums of a loss on single completions, with the metrics that all of them have.

  Metrics: `accuracy`, the share of rows whose reward is on its side of the baseline, ties by half;
  `margin`, by how much, with a minus on the wrong side; `baseline`; `kl` in nats/token, the exact
  divergence from the reference along the data's completions, where it is not precomputed.

  Args:
    losses: of each row, `[B]`.
    rewards: `[B]`.
    desirable: bool `[B]`.
    baseline: what rewards are seen against, a scalar.
    weights: `[B]`.
    kl: of each row, or None.
  """
  margin = lax.stop_gradient(jnp.where(desirable, rewards - baseline, baseline - rewards))
  rows = {
    'accuracy': (jnp.sign(margin) + 1) / 2,
    'margin': margin,
    'baseline': jnp.broadcast_to(baseline, weights.shape),
  }
  return weighted(losses, rows if kl is None else rows | {'kl': kl}, weights)


def weighted(losses: jax.Array, rows: dict[str, jax.Array], weights: jax.Array) -> Loss:
  """Weighted sums over rows `[B]`."""
  metrics = {name: jnp.sum(weights * value) for name, value in rows.items()}
  return Loss(jnp.sum(weights * losses), weights.sum(), metrics)


def pair_log_sigmoid(logits: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """`-(1 - e) log sigmoid(x) - e log sigmoid(-x)`: labels that are wrong with probability e."""
  loss = -jax.nn.log_sigmoid(logits)
  if not is_on(label_smoothing):
    return loss
  return (1 - label_smoothing) * loss - label_smoothing * jax.nn.log_sigmoid(-logits)
