"""Softmax cross-entropy over the classes of a text."""

from typing import Any

from jaxtune import ops
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.typing import Batch, Key, Params


def classification(model: Any) -> Objective:
  """`sum_b w_b (-log softmax(outputs_b)[label_b])` in nats, weight `sum_b w_b`.

  Batch: `tokens` int32 `[B, T]`, or float `[B, H, W, C]` for images, `label` int32 `[B]`; `mask`
  `[B, T]` and `weight` `[B]` if present.
  Metrics: `accuracy`, the weighted count of rows whose largest output is the label's.
  """

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    outputs = model.apply(params, batch['tokens'], batch.get('mask'), key=key)
    weights = row_weights(batch)
    loss = ops.cross_entropy(outputs, batch['label'], weights)
    return Loss(loss.nats, weights.sum(), {'accuracy': loss.correct})

  return objective
