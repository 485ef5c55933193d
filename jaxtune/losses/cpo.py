"""CPO: preferences without a reference, beside imitation of what is chosen."""

from typing import Any

import jax

from jaxtune.losses.log_probs import log_probs
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_at_least_zero, check_positive, check_smoothing
from jaxtune.losses.preference import (
  apart,
  both,
  compared_pairs,
  pair_log_sigmoid,
)
from jaxtune.typing import Batch, Key, Params


def cpo_loss(
  chosen: jax.Array, rejected: jax.Array, beta: float = 0.1, label_smoothing: float = 0.0
) -> jax.Array:
  """`-log sigmoid(beta (chosen - rejected))` of each pair `[B]`.

  Xu et al. 2024, arXiv:2401.08417, equation 3: DPO with a uniform reference, which cancels.

  Args:
    chosen: `log p(y)` of the chosen completions in nats, `[B]`.
    rejected: of the others.
    beta: scale of the rewards.
    label_smoothing: the probability that a label is wrong; 0 in the paper.
  """
  return pair_log_sigmoid(beta * (chosen - rejected), label_smoothing)


def cpo(
  model: Any,
  beta: float = 0.1,
  sft_weight: float = 1.0,
  label_smoothing: float = 0.0,
  chunk: int | None = None,
) -> Objective:
  """`sum_b w_b (cpo_loss(log p of chosen, of rejected) + sft_weight nll_chosen)`, weight `sum w`.

  The second term (equation 5) is per token, `-log p(y) / |y|`, as in the authors' code: summed over
  a completion it would drown the first. A mean of rows; theirs and TRL's (`cpo_alpha`) is one of
  the tokens of a batch, which would depend on how a batch is cut.

  Batch: `chosen` and `rejected`, each a part with `tokens` int32, `mask` and `supervised` bool
  `[B, T]`; `weight` `[B]` if present.
  Metrics: those of `preference.compared_pairs` of the rewards `beta log p`; `nll` of the chosen
  completion in nats/token.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: scale of the rewards.
    sft_weight: of the negative log-likelihood of what is chosen; the paper has 1.
    label_smoothing: the probability that a label is wrong.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: numbers that it cannot have.
  """
  check_positive('cpo', beta=beta)
  check_at_least_zero('cpo', sft_weight=sft_weight)
  check_smoothing('cpo', label_smoothing)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    nats, tokens = log_probs(model, params, both(batch), chunk=chunk, key=key)
    chosen, rejected = apart(nats)
    nll = -apart(nats / tokens.clip(1))[0]
    losses = cpo_loss(chosen, rejected, beta, label_smoothing) + sft_weight * nll
    return compared_pairs(losses, beta * chosen, beta * rejected, row_weights(batch), nll=nll)

  return objective
