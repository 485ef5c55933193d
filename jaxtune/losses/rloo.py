"""REINFORCE with a baseline from the other answers to a prompt, on whole answers."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.losses.grpo import check_clipping, clipped_surrogate, is_clipped
from jaxtune.losses.log_probs import learned_tokens, token_log_probs
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_positive
from jaxtune.typing import Batch, Key, Params


def rloo(
  model: Any,
  epsilon: float = 0.2,
  epsilon_high: float | None = None,
  temperature: float = 1.0,
  chunk: int | None = None,
) -> Objective:
  """`rloo_loss` of a batch: an answer is one action, with one ratio and one advantage.

  Ahmadian et al. 2024, arXiv:2402.14740. The advantages are those of `losses.leave_one_out`. The KL
  divergence to a reference belongs to the reward there (`train.rollout` with `kl`), so that the
  baseline has it too.

  Batch: `tokens` int32 `[B, T]`, `supervised` bool `[B, T]` (the answers), `advantages` float32
  `[B]`; `mask` `[B, T]` and `weight` `[B]` if present; `old` float32 `[B, T]`, as for `grpo`.
  Metrics: `clipped`, the share of answers whose gradient clipping stops.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    epsilon: how far below 1 the ratio of probabilities counts.
    epsilon_high: how far above 1; None for `epsilon`.
    temperature: that the answers were drawn with.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: a number outside its range.
  """
  check_clipping(epsilon, epsilon_high, 0.0)
  check_positive('rloo', temperature=temperature)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    nats = token_log_probs(model, params, batch, chunk, key, temperature).sum(axis=1)
    old = batch['old'] * learned_tokens(batch) if 'old' in batch else lax.stop_gradient(nats)
    return rloo_loss(
      nats,
      old.sum(axis=1) if 'old' in batch else old,
      batch['advantages'],
      weights=row_weights(batch),
      epsilon=epsilon,
      epsilon_high=epsilon_high,
    )

  return objective


def rloo_loss(
  log_probs: jax.Array,
  old: jax.Array,
  advantages: jax.Array,
  *,
  weights: jax.Array | None = None,
  epsilon: float = 0.2,
  epsilon_high: float | None = None,
) -> Loss:
  """`sum_i clipped_surrogate(exp(log_probs_i - old_i), A_i)`; weight: the number of answers.

  Where the policy is the one that drew the answers, the gradient is that of `-A_i log p(answer_i)`,
  the paper's equation 8. The clipping is `trl`'s, for further updates on the same answers.

  Args:
    log_probs: of whole answers under the policy, float32 `[B]`, in nats.
    old: the same under the policy that drew them, `[B]`.
    advantages: `[B]`.
    weights: `[B]`; ones by default.
    epsilon: see `clipped_surrogate`.
    epsilon_high: see `clipped_surrogate`.
  """
  rows = jnp.ones_like(log_probs) if weights is None else weights
  high = epsilon if epsilon_high is None else epsilon_high
  ratio = jnp.exp(log_probs - old)
  loss = clipped_surrogate(ratio, advantages, epsilon, high)
  clipped = is_clipped(ratio, advantages, epsilon, high)
  return Loss(jnp.sum(rows * loss), rows.sum(), {'clipped': jnp.sum(rows * clipped)})
