"""Accuracies and their differences, with intervals over rows and seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxtune import report

DRAWS = 4000


class Difference(NamedTuple):
  """`first - second` in accuracy, paired by row and seed."""

  first: str
  second: str
  interval: report.Interval


def accuracy(correct: np.ndarray, confidence: float) -> report.Interval:
  """The mean over seeds and rows, with its bootstrap interval.

  Rows and seeds are drawn anew, both with replacement and apart from each other: the interval
  covers other test rows and other starts, and is a little too wide (the pigeonhole bootstrap, Owen
  2007, doi:10.1214/07-AOAS122).

  Args:
    correct: bool `[seeds, rows]`.
    confidence: of the interval.
  """
  return _interval(correct.astype(np.float64), confidence)


def difference(
  first: tuple[str, np.ndarray], second: tuple[str, np.ndarray], confidence: float
) -> Difference:
  """Of two strategies on the same rows; the seeds of one without any stand for all."""
  (name, a), (other, b) = first, second
  if len(a) != len(b) and 1 not in (len(a), len(b)):
    raise ValueError(f'{len(a)} and {len(b)} seeds cannot be paired')
  return Difference(name, other, _interval(a.astype(np.float64) - b, confidence))


def _interval(values: np.ndarray, confidence: float) -> report.Interval:
  seeds, rows = values.shape
  draw = np.random.default_rng(0)
  # How often each row is drawn, and each seed: the mean of a draw is a product of matrices.
  by_row = draw.multinomial(rows, np.full(rows, 1 / rows), DRAWS) / rows
  by_seed = draw.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
  means = np.sum(by_seed * (by_row @ values.T), axis=1)
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  centre = float(values.mean())
  return report.Interval(centre, min(float(low), centre), max(float(high), centre))


def ties(
  correct: Mapping[str, np.ndarray], variants: Sequence[str], reference: str, confidence: float
) -> list[Difference]:
  """Each variant less the reference; all intervals hold together (Bonferroni)."""
  others = [name for name in variants if name in correct and name != reference]
  level = 1 - (1 - confidence) / max(1, len(others))
  return [
    difference((name, correct[name]), (reference, correct[reference]), level) for name in others
  ]
