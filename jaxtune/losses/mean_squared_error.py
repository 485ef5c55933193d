"""Regression: one number a text, by its squared error or by Huber's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.losses import metrics
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import measured_rows
from jaxtune.losses.options import check_positive
from jaxtune.typing import Batch, Key, Params


def mean_squared_error(model: Any) -> Objective:
  """`sum_b w_b (output_b - label_b)^2` in squared units of the label, weight `sum_b w_b`.

  Batch: `tokens` int32 `[B, T]`, `label` float32 `[B]`; `mask` `[B, T]` and `weight` `[B]`
  if present.
  Metrics: `absolute_error`, the weighted sum of `|output - label|`. Of a whole split `pearson` and
  `spearman`, nan where one side is the same in all rows.
  """
  return _regression(model, jnp.square)


def huber_error(error: jax.Array, delta: float = 1.0) -> jax.Array:
  """`e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)` (Huber 1964), by element.

  As torch's `HuberLoss`. Beyond delta the gradient does not grow, so a few labels that are far off
  do not lead.
  """
  size = jnp.abs(error)
  return jnp.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))


def huber(model: Any, delta: float = 1.0) -> Objective:
  """`sum_b w_b huber_error(output_b - label_b)` in squared units of the label, weight `sum_b w_b`.

  Batch and metrics: as `mean_squared_error`.

  Args:
    model: a `ModelSpec` whose outputs are `[B, 1]`.
    delta: in units of the label.

  Raises:
    InputError: a delta that is not positive.
  """
  check_positive('huber', delta=delta)
  return _regression(model, lambda error: huber_error(error, delta))


def _regression(model: Any, of_error: Callable[[jax.Array], jax.Array]) -> Objective:
  def predict(params: Params, batch: Batch, key: Key | None = None) -> jax.Array:
    outputs = model.apply(params, batch['tokens'], batch.get('mask'), key=key)
    return outputs[:, 0].astype(jnp.float32)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    error = predict(params, batch, key) - batch['label'].astype(jnp.float32)
    weights = row_weights(batch)
    sums = {'absolute_error': jnp.sum(weights * jnp.abs(error))}
    return Loss(jnp.sum(weights * of_error(error)), weights.sum(), sums)

  return measured_rows(objective, predict, _measure)


def _measure(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  return {
    'pearson': metrics.pearson(true, predicted),
    'spearman': metrics.spearman(true, predicted),
  }
