"""Exact means of an objective over a whole data set."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxtune.losses import Loss
from jaxtune.typing import Batch, InputError


def evaluate(
  evaluation: Callable[[Any, Any, Batch], Loss],
  trainable: Any,
  frozen: Any,
  batches: Iterable[Batch],
  *,
  place: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, float]:
  """`loss` and the objective's metrics as means over all rows or supervised tokens of `batches`.

  Args:
    evaluation: a (compiled) step from `make_evaluation`.
    trainable: the trained leaves.
    frozen: the others.
    batches: all of one shape; rows that only fill the last one have weight zero.
    place: puts a batch on the devices.

  Raises:
    InputError: nothing in `batches` carries weight.
  """
  total = None
  for batch in batches:
    part = evaluation(trainable, frozen, place(batch))
    total = part if total is None else jax.tree.map(lambda t, p: t + p, total, part)
  if total is None or not float(total.weight) > 0:
    raise InputError('there is nothing to evaluate: no row or token carries weight')
  weight = float(total.weight)
  means = {'loss': float(total.total) / weight}
  means.update((name, float(value) / weight) for name, value in total.metrics.items())
  return means
