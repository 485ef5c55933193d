"""An objective with a penalty on the parameters."""

from collections.abc import Callable

import jax

from jaxtune.losses.loss import Loss, Objective
from jaxtune.losses.measured import Measured, measured
from jaxtune.typing import Batch, Key, Params


def penalized(objective: Objective, penalty: Callable[[Params], jax.Array]) -> Objective:
  """Adds `penalty(params)` to the mean loss, once however a batch is cut.

  `total + weight * penalty`: the mean over micro-batches and devices, the sum of totals over the
  sum of weights, is then the mean loss plus the penalty.

  Batch: as of `objective`. Metrics: those of `objective`, and `penalty`, which the loss includes,
  in an evaluation too; what is measured on a whole split stays as it is.

  Args:
    objective: what the penalty is added to.
    penalty: `(params) -> float32 scalar`, as `adapt.l2_sp` and `adapt.ewc` give. Where it has
      `own`, the parameters of these names are there for it alone: `objective` does not see them.
  """
  own = getattr(penalty, 'own', ())

  def seen(params: Params) -> Params:
    return {name: part for name, part in params.items() if name not in own} if own else params

  def objective_with_penalty(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    loss = objective(seen(params), batch, key)
    added = loss.weight * penalty(params)
    return Loss(loss.total + added, loss.weight, {**loss.metrics, 'penalty': added})

  if not isinstance(objective, Measured):
    return objective_with_penalty
  outputs = objective.outputs
  return measured(
    objective_with_penalty, lambda params, batch: outputs(seen(params), batch), objective.measure
  )
