"""SimPO: preferences by the mean log-probability of a token, without a reference."""

from typing import Any

import jax

from jaxtune.losses.log_probs import log_probs
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_positive, check_smoothing
from jaxtune.losses.preference import (
  apart,
  both,
  compared_pairs,
  pair_log_sigmoid,
)
from jaxtune.typing import Batch, Key, Params


def simpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  beta: float = 2.0,
  gamma: float = 1.0,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """`-log sigmoid(beta (chosen - rejected) - gamma)` of each pair `[B]`.

  Meng et al. 2024, arXiv:2405.14734, equation 6. TRL's `simpo_gamma` is this gamma.

  Args:
    chosen: `log p(y) / |y|` of the chosen completions, nats/token `[B]`.
    rejected: of the others.
    beta: scale of the rewards.
    gamma: the margin that they are to have.
    label_smoothing: the probability that a label is wrong; 0 in the paper.
  """
  return pair_log_sigmoid(beta * (chosen - rejected) - gamma, label_smoothing)


def simpo(
  model: Any,
  beta: float = 2.0,
  gamma: float = 1.0,
  label_smoothing: float = 0.0,
  chunk: int | None = None,
) -> Objective:
  """`sum_b w_b simpo_loss(log p / |y| of chosen, of rejected)`, weight `sum_b w_b`.

  Batch: `chosen` and `rejected`, each a part with `tokens` int32, `mask` and `supervised` bool
  `[B, T]`; `weight` `[B]` if present.
  Metrics: those of `preference.compared_pairs` of the rewards `beta log p / |y|`.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: scale of the rewards; the paper has 2 to 10.
    gamma: the margin; the paper has 0.3 to 0.5 of beta.
    label_smoothing: the probability that a label is wrong.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: numbers that it cannot have.
  """
  check_positive('simpo', beta=beta)
  check_smoothing('simpo', label_smoothing)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    nats, tokens = log_probs(model, params, both(batch), chunk=chunk, key=key)
    chosen, rejected = apart(nats / tokens.clip(1))
    losses = simpo_loss(chosen, rejected, beta, gamma, label_smoothing)
    return compared_pairs(losses, beta * chosen, beta * rejected, row_weights(batch))

  return objective
