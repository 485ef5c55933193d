"""KTO: completions that are good or bad, each by itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_at_least_zero, check_positive
from jaxtune.losses.preference import (
  Reference,
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
  baseline: float | None = None,
  reference: Reference | None = None,
  chunk: int | None = None,
) -> Objective:
  """`sum_b w_b kto_loss(r_b)`, weight `sum_b w_b`.

  The baseline is that of the batch, `z = max(0, weighted mean of r')` without a gradient, r' the
  log-ratio of another prompt's completion (`mismatched`). It belongs to the rows that the objective
  is called with: over devices that is the whole batch, but with accumulated gradients each
  micro-batch has its own, from fewer rows, so cutting a batch changes more than rounding. With a
  number for `baseline` rows are independent and nothing is mismatched; 0 is APO-zero for single
  completions (arXiv:2408.06266, TRL's `apo_zero_unpaired`).

  Batch: `tokens` int32, `mask` and `supervised` bool `[B, T]`, `label` bool `[B]`; for the batch's
  baseline a part `mismatched` with tokens of its own; `reference` float32 `[B]` in the batch and in
  that part where the reference's log-probabilities are precomputed; `weight` `[B]` if present.
  Metrics: those of `preference.unpaired`, of the rewards `beta r` against the baseline `beta z`.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: how soon gains and losses saturate.
    desirable_weight: of good completions. With n of one kind for each of the other the paper scales
      the rarer by n to 4/3 n.
    undesirable_weight: of bad ones.
    baseline: z in nats; None for the batch's own.
    reference: `(params) -> policy, reference params`, as `adapt.policy_and_reference`; None where
      the batch has `reference`.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: numbers that it cannot have; when called, no reference or no mismatched completions.
  """
  check_positive('kto', beta=beta)
  check_at_least_zero(
    'kto', desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
  )

  def divergence(params: Params, batch: Batch, weights: jax.Array, key: Key | None) -> jax.Array:
    if 'mismatched' not in batch:
      raise InputError(
        'kto: the batch has no mismatched completions to estimate the divergence with; encode the '
        'records with data.encode_unpaired, or set baseline to 0'
      )
    params = lax.stop_gradient(params)
    other = ratios(model, params, batch['mismatched'], reference, chunk, key).log_ratio
    count = jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
    return jnp.maximum(jnp.sum(weights * other) / count, 0)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    found = ratios(model, params, batch, reference, chunk, key)
    weights = row_weights(batch)
    own = divergence(params, batch, weights, key) if baseline is None else jnp.float32(baseline)
    losses = kto_loss(
      found.log_ratio, batch['label'], own, beta, desirable_weight, undesirable_weight
    )
    rewards = beta * found.log_ratio
    return unpaired(losses, rewards, batch['label'], beta * own, weights, found.kl)

  return objective
