"""Softmax cross-entropy over the classes of a text."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.losses import metrics
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import measured_rows
from jaxtune.losses.options import check_fraction
from jaxtune.ops import CrossEntropy, cross_entropy
from jaxtune.typing import Batch, InputError, Key, Params


def class_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] | None = None,
) -> tuple[CrossEntropy, jax.Array]:
  """`sum_n w_n sum_c v_c q_nc (-log p_nc)` in nats, and the weight `sum_n w_n v_label`.

  `q = (1 - e) [c = label] + e / C` (Szegedy et al. 2015, arXiv:1512.00567, section 7). Their ratio
  is torch's `CrossEntropyLoss(weight=v, label_smoothing=e)`. `nats` and `correct` are sums under
  the weight `w_n v_label`, too.

  Args:
    logits: `[N, C]`.
    labels: int32 `[N]`.
    weights: w, `[N]`.
    label_smoothing: e, from 0 to below 1.
    class_weights: v, C numbers; None for ones.
  """
  if class_weights is None:
    found = cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
    return found, weights.sum()
  own = jnp.asarray(class_weights, jnp.float32)
  weighted = weights * own[labels]
  plain = cross_entropy(logits, labels, weighted)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  smooth = jnp.sum(weights * -jnp.sum(log_p * own[None], axis=-1)) / len(own)
  loss = (1 - label_smoothing) * plain.nats + label_smoothing * smooth
  return plain._replace(loss=loss), weighted.sum()


def classification(
  model: Any, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Objective:
  """`sum_b w_b (-log softmax(outputs_b)[label_b])` in nats, weight `sum_b w_b`.

  Batch: `tokens` int32 `[B, T]`, or float `[B, H, W, C]` for images, `label` int32 `[B]`; `mask`
  `[B, T]` and `weight` `[B]` if present.
  Metrics: `accuracy`, the weighted count of rows whose largest output is the label's. Of a whole
  split `accuracy`, `f1` (macro) and `matthews`, in which every row counts once.

  Args:
    model: a `ModelSpec` whose outputs are `[B, C]`.
    label_smoothing: see `class_cross_entropy`; the loss of an evaluation has it, too.
    class_weights: one number a class, such as `N / (C N_c)` where classes differ much in size. A
      row's weight is then times that of its class, in the mean as well.

  Raises:
    InputError: a smoothing that is no fraction, or weights that are not positive or not as many as
      the model's outputs.
  """
  check_fraction('classification', label_smoothing=label_smoothing)
  outputs_of = getattr(model.config, 'outputs', None)
  if class_weights is not None:
    class_weights = tuple(float(weight) for weight in class_weights)
    if not all(0 < weight < float('inf') for weight in class_weights):
      raise InputError(
        f'classification: class_weights is {list(class_weights)}; give positive numbers'
      )
    if outputs_of not in (None, len(class_weights)):
      raise InputError(
        f'classification: class_weights has {len(class_weights)} numbers, but there are '
        f'{outputs_of} classes; give one a class, in the order of their names'
      )

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    logits = model.apply(params, batch['tokens'], batch.get('mask'), key=key)
    found, weight = class_cross_entropy(
      logits, batch['label'], row_weights(batch), label_smoothing, class_weights
    )
    return Loss(found.loss, weight, {'accuracy': found.correct})

  def predict(params: Params, batch: Batch) -> jax.Array:
    return jnp.argmax(model.apply(params, batch['tokens'], batch.get('mask')), axis=-1)

  return measured_rows(objective, predict, _measure)


def _measure(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  return {
    'accuracy': metrics.accuracy(true, predicted),
    'f1': metrics.f1(true, predicted),
    'matthews': metrics.matthews(true, predicted),
  }
