"""Direct preference optimization and its variants."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_at_least_zero, check_positive, check_smoothing
from jaxtune.losses.preference import (
  Reference,
  apart,
  both,
  compared_pairs,
  pair_log_sigmoid,
  ratios,
)
from jaxtune.options import is_on
from jaxtune.typing import Batch, InputError, Key, Params

KINDS = (
  'sigmoid',
  'hinge',
  'ipo',
  'robust',
  'exo',
  'nca',
  'bco',
  'sppo',
  'apo_zero',
  'apo_down',
)
_SMOOTHED = ('sigmoid', 'robust', 'exo')


def dpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  beta: float = 0.1,
  kind: str = 'sigmoid',
  label_smoothing: float = 0.0,
) -> jax.Array:
  r"""The loss of each pair `[B]` from `r = log p(y) - log p_reference(y)` in nats.

  With `d = r_chosen - r_rejected`, `s` the logistic function and e the `label_smoothing`:

  - 'sigmoid': `-log s(beta d)`, equation 7 of arXiv:2305.18290; with e cDPO,
    `-(1 - e) log s(beta d) - e log s(-beta d)`.
  - 'hinge': `max(0, 1 - beta d)` (RSO, arXiv:2309.06657).
  - 'ipo': `(d - 1 / (2 beta))^2`, equation 17 of arXiv:2310.12036, beta being its tau.
  - 'robust': `(-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e)`, unbiased under labels that
    are wrong with probability e, arXiv:2403.00409.
  - 'exo': `KL(s(beta d), s(-beta d) || 1 - e, e)`, equation 16 of arXiv:2402.00856; e > 0.
  - 'nca': `-log s(beta r_c) - (log s(-beta r_c) + log s(-beta r_r)) / 2` (arXiv:2402.05369).
  - 'bco': `-log s(beta r_c) - log s(-beta r_r)` (arXiv:2404.04656, without its shift).
  - 'sppo': `(r_c - 1 / (2 beta))^2 + (r_r + 1 / (2 beta))^2`, arXiv:2405.00675 with hard wins.
  - 'apo_zero': `1 - s(beta r_c) + s(beta r_r)`, equation 7 of arXiv:2408.06266, for completions
    that are better than the model's own; 'apo_down': `s(beta r_c) + 1 - s(beta d)`, equation 8, for
    such as are worse.

  TRL's names of four of them are `exo_pair`, `nca_pair`, `bco_pair` and `sppo_hard`; its 'sigmoid'
  has no smoothing any more.

  Args:
    chosen: r of the chosen completions, `[B]`.
    rejected: r of the others.
    beta: how dear it is to leave the reference.
    kind: see above.
    label_smoothing: e, of 'sigmoid', 'robust' and 'exo'.
  """
  sigmoid, log_sigmoid = jax.nn.sigmoid, jax.nn.log_sigmoid
  delta = chosen - rejected
  x, c, r = beta * delta, beta * chosen, beta * rejected
  e = label_smoothing
  match kind:
    case 'sigmoid':
      return pair_log_sigmoid(x, e)
    case 'hinge':
      return jax.nn.relu(1 - x)
    case 'ipo':
      return jnp.square(delta - 1 / (2 * beta))
    case 'robust':
      return (e * log_sigmoid(-x) - (1 - e) * log_sigmoid(x)) / (1 - 2 * e)
    case 'exo':
      win, lose = log_sigmoid(x), log_sigmoid(-x)
      return sigmoid(x) * (win - jnp.log1p(-e)) + sigmoid(-x) * (lose - jnp.log(e))
    case 'nca':
      return -log_sigmoid(c) - (log_sigmoid(-c) + log_sigmoid(-r)) / 2
    case 'bco':
      return -log_sigmoid(c) - log_sigmoid(-r)
    case 'sppo':
      return jnp.square(chosen - 1 / (2 * beta)) + jnp.square(rejected + 1 / (2 * beta))
    case 'apo_zero':
      return 1 - sigmoid(c) + sigmoid(r)
    case 'apo_down':
      return sigmoid(c) + 1 - sigmoid(x)
  raise InputError(f'dpo: unknown kind {kind!r}; known: {", ".join(KINDS)}')


def dpo(
  model: Any,
  beta: float = 0.1,
  kind: str = 'sigmoid',
  label_smoothing: float = 0.0,
  length_normalized: bool | None = None,
  sft_weight: float = 0.0,
  reference: Reference | None = None,
  chunk: int | None = None,
) -> Objective:
  """`sum_b w_b (dpo_loss(r_chosen, r_rejected) + sft_weight nll_chosen)`, weight `sum_b w_b`.

  `r = log p(completion) - log p_reference(completion)`, summed over the supervised tokens, or their
  mean with `length_normalized`. Chosen and rejected pass through the model as rows of one batch.

  Batch: `chosen` and `rejected`, each a part with `tokens` int32, `mask` and `supervised` bool
  `[B, T]`, and `reference` float32 `[B]` where the reference's log-probabilities are precomputed;
  `weight` `[B]` if present.
  Metrics: `accuracy`, `margin`, `chosen_reward` and `rejected_reward` of the rewards `beta r`, see
  `preference.compared_pairs`; `kl`, in nats/token, the exact divergence from the reference along
  the data's completions, where it is computed and not precomputed; `nll` of the chosen completion,
  in nats/token, with an `sft_weight`.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    beta: how dear it is to leave the reference.
    kind: of the loss, see `dpo_loss`.
    label_smoothing: the probability that a label is wrong: of 'sigmoid' (cDPO), 'robust' and 'exo'.
    length_normalized: r is the mean over a completion's tokens (TRL's `sigmoid_norm`). None is True
      for 'ipo', whose authors train it so, as TRL does, and False for all others.
    sft_weight: of the chosen completion's negative log-likelihood per token (RPO,
      arXiv:2404.19733, alpha). A mean of rows; TRL's 'sft' is one of the tokens of a batch.
    reference: `(params) -> policy, reference params`, as `adapt.policy_and_reference`; None where
      the batch has `reference`.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.

  Raises:
    InputError: an unknown kind, numbers that it cannot have; when called, no reference.
  """
  if kind not in KINDS:
    raise InputError(f'dpo: unknown kind {kind!r}; known: {", ".join(KINDS)}')
  check_positive('dpo', beta=beta)
  check_at_least_zero('dpo', sft_weight=sft_weight)
  check_smoothing('dpo', label_smoothing)
  if is_on(label_smoothing) and kind not in _SMOOTHED:
    raise InputError(
      f'dpo: the kind {kind!r} has no label_smoothing; set it to 0, or take {", ".join(_SMOOTHED)}'
    )
  if kind == 'exo' and not is_on(label_smoothing):
    raise InputError('dpo: the kind exo needs a label_smoothing above 0, such as 0.001')
  mean = kind == 'ipo' if length_normalized is None else length_normalized

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    found = ratios(model, params, both(batch), reference, chunk, key)
    chosen, rejected = apart(found.log_ratio / found.tokens if mean else found.log_ratio)
    losses = dpo_loss(chosen, rejected, beta, kind, label_smoothing)
    nll = -apart(found.nats / found.tokens)[0] if is_on(sft_weight) else None
    if nll is not None:
      losses = losses + sft_weight * nll
    kl = None if found.kl is None else _mean_of_pair(found.kl, found.tokens)
    return compared_pairs(
      losses, beta * chosen, beta * rejected, row_weights(batch), kl=kl, nll=nll
    )

  return objective


def _mean_of_pair(values: jax.Array, tokens: jax.Array) -> jax.Array:
  """Means over tokens `[2B]` to those over the tokens of both completions `[B]`."""
  chosen, rejected = apart(values * tokens)
  return (chosen + rejected) / jnp.add(*apart(tokens))
