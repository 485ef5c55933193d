"""A round of the loop as a sweep in a folder of its own: run, and read when it has ended."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import build, tasks, workdir
from experiments.build import Loaded
from experiments.keys import Config
from experiments.sweeping import records, runs
from experiments.sweeping import settings as checks
from experiments.sweeping import start as sweeps
from experiments.sweeping.records import Candidate
from experiments.sweeping.space import Dimension, values_of, with_values
from experiments.tuning import settings
from experiments.tuning.dimensions import TUNABLE
from experiments.tuning.moves import Measured, Plan, Round
from jaxtune.typing import InputError

TIMED = 3  # steps that tell what one takes


class Shared:
  """What rounds have in common: the model, the rows, and the programs while they fit."""

  def __init__(self, loaded: Loaded):
    self.loaded = loaded
    self._made: tuple[str, runs.Runs, Any] | None = None  # for which method; the place in the data

  def prepare(self, config: Config, space: Sequence[Dimension]) -> runs.Runs:
    """As `runs.prepare`; what lanes differ in is data, so that one program serves many rounds."""
    largest = {d.key: d.largest for d in space if d.key.startswith('method.')}
    shape = with_values(config, largest).method.to_json()
    if self._made is None or self._made[0] != shape:
      self._made = None  # its memory goes before the next takes some
      made = runs.prepare(config, space, self.loaded)
      self._made = (shape, made, made.given.batches.get_state())
    _, made, cursor = self._made
    made.given.batches.set_state(cursor)
    return dataclasses.replace(made, config=config, default=values_of(config, space))


class Loop(NamedTuple):
  """A loop at work.

  Attributes:
    config: of the user.
    folder: the work directory.
    shared: what rounds have in common.
    start: the values that it begins with.
    reasons: a line on each of them.
    steps: of one run.
    order: keys, as often as each is tuned.
  """

  config: Config
  folder: pathlib.Path
  shared: Shared
  start: dict[str, Any]
  reasons: list[str]
  steps: int
  order: list[str]

  def values(self, done: Sequence[Round]) -> dict[str, Any]:
    """The setting after so many rounds."""
    return {**self.start, **{one.plan.key: one.value for one in done}}

  def round(self, done: Sequence[Round], plan: Plan) -> Config:
    """The configuration of the round that comes after `done`."""
    return settings.of_round(self.config, self.values(done), plan, len(done))


def folder(path: pathlib.Path, number: int, plan: Plan) -> pathlib.Path:
  """`W/1-learning-rate`."""
  return path / f'{number + 1}-{TUNABLE[plan.key].name.replace(" ", "-")}'


def begun(place: pathlib.Path) -> bool:
  return (place / workdir.RUN).exists()


def run(config: Config, place: pathlib.Path, shared: Shared) -> int:
  """Runs a round to its end, or goes on with it; the exit code of its sweep."""
  if workdir.result(place):
    workdir.check(place, config)
    return 0
  return sweeps.start(config, str(place), prepare=shared.prepare)


def read(config: Config, place: pathlib.Path, plan: Plan, present: Any) -> Round:
  """What a round that has ended has shown."""
  record = records.read(place)
  tried = record.of('search')
  best = chosen(record, 'best')[0].values[plan.key]
  return Round(
    plan=plan,
    present=present,
    best=best,
    response={one.values[plan.key]: last(one) for one in tried},
    before=measured(config, chosen(record, 'default')),
    after=measured(config, chosen(record, 'best')),
    steps=sum(one.step for one in record.candidates),
    seconds=record.seconds,
  )


def chosen(record: records.Record, role: str) -> list[Candidate]:
  """The runs over seeds of the best value, or of the present one, which may be the best."""
  numbers = record.confirm[role if role in record.confirm else 'default']
  return [record.candidates[number] for number in numbers]


def measured(config: Config, found: Sequence[Candidate]) -> Measured:
  name = score_name(config, next((one.scores for one in found if one.scores), {}))
  return Measured(
    tuple(last(one) for one in found), tuple(one.scores.get(name, last(one)) for one in found)
  )


def score_name(config: Config, scores: Mapping[str, float]) -> str:
  """The score of the task, or the loss."""
  name = tasks.TASKS[config.task].score
  return name if name in scores else 'loss'


def last(one: Candidate) -> float:
  """The held-out loss at the end of a run."""
  return math.nan if one.dead or not one.losses else one.losses[max(one.losses)]


def seconds_per_step(config: Config, shared: Shared) -> float:
  """Of one run among those side by side, measured; the program is compiled for it."""
  space = checks.check(config)
  made = shared.prepare(config, space)
  width = min(config.sweep.lanes, len(space[0].choices))
  state, _ = made.start({space[0].key: space[0].choices[0]})
  times: list[float] = []

  def seen(step: int, losses: np.ndarray) -> None:
    times.append(time.monotonic())

  cursor = made.given.batches.get_state()
  made.advance([state] * width, 0, TIMED, cursor, seen, lambda: False)
  return (times[-1] - times[0]) / (len(times) - 1) / width


def job(
  config: Config, place: pathlib.Path, shared: Shared, role: str
) -> tuple[build.Job, Any, Candidate]:
  """The best run of a setting as an ordinary one: the job, its parameters, and its record."""
  made = shared.prepare(config, checks.check(config))
  one = min(chosen(records.read(place), role), key=lambda one: (math.isnan(last(one)), last(one)))
  state = records.load(place, one, records.ended(made.one[0]))
  if state is None:
    raise InputError(f'{place}: the state of run {one.number} is damaged; remove this folder')
  found, params = made.params(one.values, state)
  return found, build.without_company(params), one
