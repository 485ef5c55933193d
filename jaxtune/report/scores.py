"""How good predictions are: of labels and of numbers, with their intervals, and means of tokens."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxtune.losses import metrics
from jaxtune.report.interval import Interval, wilson


class LabelScore(NamedTuple):
  """How one label is found: `f1 = 2 precision recall / (precision + recall)`, and its true rows.

  What would be 0 / 0 is 0: the precision of a label never predicted, the recall of one never true.
  """

  precision: float
  recall: float
  f1: float
  rows: int


class Classification(NamedTuple):
  """Scores of predicted labels.

  Attributes:
    accuracy: with its 95% interval.
    f1: the mean over the labels that are true or predicted somewhere (macro), each counted once.
    matthews: see `losses.metrics`.
    labels: name -> score.
    confusion: `[true][predicted]` counts.
  """

  accuracy: Interval
  f1: float
  matthews: float
  labels: dict[str, LabelScore]
  confusion: list[list[int]]


def classification(
  true: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, names: Sequence[str]
) -> Classification:
  """Scores of predicted labels, given as places in `names`.

  Raises:
    ValueError: no rows, rows of different numbers, or a label that is no place in `names`.
  """
  truth, guess = np.asarray(true, int), np.asarray(predicted, int)
  if not truth.size or truth.shape != guess.shape:
    raise ValueError(f'{truth.size} true and {guess.size} predicted labels; need as many, above 0')
  both = np.concatenate([truth, guess])
  if both.min() < 0 or both.max() >= len(names):
    raise ValueError(f'labels reach from {both.min()} to {both.max()}; there are {len(names)}')
  counts = np.zeros((len(names), len(names)), int)
  np.add.at(counts, (truth, guess), 1)
  hits, rows, taken = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
  labels = {
    name: LabelScore(
      _ratio(hits[i], taken[i]),
      _ratio(hits[i], rows[i]),
      _ratio(2 * hits[i], rows[i] + taken[i]),
      int(rows[i]),
    )
    for i, name in enumerate(names)
  }
  seen = [label.f1 for label, n in zip(labels.values(), rows + taken, strict=True) if n]
  return Classification(
    wilson(int(hits.sum()), int(truth.size)),
    statistics.fmean(seen),
    metrics.matthews(truth, guess),
    labels,
    counts.tolist(),
  )


class Regression(NamedTuple):
  """Scores of predicted numbers; where one side is the same in all rows, correlations are nan."""

  mean_squared_error: float
  absolute_error: float
  pearson: float
  spearman: float


def regression(
  true: Sequence[float] | np.ndarray, predicted: Sequence[float] | np.ndarray
) -> Regression:
  """Scores of predicted numbers: Pearson's correlation, and Spearman's, that of the ranks.

  Raises:
    ValueError: no rows, or rows of different numbers.
  """
  x, y = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
  if not x.size or x.shape != y.shape:
    raise ValueError(f'{x.size} true and {y.size} predicted numbers; need as many, above 0')
  error = y - x
  return Regression(
    float(np.mean(error * error)),
    float(np.mean(np.abs(error))),
    metrics.pearson(x, y),
    metrics.spearman(x, y),
  )


def mean_per(
  totals: Sequence[float] | np.ndarray,
  weights: Sequence[float] | np.ndarray,
  confidence: float = 0.95,
) -> Interval:
  """`sum(totals) / sum(weights)`, as nats a token, with an interval over rows drawn anew.

  With r the ratio and N rows: `r ± t sqrt(N / (N - 1) sum_i (totals_i - r weights_i)^2) / sum w`,
  the linearized ratio estimator (Cochran 1977, Sampling Techniques, section 6.4), t Student's
  quantile with N - 1 degrees. Tokens of one row may depend on each other as they like. One row
  alone has an endless interval.

  Raises:
    ValueError: no rows, rows of different numbers, or weights that sum to zero.
  """
  x, w = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
  if not x.size or x.shape != w.shape or not w.sum() > 0:
    raise ValueError(f'{x.size} totals and {w.size} weights of {w.sum()}; need as many, above 0')
  ratio = float(x.sum() / w.sum())
  if x.size == 1:
    return Interval(ratio, -math.inf, math.inf)
  squares = float(np.sum((x - ratio * w) ** 2)) * x.size / (x.size - 1)
  half = float(stats.t.ppf((1 + confidence) / 2, x.size - 1)) * math.sqrt(squares) / float(w.sum())
  return Interval(ratio, ratio - half, ratio + half)


def _ratio(part: float, whole: float) -> float:
  return float(part / whole) if whole else 0.0
