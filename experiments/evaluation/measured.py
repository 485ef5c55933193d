"""What an evaluation found."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune import report
from jaxtune.report.scores import Classification

Scores = Mapping[str, float | report.Interval]


class Measured(NamedTuple):
  """Scores and rows of one evaluation.

  Attributes:
    scores: name -> value, with its interval where there is one.
    rows: what went in and came out, one line each, in the order of the data.
    labels: the scores of a classification.
    notes: what a reader must know: texts cut, examples shown.
  """

  scores: Scores
  rows: Sequence[Mapping[str, Any]]
  labels: Classification | None = None
  notes: Sequence[str] = ()
