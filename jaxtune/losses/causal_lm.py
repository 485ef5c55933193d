"""Next-token cross-entropy over the supervised tokens."""

from typing import Any

import jax.numpy as jnp

from jaxtune import ops
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.typing import Batch, Key, Params


def causal_lm(model: Any, chunk: int | None = None) -> Objective:
  """`sum over supervised t of -log p(token_t | tokens before t)` in nats; weight: their number.

  Token t is predicted from the features of t-1, and is learned where `supervised` says so; the
  first token of a text, and of a packed document, has no predictor and is never learned.

  Batch: `tokens` int32 `[B, T]`; `mask`, `supervised` bool, `segments`, `positions` int32
  `[B, T]` and `weight` `[B]` if present.
  Metrics: `accuracy`, the count of supervised tokens that have the largest logit.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    chunk: predictions whose logits are held at a time; None for all, as `[B*T, V]`.
  """

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    tokens, mask, segments = batch['tokens'], batch.get('mask'), batch.get('segments')
    features = model.features(
      params, tokens, mask, positions=batch.get('positions'), segments=segments, key=key
    )
    real = jnp.ones_like(tokens, bool) if mask is None else mask
    if segments is not None:
      real = real & (segments > 0)
    # Both the token and the one that predicts it are real, and of one document.
    learned = real[:, 1:] & real[:, :-1]
    if 'supervised' in batch:
      learned = learned & batch['supervised'][:, 1:]
    if segments is not None:
      learned = learned & (segments[:, 1:] == segments[:, :-1])
    # Targets are shifted, features are not: [B*T, D] stays one contiguous array.
    targets = jnp.roll(tokens, -1, axis=1)
    weights = jnp.pad(learned, ((0, 0), (0, 1))) * row_weights(batch)[:, None]

    def head(rows):
      return model.head(params, rows)

    flat = features.reshape(-1, features.shape[-1])
    loss = ops.chunked_cross_entropy(
      flat, head, targets.reshape(-1), weights.reshape(-1), chunk or flat.shape[0]
    )
    return Loss(loss.nats, weights.sum(), {'accuracy': loss.correct})

  return objective
