"""Metrics that are no means of rows: measured once, on what the model said of a whole split."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxtune.losses import metrics
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.typing import Batch, Key, Params

Outputs = Callable[[Params, Batch], dict[str, jax.Array]]
Measure = Callable[[Mapping[str, np.ndarray]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Measured:
  """An objective like any other, which brings metrics of whole splits along.

  Attributes:
    objective: what is called.
    outputs, measure: see `measured`.
  """

  objective: Objective
  outputs: Outputs
  measure: Measure

  def __call__(self, params: Params, batch: Batch, key: Key | None = None) -> Loss:
    return self.objective(params, batch, key)


def measured(objective: Objective, outputs: Outputs, measure: Measure) -> Measured:
  """The objective with metrics that an evaluation measures on all rows at once.

  `train.evaluate` gathers the outputs of every batch and process, leaves out what only fills the
  last batch, and adds `measure` of the rest to the means, so that F1 or a correlation is that of
  the split, whatever the batch. A training step does not ask for outputs and pays nothing.

  Args:
    objective: what is minimized.
    outputs: `(params, batch) -> arrays`, without dropout. `weight` is among them, and is above 0
      where the first axes of the others hold something real: `[B]` for rows, `[B, T]` for tokens,
      `[1]` for a sum over the batch. It is compiled together with the objective, and what both
      compute, the forward pass above all, is computed once.
    measure: `(gathered arrays) -> metrics`: NumPy, with the first axes of `weight` as one, `[N]`,
      in the order of the batches. A metric that has the name of one of the means takes its place.
  """
  return Measured(objective, outputs, measure)


def measured_rows(
  objective: Objective,
  predict: Callable[[Params, Batch], jax.Array],
  measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
) -> Measured:
  """The objective with metrics of what it predicts of each row, beside `label`.

  Args:
    objective: what is minimized.
    predict: `(params, batch) -> [B, ...]`, without dropout.
    measure: `(label, predicted) -> metrics` of all rows.
  """

  def outputs(params: Params, batch: Batch) -> dict[str, jax.Array]:
    return {
      'predicted': predict(params, batch),
      'label': batch['label'],
      'weight': row_weights(batch),
    }

  return measured(objective, outputs, lambda rows: measure(rows['label'], rows['predicted']))


def measured_perplexity(
  objective: Objective, nats: Callable[[Params, Batch], tuple[jax.Array, jax.Array]]
) -> Measured:
  """The objective with `perplexity`, `exp` of the mean nats of a whole split.

  Args:
    objective: what is minimized.
    nats: `(params, batch) -> their sum and its weight`, scalars, without dropout.
  """

  def outputs(params: Params, batch: Batch) -> dict[str, jax.Array]:
    total, weight = nats(params, batch)
    return {'nats': total[None], 'weight': weight[None]}

  return measured(
    objective,
    outputs,
    lambda sums: {'perplexity': metrics.perplexity(sums['nats'], sums['weight'])},
  )
