"""BCO: a classifier of good and bad completions whose logit is the reward."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_positive
from jaxtune.losses.preference import Reference, ratios, unpaired
from jaxtune.typing import Batch, Key, Params


def bco_loss(rewards: jax.Array, desirable: jax.Array, shift: jax.Array) -> jax.Array:
  """`-log sigmoid(±(reward - shift))` of each row `[B]`, plus for what is desirable.

  Jung et al. 2024, arXiv:2404.04656, equation 10.

  Args:
    rewards: `beta (log p(y) - log p_reference(y))`, `[B]`.
    desirable: bool `[B]`.
    shift: the paper's delta, a scalar.
  """
  x = rewards - shift
  return -jax.nn.log_sigmoid(jnp.where(desirable, x, -x))


def reward_shift(rewards: jax.Array, desirable: jax.Array, weights: jax.Array) -> jax.Array:
  """The mean of the mean rewards of good and of bad rows: the paper's delta, of one batch.

  Of the kind that is there, where the other is not. A scalar without a gradient.

  Args:
    rewards: `[B]`.
    desirable: bool `[B]`.
    weights: `[B]`.
  """
  kinds = jnp.stack([desirable, ~desirable]).astype(jnp.float32) * weights[None]  # [2, B]
  counts = kinds.sum(axis=1)
  means = jnp.sum(kinds * rewards[None], axis=1) / jnp.where(counts > 0, counts, 1)
  return lax.stop_gradient(means.sum() / jnp.maximum(jnp.sum(counts > 0), 1))


def bco(
  model: Any,
  beta: float = 0.1,
  shift: float | None = None,
  reference: Reference | None = None,
  chunk: int | None = None,
) -> Objective:
  """`sum_b w_b bco_loss(beta r_b)`, weight `sum_b w_b`.

  The paper's shift is an average over the data of this moment; here it is `reward_shift` of the
  rows that the objective is called with, so that an objective stays a function and a run resumes
  as it was. Implementations (TRL, until it dropped BCO) keep a mean over all batches so far, which
  is less noisy and lags behind the policy. With accumulated gradients each micro-batch has its own
  shift; a number for `shift` makes rows independent of each other. The paper's weights against
  prompts that differ between good and bad are the batch's `weight`, if you have them.

  Batch: `tokens` int32, `mask` and `supervised` bool `[B, T]`, `label` bool `[B]`; `reference`
  float32 `[B]` where the reference's log-probabilities are precomputed; `weight` `[B]` if present.
  Metrics: those of `preference.unpaired`, of the rewards `beta r` against the shift as the
  baseline.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: of the reward.
    shift: of the reward; None for the batch's own.
    reference: `(params) -> policy, reference params`, as `adapt.policy_and_reference`; None where
      the batch has `reference`.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: a beta that is not positive; when called, no reference.
  """
  check_positive('bco', beta=beta)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    found = ratios(model, params, batch, reference, chunk, key)
    rewards, desirable, weights = beta * found.log_ratio, batch['label'], row_weights(batch)
    own = reward_shift(rewards, desirable, weights) if shift is None else jnp.float32(shift)
    losses = bco_loss(rewards, desirable, own)
    return unpaired(losses, rewards, desirable, own, weights, found.kl)

  return objective
