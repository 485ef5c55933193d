"""ORPO: imitation of what is chosen, with odds against what is rejected, in one stage."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.losses.log_probs import log_probs
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_at_least_zero
from jaxtune.losses.preference import apart, both, compared_pairs
from jaxtune.typing import Batch, Key, Params


def log_odds(log_p: jax.Array) -> jax.Array:
  """`log(p / (1 - p))` from `log p`, exact for p near 0 and near 1, and finite at 1."""
  log_p = jnp.minimum(log_p, -jnp.finfo(jnp.float32).eps)
  # log(1 - p) cancels in one form for small p and in the other for large: each where it is exact,
  # and at a harmless place elsewhere, for its gradient.
  near = log_p > -math.log(2)
  large = jnp.log(-jnp.expm1(jnp.where(near, log_p, -1.0)))
  small = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, log_p)))
  return log_p - jnp.where(near, large, small)


def orpo_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """`-log sigmoid(log(odds(chosen) / odds(rejected)))` of each pair `[B]`, `odds = p / (1 - p)`.

  Hong et al. 2024, arXiv:2403.07691, equations 4 and 7.

  Args:
    chosen: `log p`, the mean over a completion's tokens (equation 3), nats/token `[B]`.
    rejected: of the others.
  """
  return -jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


def orpo(model: Any, beta: float = 0.1, chunk: int | None = None) -> Objective:
  """`sum_b w_b (nll_chosen + beta orpo_loss(log p / |y| of chosen, of rejected))`, weight `sum w`.

  Equation 6. The likelihood is that of the completion, per token and as a mean of rows; TRL's is
  one of all tokens of a batch, the prompt's among them.

  Batch: `chosen` and `rejected`, each a part with `tokens` int32, `mask` and `supervised` bool
  `[B, T]`; `weight` `[B]` if present.
  Metrics: those of `preference.compared_pairs` of the rewards `beta log p / |y|`; `nll` of the
  chosen completion in nats/token; `odds_ratio_loss`.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: of the odds, the paper's lambda.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: a negative beta.
  """
  check_at_least_zero('orpo', beta=beta)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    nats, tokens = log_probs(model, params, both(batch), chunk=chunk, key=key)
    chosen, rejected = apart(nats / tokens.clip(1))
    odds = orpo_loss(chosen, rejected)
    return compared_pairs(
      beta * odds - chosen,
      beta * chosen,
      beta * rejected,
      row_weights(batch),
      nll=-chosen,
      odds_ratio_loss=odds,
    )

  return objective
