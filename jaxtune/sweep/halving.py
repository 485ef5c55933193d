"""Which candidates go on: successive halving, all at once or as results come in.

Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2020 (ASHA), arXiv:1810.05934. Scores are
greater where better; a run that died has minus infinity and never goes on.
"""

import math
from collections.abc import Mapping, Sequence

from jaxtune.typing import InputError


def rungs(steps: int, first: int, factor: float = 3.0) -> list[int]:
  """The steps at which candidates are judged: `first * factor^k`, and `steps` at last.

  A rung that would lie closer than `factor` below the last one is left out, so that no candidate is
  judged twice within a few steps.

  Args:
    steps: of a whole run.
    first: of the first judgement.
    factor: of the steps between rungs, and of the candidates that stay behind, above 1.

  Raises:
    InputError: numbers that make no rungs.
  """
  if not 1 <= first <= steps:
    raise InputError(f'the first rung is at step {first}; choose one from 1 to {steps}, the last')
  if not factor > 1:
    raise InputError(f'the factor between rungs is {factor}; it must be above 1')
  found: list[int] = []
  at = float(first)
  while at * factor <= steps * (1 + 1e-9) or (not found and first < steps):
    found.append(round(at))
    at *= factor
  return [*(rung for rung in found if rung < steps), steps]


def survivors(scores: Mapping[int, float], factor: float) -> list[int]:
  """The best `1 / factor` of the candidates at a rung, at least one, the best first.

  Of equals the earlier candidate goes on. Successive halving asks once all are there (algorithm 1
  of the first paper).

  Args:
    scores: candidate -> score.
    factor: see `rungs`.
  """
  alive = [number for number, score in scores.items() if score > -math.inf]
  order = sorted(alive, key=lambda number: (-scores[number], number))
  return order[: max(1, math.floor(len(scores) / factor + 1e-9))]


def promotion(
  results: Sequence[Mapping[int, float | None]], factor: float
) -> tuple[int, int] | None:
  """The candidate that is to go on next, and the rung it goes to; None to begin a new one.

  ASHA's rule (algorithm 2): from the top down, one that is among the best `1 / factor` of those
  that have reached its rung by now, and that has not been sent on.

  Args:
    results: by rung, candidate -> score of all that have reached it, None of those on their way.
    factor: see `rungs`.
  """
  for rung in range(len(results) - 2, -1, -1):
    scores = {number: x for number, x in results[rung].items() if x is not None}
    best = survivors(scores, factor)[: math.floor(len(scores) / factor + 1e-9)]
    for number in best:
      if number not in results[rung + 1]:
        return number, rung + 1
  return None
