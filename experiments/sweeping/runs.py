"""The runs of a sweep as lanes of one program, whichever values they have."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import build, inputs, objective
from experiments.build import Job, Loaded
from experiments.comparison import memory
from experiments.inputs import Inputs
from experiments.keys import Config
from experiments.sweeping import records
from experiments.sweeping.space import Dimension, candidates, values_of, with_values
from jaxtune import losses, plan, sweep, tree
from jaxtune.typing import InputError, Params

DROPOUT = 'method.options.dropout'
SHAPING = ('method.rank', DROPOUT, 'objective.')
NEVER = 1e-30  # a rate that is 0 beside 1
Seen = Callable[[int, np.ndarray], None]  # step, losses of the lanes


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
  """What all runs share.

  Attributes:
    config: of the default setting.
    loaded: the model and the rows.
    default: what the configuration has for the keys that are searched.
    shape: values that decide which leaves a run has: the largest that there will be.
    job: the run with these.
    given: what runs learn from.
    programs: by their lanes, and whether each of these has a batch of its own.
  """

  config: Config
  loaded: Loaded
  default: Mapping[str, Any]
  shape: Mapping[str, Any]
  job: Job
  given: Inputs
  programs: dict[tuple[int, bool], sweep.Program] = dataclasses.field(default_factory=dict)

  def of(self, values: Mapping[str, Any]) -> Job:
    """The ordinary run with these values, its objective apart."""
    own = {**values, **self.weights(self.shape)}  # a weight of 0 would leave out what it weighs
    if self.shape.get(DROPOUT):
      own[DROPOUT] = max(values[DROPOUT], NEVER)  # and a rate of 0 the leaf that holds it
    return build.adapted(with_values(self.config, own), self.loaded)

  @staticmethod
  def weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the objective is made of."""
    return {name: x for name, x in values.items() if name.startswith('objective.')}

  def start(self, values: Mapping[str, Any]) -> tuple[sweep.Lanes, Params]:
    """(that run before its first step, as a lane; its base)."""
    job = self.of(values)
    key = jax.random.fold_in(jax.random.key(job.config.seed), 1)
    params = sweep.fit_ranks(job.params, self.job.params)
    return sweep.run(params, job.optimizer, key, self.weights(values))

  @functools.cached_property
  def one(self) -> tuple[sweep.Lanes, Params]:
    """Any run, for the shapes of all, and the base."""
    weights = self.weights(self.shape)
    return sweep.run(self.job.params, self.job.optimizer, jax.random.key(0), weights)

  @property
  def objective(self) -> Any:
    """What all minimize, or what makes it of their weights."""
    if not self.weights(self.shape):
      return self.given.objective
    job, model = self.job, self.given.model

    def of_weights(weights: Mapping[str, Any]) -> losses.Objective:
      return objective.make(job.config, model, job.tok, job.corpus.names, weights=weights)

    return of_weights

  @property
  def judge(self) -> losses.Objective:
    """What all are measured by: the objective of the default setting."""
    if not self.weights(self.shape):
      return self.given.objective
    return self.objective(self.weights(self.default))

  def program(self, width: int, own_batches: bool = False) -> sweep.Program:
    """The program of so many lanes, compiled when it is first asked for."""
    found = self.programs.get((width, own_batches))
    if found is not None:
      return found
    run, base = self.one
    batches = self.given.batches
    cursor = batches.get_state()
    batch = next(batches)
    batches.set_state(cursor)
    devices = jax.devices()
    found = sweep.prepare(
      sweep.stack([run] * width),
      base,
      self.objective,
      self.job.optimizer,
      jax.tree.map(lambda x: np.stack([x] * width), batch) if own_batches else batch,
      judge=self.judge,
      accumulate=self.config.train.accumulate,
      own_batches=own_batches,
      devices=devices[: math.gcd(width, len(devices))],
    )
    self.programs[width, own_batches] = found
    return found

  @property
  def whole(self) -> sweep.Program:
    """The program of all lanes."""
    c = self.config.sweep
    return self.program(c.lanes, c.scheduler == 'asha')

  def check_memory(self) -> None:
    """Refuses more lanes than fit, by what the compiled step needs.

    Raises:
      InputError: it says how many fit.
    """
    lanes = self.config.sweep.lanes
    program, free = self.whole, memory.available()
    needed = plan.forecast(program.compiled, program.lanes.state, program.base, program.batch).total
    if needed > free:
      shared = tree.size(program.base)
      fit = max(1, int((free - shared) / max(1, (needed - shared) / lanes)))
      raise InputError(
        f'sweep.lanes is {lanes}, whose step needs {needed / 2**30:.1f} GiB, and '
        f'{free / 2**30:.1f} GiB are free; about {fit} lanes fit'
      )

  def advance(
    self,
    runs: Sequence[sweep.Lanes],
    start: int,
    end: int,
    cursor: Any,
    seen: Seen,
    stop: Callable[[], Any],
  ) -> tuple[list[sweep.Lanes], int]:
    """The runs after step `end`, or after the step in which `stop` said so, and that step.

    The place in the data is then behind it.
    """
    program, batches = self.program(len(runs)), self.given.batches
    lanes = program.load(runs)
    batches.set_state(cursor)
    before = None
    for step in range(start + 1, end + 1):
      lanes, metrics = program.step(lanes, program.base, program.place(next(batches)))
      if before is not None:
        seen(before[0], np.asarray(before[1]))
      before = (step, metrics['loss'])
      if stop():
        break
    assert before is not None
    seen(before[0], np.asarray(before[1]))
    return [sweep.take(lanes, lane) for lane in range(len(runs))], before[0]

  def leg(
    self,
    lanes: sweep.Lanes,
    steps: Sequence[int],
    count: int,
    cursors: dict[int, Any],
    done: Callable[[int, np.ndarray], Any],
  ) -> tuple[sweep.Lanes, int, np.ndarray]:
    """Up to `count` further steps of lanes that have taken `steps`, each as a run alone takes them.

    Args:
      cursors: the place in the data after so many steps; it is filled.
      done: `(steps taken, losses)`, whether that was all.

    Returns:
      The lanes, the steps taken, and the last losses.
    """
    program, batches = self.program(len(steps), True), self.given.batches

    def batch_at(step: int) -> Any:
      batches.set_state(cursors[step])
      batch = next(batches)
      cursors[step + 1] = batches.get_state()
      return batch

    for taken in range(1, count + 1):
      at = [step + taken - 1 for step in steps]
      found = {step: batch_at(step) for step in sorted(set(at))}
      batch = jax.tree.map(lambda *x: np.stack(x), *(found[step] for step in at))
      lanes, metrics = program.step(lanes, program.base, program.place(batch))
      losses = np.asarray(metrics['loss'])
      if done(taken, losses):
        break
    return lanes, taken, losses

  def measure(self, runs: Sequence[sweep.Lanes], split: str) -> list[dict[str, float]]:
    """The objective's metrics of each run on held-out rows, the same for all."""
    lanes = self.whole.load([records.ended(run) for run in runs])
    return self.whole.evaluate(lanes, self.given.held_out[split])

  def params(self, values: Mapping[str, Any], run: sweep.Lanes) -> tuple[Job, Params]:
    """The ordinary run with these values, and its parameters as the lane has trained them."""
    job = self.of(values)
    whole = tree.combine(run.state.trainable, tree.combine(run.own, self.one[1]))
    return job, sweep.cut_ranks(whole, job.params)


def prepare(config: Config, space: Sequence[Dimension], loaded: Loaded | None = None) -> Runs:
  """Loads what all runs share, if it is not at hand.

  Raises:
    InputError: as `build.job`.
  """
  loaded = loaded or build.load(config)
  default = values_of(config, space)
  shape = {d.key: max(d.largest, default[d.key]) for d in space if d.key.startswith(SHAPING)}
  job = build.adapted(with_values(config, shape), loaded)
  given = inputs.texts(job)
  given = inputs.features(job, runs=candidates(config, space)) or given
  return Runs(config, loaded, default, shape, job, given)
