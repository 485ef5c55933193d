"""Binary cross-entropy of every class of a text by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.losses import metrics
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import measured_rows
from jaxtune.typing import Batch, Key, Params


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """`mean_c -(y_c log s(x_c) + (1 - y_c) log(1 - s(x_c)))` in nats, s the sigmoid: float32 `[N]`.

  The mean over classes, as torch's `BCEWithLogitsLoss`, and not their sum: a rate that suits three
  classes suits thirty.

  Args:
    logits: x, `[N, C]`.
    labels: y, `[N, C]`, 0 or 1 or between.
  """
  x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return jnp.mean(jax.nn.softplus(x) - x * y, axis=-1)


def multi_label(model: Any) -> Objective:
  """`sum_b w_b binary_cross_entropy(outputs_b, label_b)` in nats a class, weight `sum_b w_b`.

  Batch: `tokens` int32 `[B, T]`, `label` float32 `[B, C]`, 1 for the classes that a text has;
  `mask` `[B, T]` and `weight` `[B]` if present. A class is predicted when its output is above 0, a
  probability above one half.
  Metrics: `accuracy`, the weighted count of rows with all classes right. Of a whole split
  `f1_micro`, of all classes together, and `f1_macro`, the mean over the classes.

  Args:
    model: a `ModelSpec` whose outputs are `[B, C]`.
  """

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    logits = model.apply(params, batch['tokens'], batch.get('mask'), key=key)
    weights = row_weights(batch)
    nats = binary_cross_entropy(logits, batch['label'])
    right = jnp.all((logits > 0) == (batch['label'] > 0.5), axis=-1)
    return Loss(jnp.sum(weights * nats), weights.sum(), {'accuracy': jnp.sum(weights * right)})

  def predict(params: Params, batch: Batch) -> jax.Array:
    return model.apply(params, batch['tokens'], batch.get('mask')) > 0

  return measured_rows(objective, predict, _measure)


def _measure(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  return {
    f'f1_{average}': metrics.f1(true > 0.5, predicted, average) for average in ('micro', 'macro')
  }
