"""Which of two rules is better, by paired seeds, and how sure that is."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from jaxtune import report


class Verdict(NamedTuple):
  """`interval` holds `second - first` (positive: the first is better), None where one diverged."""

  first: str
  second: str
  interval: report.Interval | None
  better: str | None


def paired(first: Any, second: Any, confidence: float = 0.95) -> report.Interval:
  r"""The mean of `second - first` over paired seeds with its t interval.

  $\bar d \pm t_{n-1,(1+c)/2}\, s_d / \sqrt n$ with $d_i$ the difference at seed i (Student 1908).
  Pairing removes what the seeds share: initial parameters and the order of the data.

  Args:
    first: losses `[seeds]`.
    second: those of the same seeds.
    confidence: of the interval.

  Raises:
    ValueError: fewer than two seeds, or numbers of them that differ.
  """
  d = np.subtract(second, first, dtype=np.float64)
  if d.ndim != 1 or len(d) < 2 or len(first) != len(second):
    raise ValueError(
      f'{len(first)} and {len(second)} seeds: an interval needs the same two or more'
    )
  mean = float(d.mean())
  half = t_quantile((1 + confidence) / 2, len(d) - 1) * float(d.std(ddof=1)) / math.sqrt(len(d))
  return report.Interval(mean, mean - half, mean + half)


def t_quantile(probability: float, freedom: int) -> float:
  """The point below which Student's t with `freedom` degrees lies with a probability."""
  return float(scipy.special.stdtrit(freedom, probability))


def verdicts(losses: Mapping[str, np.ndarray], confidence: float) -> list[Verdict]:
  """Every pair of rules, the better mean first; all intervals hold together with `confidence`.

  Each of m intervals has the level 1 - (1 - confidence) / m (Bonferroni). A rule is better only
  where the interval excludes 0. Where a run diverged there is no interval, and no verdict.

  Args:
    losses: rule -> final losses `[seeds]`, in the same order of seeds, lower is better.
    confidence: that no interval of all misses its true difference.
  """
  pairs = list(itertools.combinations(ranked(losses), 2))
  level = 1 - (1 - confidence) / max(len(pairs), 1)
  found = []
  for first, second in pairs:
    if not np.isfinite([losses[first], losses[second]]).all():
      found.append(Verdict(first, second, None, None))
      continue
    interval = paired(losses[first], losses[second], level)
    found.append(Verdict(first, second, interval, first if interval.low > 0 else None))
  return found


def ranked(losses: Mapping[str, np.ndarray]) -> list[str]:
  """Rules from the lowest mean loss on; those with diverged (infinite) runs last, fewest first."""

  def key(rule: str) -> tuple[int, float]:
    finite = losses[rule][np.isfinite(losses[rule])]
    return len(losses[rule]) - len(finite), float(finite.mean()) if len(finite) else math.inf

  return sorted(losses, key=key)


def settled(curves: np.ndarray) -> np.ndarray:
  """Final losses `[...]` of curves `[..., points]`; infinite where a run diverged.

  A run has diverged when its last loss is no number, or above the loss that it started from.
  """
  final, first = curves[..., -1], curves[..., 0]
  return np.where(np.isfinite(final) & (final <= first), final, np.inf)
