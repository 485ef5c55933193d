"""What a method asks of training, beside the parameters that train.

Whoever trains calls these two functions and need not know which method it has.
"""

import jax
import optax

from jaxtune.adapt.adalora import Budget, adalora_leaves, orthogonality
from jaxtune.adapt.rank_budget import adalora_budget
from jaxtune.typing import InputError, Params


def training_penalty(params: Params) -> jax.Array | float:
  """What the method adds to the mean loss: a float32 scalar, or 0.0 where it adds nothing.

  It belongs to what is minimized and not to what is evaluated. AdaLoRA's is the weighted
  `orthogonality`.

  Args:
    params: trained and frozen together; the function may be differentiated and compiled.
  """
  budget = _budget(params)
  if budget is None or not budget.orthogonality:
    return 0.0
  return budget.orthogonality * orthogonality(params)


def wrap_optimizer(
  params: Params, optimizer: optax.GradientTransformation, steps: int
) -> optax.GradientTransformation:
  """The update rule with what the method does after each step; as it is for most methods.

  For AdaLoRA it is under `adalora_budget`. Wrap the whole rule, clipping and schedule included.

  Args:
    params: as the method returned them, or their shapes.
    optimizer: of the parameters that train.
    steps: of the whole run.

  Raises:
    InputError: the method's numbers do not fit the steps, or differ where they must not.
  """
  budget = _budget(params)
  if budget is None:
    return optimizer
  return adalora_budget(
    optimizer,
    target_rank=budget.target_rank,
    steps=steps,
    warmup=budget.warmup,
    final=budget.final,
    interval=budget.interval,
    beta1=budget.beta1,
    beta2=budget.beta2,
  )


def _budget(params: Params) -> Budget | None:
  """The one budget of all AdaLoRA weights, `target_rank` the average over their matrices."""
  found = [(path, leaf.budget, leaf.e.size // leaf.e.shape[-1])
           for path, leaf in adalora_leaves(params) if leaf.budget is not None]  # fmt: skip
  if not found:
    return None
  first_path, first, _ = found[0]
  for path, budget, _ in found:
    if budget._replace(target_rank=first.target_rank) != first:
      raise InputError(
        f'adalora: {path!r} has another budget than {first_path!r}, and all triplets share one; '
        'let them differ in rank, alpha and target_rank alone'
      )
  total = sum(budget.target_rank * count for _, budget, count in found)
  return first._replace(target_rank=total / sum(count for *_, count in found))
