"""Policy optimization from the rewards of groups of sampled answers: GRPO, DAPO, Dr. GRPO."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.losses.log_probs import learned_tokens, token_log_probs
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_at_least_zero, check_positive
from jaxtune.losses.preference import Reference
from jaxtune.typing import Batch, InputError, Key, Params

Aggregation = Literal['token', 'sequence', 'constant']


def grpo(
  model: Any,
  epsilon: float = 0.2,
  epsilon_high: float | None = None,
  beta: float = 0.0,
  aggregation: Aggregation = 'token',
  max_tokens: int | None = None,
  delta: float | None = None,
  temperature: float = 1.0,
  reference: Reference | None = None,
  chunk: int | None = None,
) -> Objective:
  """`clipped_surrogate` of the answers' tokens, plus beta times the KL divergence to a reference.

  The papers' settings, `advantages` being those of `losses.advantages`:
    GRPO (Shao et al. 2024, arXiv:2402.03300, equation 3): `aggregation='sequence'`, beta 0.04;
    DAPO (Yu et al. 2025, arXiv:2503.14476, equation 8): 'token', `epsilon_high` 0.28, beta 0; the
      mean is over the tokens of a step, however the batch is cut (`trl`: `dapo`, and with one
      batch `bnpo`);
    Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, equation 5): 'constant', advantages not scaled.

  Batch: `tokens` int32 `[B, T]`, `supervised` bool `[B, T]` (the answers), `advantages` float32
  `[B]`; `mask` `[B, T]` and `weight` `[B]` if present; `old` float32 `[B, T]`, log-probabilities
  under the policy that drew the answers: without them it is this very policy, as in the first
  update after a rollout; `reference` float32 `[B, T]`, the same of the reference.
  Metrics: `kl` to the reference (where beta is not 0), `clipped`, the share of tokens whose
  gradient clipping stops.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    epsilon: how far below 1 the ratio of probabilities counts.
    epsilon_high: how far above 1; None for `epsilon`.
    beta: of the KL divergence.
    aggregation: see `grpo_loss`.
    max_tokens: of an answer, for 'constant'.
    delta: see `clipped_surrogate`.
    temperature: that the answers were drawn with.
    reference: `(params) -> (policy's, reference's)`, as `adapt.policy_and_reference`; None where
      the batch has `reference`, or beta is 0.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: a number outside its range.
  """
  check_clipping(epsilon, epsilon_high, beta)
  check_positive('grpo', temperature=temperature)
  if aggregation not in ('token', 'sequence', 'constant'):
    raise InputError(
      f"aggregation is {aggregation!r}; it must be 'token', 'sequence' or 'constant'"
    )
  if aggregation == 'constant' and not (max_tokens and max_tokens > 0):
    raise InputError("aggregation 'constant' divides by max_tokens, the most tokens of an answer")

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    policy, base = reference(params) if reference else (params, None)
    log_probs = token_log_probs(model, policy, batch, chunk, key, temperature)
    given = None
    if beta and base is None:
      given = reference_of(batch)
    elif beta:
      base = lax.stop_gradient(base)
      given = lax.stop_gradient(token_log_probs(model, base, batch, chunk, None, temperature))
    return grpo_loss(
      log_probs,
      batch.get('old', lax.stop_gradient(log_probs)),
      batch['advantages'],
      learned_tokens(batch),
      reference=given,
      weights=row_weights(batch),
      epsilon=epsilon,
      epsilon_high=epsilon_high,
      beta=beta,
      aggregation=aggregation,
      max_tokens=max_tokens,
      delta=delta,
    )

  return objective


def grpo_loss(
  log_probs: jax.Array,
  old: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  reference: jax.Array | None = None,
  weights: jax.Array | None = None,
  epsilon: float = 0.2,
  epsilon_high: float | None = None,
  beta: float = 0.0,
  aggregation: Aggregation = 'token',
  max_tokens: int | None = None,
  delta: float | None = None,
) -> Loss:
  """Sums over answers i and their tokens t of `l_it = clipped_surrogate_it + beta kl_it`.

  'token': `sum l_it` over the number of tokens (DAPO); 'sequence': `sum_i (mean_t l_it)` over the
  number of answers (GRPO); 'constant': `sum l_it / max_tokens` over the number of answers
  (Dr. GRPO: a token weighs the same in a long answer and in a short one, and in every batch).

  Args:
    log_probs: of the policy, float32 `[B, T]`, in nats.
    old: of the policy that drew the answers, `[B, T]`.
    advantages: `[B]`.
    mask: bool `[B, T]`, the tokens of the answers.
    reference: of the reference, `[B, T]`; needed where beta is not 0.
    weights: of the answers, `[B]`; ones by default.
    epsilon: see `clipped_surrogate`.
    epsilon_high: see `clipped_surrogate`.
    beta: of the KL divergence.
    aggregation: what is averaged.
    max_tokens: for 'constant'.
    delta: see `clipped_surrogate`.
  """
  rows = jnp.ones(mask.shape[:1], jnp.float32) if weights is None else weights
  weight = mask * rows[:, None]  # [B, T]
  lengths = jnp.maximum(mask.sum(axis=1), 1)[:, None]
  mean = weight if aggregation == 'token' else weight / lengths
  high = epsilon if epsilon_high is None else epsilon_high
  ratio = jnp.exp(log_probs - old)
  loss = clipped_surrogate(ratio, advantages[:, None], epsilon, high, delta)
  clipped = is_clipped(ratio, advantages[:, None], epsilon, high)
  metrics = {'clipped': jnp.sum(mean * clipped)}
  if beta:
    assert reference is not None
    kl = kl_estimate(log_probs, reference)
    loss = loss + beta * kl
    metrics['kl'] = jnp.sum(lax.stop_gradient(mean * kl))
  if aggregation == 'constant':
    assert max_tokens is not None
    total = jnp.sum(weight * loss) / max_tokens
  else:
    total = jnp.sum(mean * loss)
  count = weight.sum() if aggregation == 'token' else rows.sum()
  return Loss(total, count, metrics)


def clipped_surrogate(
  ratio: jax.Array,
  advantages: jax.Array,
  epsilon: float,
  epsilon_high: float,
  delta: float | None = None,
) -> jax.Array:
  """`-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)`, elementwise.

  PPO, Schulman et al. 2017, arXiv:1707.06347, equation 7, with DAPO's higher upper bound.

  Args:
    ratio: the policy's probability over that of the policy that drew the answers.
    advantages: that broadcast against it.
    epsilon: below 1.
    epsilon_high: above 1.
    delta: the most that a ratio counts even where the advantage is negative (INTELLECT-2,
      arXiv:2505.07291, section 3.4); above `1 + epsilon_high`, None for no bound.
  """
  kept = jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon_high)
  if delta is not None:
    ratio = jnp.minimum(ratio, delta)
  return -jnp.minimum(ratio * advantages, kept * advantages)


def is_clipped(
  ratio: jax.Array, advantages: jax.Array, epsilon: float, epsilon_high: float
) -> jax.Array:
  """Where `clipped_surrogate` has no gradient, because the ratio has gone far enough."""
  low = (ratio < 1.0 - epsilon) & (advantages < 0)
  return low | ((ratio > 1.0 + epsilon_high) & (advantages > 0))


def kl_estimate(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
  """`exp(d) - d - 1` with `d = reference - log_probs`: the estimator k3, at least 0, elementwise.

  Its mean over the policy's own samples is KL(policy || reference) (Schulman 2020, "Approximating
  KL divergence"; GRPO's equation 4).
  """
  difference = reference - log_probs
  return jnp.exp(difference) - difference - 1.0


def reference_of(batch: Batch) -> jax.Array:
  """The reference's log-probabilities that a batch carries.

  Raises:
    InputError: it has none.
  """
  if 'reference' not in batch:
    raise InputError(
      'beta is not 0, but nothing gives the log-probabilities of the reference; set the option '
      "reference, or give the batch 'reference'"
    )
  return batch['reference']


def check_clipping(epsilon: float, epsilon_high: float | None, beta: float) -> None:
  """Raises InputError for a number outside its range."""
  if not 0 < epsilon <= 1:
    raise InputError(f'epsilon is {epsilon}; it must be above 0 and at most 1')
  if epsilon_high is not None and not epsilon_high > 0:
    raise InputError(f'epsilon_high is {epsilon_high}; it must be above 0, or None for epsilon')
  check_at_least_zero('grpo', beta=beta)
