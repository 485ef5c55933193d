"""A measured value with its confidence interval."""

import math
import statistics
from typing import NamedTuple


class Interval(NamedTuple):
  """A value and the ends of its confidence interval."""

  value: float
  low: float
  high: float


def wilson(correct: int, total: int, confidence: float = 0.95) -> Interval:
  """The accuracy `correct / total` with Wilson's score interval.

  (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), with z the normal quantile of `confidence`.
  Unlike p ± z·sd it stays within [0, 1] and keeps its width at 0 and 1 (Wilson 1927, JASA 22, 209).

  Raises:
    ValueError: not 0 <= correct <= total with total > 0.
  """
  if not 0 <= correct <= total or total == 0:
    raise ValueError(f'{correct} correct of {total}: need 0 <= correct <= total and total > 0')
  z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  p = correct / total
  shrink = 1 / (1 + z * z / total)
  centre = (p + z * z / (2 * total)) * shrink
  half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) * shrink
  # The ends are exact at 0 and 1; rounding must not put the value outside of them.
  return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))
