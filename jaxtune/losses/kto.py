"""KTO: completions that are good or bad, each by itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.preference import (
  Reference,
  check_at_least_zero,
  check_positive,
  ratios,
  unpaired,
)
from jaxtune.typing import Batch, InputError, Key, Params


def kto_loss(
  log_ratio: jax.Array,
  desirable: jax.Array,
  baseline: jax.Array,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> jax.Array:
  """`weight (1 - sigmoid(±beta (r - z)))` of each row `[B]`, plus for what is desirable.

  Ethayarajh et al. 2024, arXiv:2402.01306, equation 7, less its constant.

  Args:
    log_ratio: r, `log p(y) - log p_reference(y)` in nats, `[B]`.
    desirable: bool `[B]`.
    baseline: z, the divergence from the reference that rewards are seen against, a scalar.
    beta: how soon gains and losses saturate.
    desirable_weight: the paper's lambda_D.
    undesirable_weight: lambda_U.
  """
  gain = jnp.where(desirable, log_ratio - baseline, baseline - log_ratio)
  weight = jnp.where(desirable, desirable_weight, undesirable_weight)
  return weight * (1 - jax.nn.sigmoid(beta * gain))


def kto(
  model: Any,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
  reference: Reference | None = None,
  chunk: int | None = None,
) -> Objective:
  """`sum_b w_b kto_loss(r_b)` with the batch's own baseline; weight `sum_b w_b`.

  The baseline is `z = max(0, weighted mean of r' over the batch)`, r' the log-ratio of another
  prompt's completion (`mismatched`), without a gradient. It belongs to the rows that the objective
  is called with: over devices that is the whole batch, but with accumulated gradients each
  micro-batch has its own, from fewer rows, so cutting a batch changes more than rounding.

  Batch: `tokens` int32, `mask` and `supervised` bool `[B, T]`, `label` bool `[B]`, a part
  `mismatched` with tokens of its own; `reference` float32 `[B]` in the batch and in the part where
  the reference's log-probabilities are precomputed; `weight` `[B]` if present.
  Metrics: those of `preference.unpaired`, of the rewards `beta r` against the baseline `beta z`.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: how soon gains and losses saturate.
    desirable_weight: of good completions. With n of one kind for each of the other the paper scales
      the rarer by n to 4/3 n.
    undesirable_weight: of bad ones.
    reference: `(params) -> policy, reference params`, as `adapt.policy_and_reference`; None where
      the batch has `reference`.
    chunk: predictions whose logits are held at a time; None for all.

  Raises:
    InputError: numbers that it cannot have; when called, no reference or no mismatched completions.
  """
  check_positive('kto', beta=beta)
  check_at_least_zero(
    'kto', desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
  )

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    if 'mismatched' not in batch:
      raise InputError(
        'kto: the batch has no mismatched completions to estimate the divergence with; encode the '
        'records with data.encode_unpaired, or take the objective bco'
      )
    found = ratios(model, params, batch, reference, chunk, key)
    other = ratios(model, lax.stop_gradient(params), batch['mismatched'], reference, chunk, key)
    weights = row_weights(batch)
    count = jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
    baseline = jnp.maximum(jnp.sum(weights * other.log_ratio) / count, 0)
    baseline = lax.stop_gradient(baseline)
    losses = kto_loss(
      found.log_ratio, batch['label'], baseline, beta, desirable_weight, undesirable_weight
    )
    rewards = beta * found.log_ratio
    return unpaired(losses, rewards, batch['label'], beta * baseline, weights, found.kl)

  return objective
