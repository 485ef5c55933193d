"""Mean squared error of one number a text."""

from typing import Any

import jax.numpy as jnp

from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.typing import Batch, Key, Params


def mean_squared_error(model: Any) -> Objective:
  """`sum_b w_b (output_b - label_b)^2` in squared units of the label, weight `sum_b w_b`.

  Batch: `tokens` int32 `[B, T]`, `label` float32 `[B]`; `mask` `[B, T]` and `weight` `[B]`
  if present.
  Metrics: `absolute_error`, the weighted sum of `|output - label|`.
  """

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    outputs = model.apply(params, batch['tokens'], batch.get('mask'), key=key)
    error = outputs[:, 0].astype(jnp.float32) - batch['label'].astype(jnp.float32)
    weights = row_weights(batch)
    metrics = {'absolute_error': jnp.sum(weights * jnp.abs(error))}
    return Loss(jnp.sum(weights * error * error), weights.sum(), metrics)

  return objective
