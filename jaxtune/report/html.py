"""The report of a run: one HTML page that needs nothing but itself."""

import dataclasses
import functools
import importlib.resources
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

from jaxtune.report.files import replace_file
from jaxtune.report.interval import Interval
from jaxtune.report.placement import placement_svg
from jaxtune.report.plot import curves_svg
from jaxtune.tree import Route

Score = float | Interval


class Confusion(NamedTuple):
  """Counts of test examples, `counts[true][predicted]` in the order of `labels`."""

  labels: Sequence[str]
  counts: Sequence[Sequence[int]]


class Prediction(NamedTuple):
  """One example with its label and what the model said, with the probability it gave to that."""

  text: str
  label: str
  predicted: str
  probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What the page shows, from top to bottom; what is empty is left out.

  Attributes:
    title: the name of the run.
    headline: one sentence: what was reached.
    facts: short names and values under the headline (model, method, steps, time).
    scores: stage ('probe', 'before', 'after') -> metric -> value; a `wilson` interval is drawn.
    metrics: the lines of `read_metrics`, drawn as curves.
    confusion: counts of a classifier on its test data.
    mistakes: the most confident wrong predictions.
    config: the resolved configuration, nested or with dotted keys.
    overridden: dotted keys that differ from their default; they are marked.
    routing: rows of `tree.routing`; the value says whether the parameter is trained.
    placement: rows of `shard.placement`, drawn where any is cut.
    memory: what (forecast, measured peak) -> bytes.
    environment: `versions()`.
    files: path as shown -> what the file is.
    notes: sentences a reader must know (texts cut, rows dropped, how scores were measured).
  """

  title: str
  headline: str
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scores: Mapping[str, Mapping[str, Score]] = dataclasses.field(default_factory=dict)
  metrics: Sequence[Mapping[str, Any]] = ()
  confusion: Confusion | None = None
  mistakes: Sequence[Prediction] = ()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  overridden: Collection[str] = ()
  routing: Sequence[Route] = ()
  placement: Sequence[Any] = ()
  memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> None:
  """Writes `report` as one HTML file, atomically; it loads nothing and runs no script.

  Raises:
    OSError: the file cannot be written.
  """
  # A lone surrogate, which JSON text may hold, has no UTF-8: it becomes a question mark.
  replace_file(path, render(report).encode('utf-8', 'replace'))


def render(report: Report) -> str:
  """The page as text; every string of the report is escaped."""
  sizes = [math.prod(route.shape) for route in report.routing]
  trained = sum(n for n, route in zip(sizes, report.routing, strict=True) if route.value)
  return _template().render(
    report=report,
    metric_names=list(dict.fromkeys(name for row in report.scores.values() for name in row)),
    spans=_spans(report.scores),
    is_interval=lambda score: isinstance(score, Interval),
    curves=markupsafe.Markup(curves_svg(report.metrics)),
    groups=_groups(report.config),
    placement=markupsafe.Markup(placement_svg(report.placement)),
    routes=list(zip(report.routing, sizes, strict=True)),
    parameters=sum(sizes),
    trained=trained,
  )


@functools.cache
def _template() -> jinja2.Template:
  return template(
    importlib.resources.files('jaxtune.report').joinpath('page.html').read_text('utf-8')
  )


def template(source: str) -> jinja2.Template:
  """A page that escapes what is put into it, and fails on what is not there."""
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters |= {'number': _number, 'size': _size}
  return environment.from_string(source)


def _spans(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, tuple[float, float]]:
  """metric -> (start, width) of the axis on which its intervals are drawn."""
  ends: dict[str, list[float]] = {}
  for row in scores.values():
    for name, score in row.items():
      if isinstance(score, Interval):
        ends.setdefault(name, []).extend(score)
  return {name: (min(e), max(max(e) - min(e), 1e-12)) for name, e in ends.items()}


def _groups(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str, Any]]]:
  """First part of the key -> rows (dotted key, rest of the key, value)."""
  groups: dict[str, list[tuple[str, str, Any]]] = {}
  for key, value in _flat(config):
    group, _, rest = key.partition('.')
    groups.setdefault(group if rest else '', []).append((key, rest or group, value))
  return groups


def _flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _number(value: Any) -> str:
  """Four digits for floats, thousands for counts, everything else as it is."""
  if isinstance(value, float):
    return f'{value:.4g}'
  return f'{value:,}' if type(value) is int else str(value)


def _size(value: float) -> str:
  """Bytes in decimal units: 812 MB."""
  rounded = float(f'{value:.3g}')  # 999,999 is 1 MB, not 1e+03 kB
  power = min(int(math.log10(max(rounded, 1)) // 3), 4)
  return f'{rounded / 1000**power:.3g} {("bytes", "kB", "MB", "GB", "TB")[power]}'
