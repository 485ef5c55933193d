"""metrics.jsonl: a line for some lanes at a point of their runs. A run goes on from it."""

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.comparison.lanes import Lanes, Program, Segment, run_lanes
from jaxtune import report


class Curves(NamedTuple):
  """Losses `[lanes, points]` at `steps` `[points]`; infinities are kept."""

  lanes: Lanes
  steps: np.ndarray
  loss: np.ndarray
  train_loss: np.ndarray
  seconds: float


class Log(NamedTuple):
  """A file of JSON lines, and what it holds."""

  path: pathlib.Path
  lines: list[dict[str, Any]]

  def add(self, line: dict[str, Any]) -> dict[str, Any]:
    """Writes a line at the end; returns it."""
    self.lines.append(line)
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line, allow_nan=False) + '\n')
    return line


def open_log(folder: pathlib.Path) -> Log:
  """The log of a folder, with the lines of an earlier start but for a torn last one."""
  path = folder / 'metrics.jsonl'
  lines = report.read_metrics(path) if path.exists() else []
  log = Log(path, lines)
  _write(log)
  return log


def curves(
  log: Log,
  group: dict[str, str],
  compiled: Callable[[], Program],
  lanes: Lanes,
  boundaries: Sequence[int],
  show: Callable[[Segment], None],
) -> Curves:
  """What some lanes do: read from the log where it is all there, else run and logged.

  Args:
    log: it gains a line for each segment.
    group: names what the lanes are; a group is in the log whole or is run again.
    compiled: gives the program, if it must be run.
    lanes: the runs.
    boundaries: steps at which they are measured.
    show: is called after each segment.
  """
  found = [line for line in log.lines if group.items() <= line.items()]
  if sum(len(line['loss']) for line in found) != len(lanes.seeds) * len(boundaries):
    if found:
      log.lines[:] = [line for line in log.lines if line not in found]
      _write(log)
    found = []
    for segment in run_lanes(compiled(), lanes, boundaries):
      line = {'step': segment.step, **group, **_json(segment)}
      found.append(log.add(line))
      show(segment)

  def joined(name: str) -> np.ndarray:
    points = [
      [x for line in found if line['step'] == step for x in line[name]] for step in boundaries
    ]
    return np.array([[math.inf if x is None else x for x in point] for point in points]).T

  seconds = sum(line['seconds'] for line in found)
  return Curves(lanes, np.array(boundaries), joined('loss'), joined('train_loss'), seconds)


def _json(segment: Segment) -> dict[str, Any]:
  lists = {name: value.tolist() for name, value in segment.lanes.values.items()}
  losses = {
    name: [float(x) if math.isfinite(x) else None for x in value]
    for name, value in (('loss', segment.loss), ('train_loss', segment.train_loss))
  }
  seeds = segment.lanes.seeds.tolist()
  return {'seeds': seeds, **lists, **losses, 'seconds': round(segment.seconds, 3)}


def _write(log: Log) -> None:
  lines = (json.dumps(line, allow_nan=False) + '\n' for line in log.lines)
  report.replace_file(log.path, ''.join(lines).encode())
