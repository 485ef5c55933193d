"""Exact metrics of an objective over a whole data set."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.losses import Loss, Measure
from jaxtune.typing import Batch, InputError


def evaluate(
  evaluation: Callable[[Any, Any, Batch], tuple[Loss, Mapping[str, jax.Array]]],
  trainable: Any,
  frozen: Any,
  batches: Iterable[Batch],
  *,
  place: Callable[[Batch], Batch] = lambda batch: batch,
  measure: Measure | None = None,
) -> dict[str, float]:
  """`loss` and the objective's metrics as means over all rows or supervised tokens of `batches`.

  Args:
    evaluation: a (compiled) step from `make_evaluation`.
    trainable: the trained leaves.
    frozen: the others.
    batches: all of one shape; rows that only fill the last one have weight zero.
    place: puts a batch on the devices.
    measure: of a `losses.measured` objective: what is measured on the outputs of all rows at once,
      those of every process, without rows of weight zero.

  Raises:
    InputError: nothing in `batches` carries weight.
  """
  parts = (evaluation(trainable, frozen, place(batch)) for batch in batches)
  return totalled(parts, measure)


def totalled(
  parts: Iterable[tuple[Loss, Mapping[str, jax.Array]]], measure: Measure | None = None
) -> dict[str, float]:
  """What `evaluate` returns, from what an evaluation step returned of each batch.

  Raises:
    InputError: nothing carries weight.
  """
  total, held = None, []
  for part, outputs in parts:
    total = part if total is None else jax.tree.map(lambda t, p: t + p, total, part)
    if measure is not None:
      held.append(_real(outputs))
  if total is None or not float(total.weight) > 0:
    raise InputError('there is nothing to evaluate: no row or token carries weight')
  weight = float(total.weight)
  means = {'loss': float(total.total) / weight}
  means.update((name, float(value) / weight) for name, value in total.metrics.items())
  if measure is not None:
    means.update(measure({name: np.concatenate([part[name] for part in held]) for name in held[0]}))
  return means


def _real(outputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
  """The outputs on the host, of every process, where `weight` is above zero."""
  if jax.process_count() > 1:
    found = multihost_utils.process_allgather(dict(outputs), tiled=True)
  else:
    found = jax.device_get(dict(outputs))
  real = found['weight'] > 0
  return {name: np.asarray(value)[real] for name, value in found.items()}
