"""Next-token cross-entropy over the supervised tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops, shard
from jaxtune.losses.log_probs import around, features_of, learned_tokens
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import measured_perplexity
from jaxtune.losses.options import check_at_least_zero, check_fraction
from jaxtune.options import is_on
from jaxtune.typing import Batch, Key, Params


def causal_lm(
  model: Any,
  chunk: int | None = None,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  dft: bool = False,
) -> Objective:
  """`sum over supervised t of -log p(token_t | tokens before t)` in nats; weight: their number.

  Token t is predicted from the features of t-1, and is learned where `supervised` says so; the
  first token of a text, and of a packed document, has no predictor and is never learned.

  Batch: `tokens` int32 `[B, T]`; `mask`, `supervised` bool, `segments`, `positions` int32
  `[B, T]` and `weight` `[B]` if present.
  Metrics: `accuracy`, the count of supervised tokens that have the largest logit; with one of the
  last three options, of which the loss of an evaluation is made as well, also `nats`, the
  cross-entropy itself. Of a whole split `perplexity`, `exp` of its mean.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.
    label_smoothing, z_loss, dft: see `ops.cross_entropy`. DFT is for supervised fine-tuning on
      answers that the model could have given; TRL's `loss_type='dft'`.

  Raises:
    InputError: a smoothing that is no fraction, or a negative z-loss.
  """
  check_fraction('causal_lm', label_smoothing=label_smoothing)
  check_at_least_zero('causal_lm', z_loss=z_loss)
  plain = not (is_on(label_smoothing) or is_on(z_loss) or dft)

  def compute(
    params: Params, batch: Batch, key: Key | None = None
  ) -> tuple[ops.CrossEntropy, jax.Array]:
    tokens = batch['tokens']
    features = features_of(model, params, batch, key)
    # Targets are shifted, features are not: [B*T, D] stays one contiguous array.
    targets = jnp.roll(tokens, -1, axis=1)
    weights = jnp.roll(learned_tokens(batch), -1, axis=1) * row_weights(batch)[:, None]

    def own(
      params: Params, features: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> ops.CrossEntropy:
      flat = features.reshape(-1, features.shape[-1])
      found = ops.chunked_cross_entropy(
        flat,
        model.head,
        params,
        targets.reshape(-1),
        weights.reshape(-1),
        chunk,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        dft=dft,
      )
      return shard.total(found)

    # Each device goes through the tokens that it has: chunks of them all would have to be moved.
    names = ('rows', 'length')
    given = (around(params), features, targets, weights)
    found = shard.locally(own, given, (None, (*names, None), names, names), ())
    return found, weights.sum()

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    found, weight = compute(params, batch, key)
    sums = {'accuracy': found.correct} | ({} if plain else {'nats': found.nats})
    return Loss(found.loss, weight, sums)

  def nats(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    found, weight = compute(params, batch)
    return found.nats, weight

  return measured_perplexity(objective, nats)
