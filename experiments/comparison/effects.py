"""Three published effects, looked for at small scale; each says what was seen in this very run."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparison import settings
from experiments.comparison.contest import Contest, comparable, program
from experiments.comparison.lanes import Lanes, Segment, grid
from experiments.comparison.log import Curves, Log, curves
from experiments.comparison.tasks import Task
from experiments.comparison.verdict import Verdict, paired, settled, verdicts
from experiments.keys import Config
from jaxtune import losses, optim, report
from jaxtune.optim.precision import at_least
from jaxtune.optim.stochastic_rounding import stochastic_round_params
from jaxtune.typing import Batch, Key, Params

Show = Callable[[str, Segment], None]
WORKS = 0.9  # of the way down that the best run comes: a rate that comes that far works


class Robustness(NamedTuple):
  """What a range of first steps comes to on a task: final losses `[sizes, seeds]` by method.

  decades: of rates that work, method -> `[seeds]`.
  wider: decades of AdaGrad-Norm less those of SGD.
  """

  task: Task
  sizes: list[float]
  start: np.ndarray
  final: dict[str, np.ndarray]
  decades: dict[str, np.ndarray]
  wider: report.Interval


class Flip(NamedTuple):
  """Two runs whose order changes: `before` and `after` are `second - first`, of opposite signs."""

  first: str
  second: str
  before: report.Interval
  after: report.Interval


class Flips(NamedTuple):
  """The flips among the runs of a task.

  steps: of the curves. at: place among them where the decay starts.
  loss: run -> comparable losses `[seeds, points]`.
  pairs: how many pairs were looked at.
  shown: those whose order flips, the clearest first.
  moved: rules whose best rate at the end is above the one at the start of the decay, of all rules.
  """

  task: Task
  steps: np.ndarray
  at: int
  loss: dict[str, np.ndarray]
  pairs: int
  shown: list[Flip]
  moved: tuple[int, int]


class Stall(NamedTuple):
  """Losses `[seeds, points]` of parameters stored in three ways, and the verdicts between them."""

  task: Task
  steps: np.ndarray
  loss: dict[str, np.ndarray]
  verdicts: list[Verdict]


SGD, BY_B0, BY_RATE = 'SGD', 'AdaGrad-Norm, b0 varied', 'AdaGrad-Norm, rate varied'


def robustness(config: Config, task: Task, log: Log, limit: float, show: Show) -> Robustness:
  r"""AdaGrad-Norm's indifference to its step size (Ward, Wu and Bottou, arXiv 1806.01811).

  Its step is $\eta / b_t$ with $b_t^2 = b_0^2 + \sum \lVert g \rVert^2$. As in the paper $\eta$ is
  fixed and $b_0$ varies, beside SGD with the constant rate $\eta / b_0$; besides, $b_0$ is fixed
  and $\eta$ varies. A rate works where the loss comes 90% of the way down (on the task's scale)
  that the best of all runs of its seed comes.
  """
  c = config.adagrad_norm
  eta = c.eta[task.name]
  sizes = [float(x) for x in np.geomspace(c.low, c.high, c.rates).astype(np.float32)]
  fixed = 0.1
  methods: dict[str, tuple[Any, dict[str, list[float]]]] = {
    SGD: (optim.create('sgd', 1.0), {'learning_rate': sizes}),
    BY_B0: (optim.create('adagrad_norm', eta, b0=1.0), {'b0': [eta / x for x in sizes]}),
    BY_RATE: (
      optim.create('adagrad_norm', 1.0, b0=fixed),
      {'learning_rate': [x * fixed for x in sizes]},
    ),
  }
  points = settings.boundaries(config[task.name].steps, 1)
  runs = {
    label: run(config, task, rule, label, grid(range(c.seeds), **values), points, log, limit, show)
    for label, (rule, values) in methods.items()
  }
  shape = len(sizes), c.seeds
  start = comparable(task, runs[SGD].loss[:, 0].reshape(shape)[0])
  final = {label: comparable(task, settled(x.loss)).reshape(shape) for label, x in runs.items()}
  best = np.min([losses.min(axis=0) for losses in final.values()], axis=0)
  enough = start - WORKS * (start - best)
  spacing = np.log10(c.high / c.low) / max(c.rates - 1, 1)
  decades = {
    label: (np.isfinite(x) & (x <= enough[None])).sum(axis=0) * spacing
    for label, x in final.items()
  }
  wider = paired(decades[SGD], decades[BY_B0], config.confidence)
  return Robustness(task, sizes, start, final, decades, wider)


def flips(config: Config, contest: Contest) -> Flips:
  """Orders that change in the decay of the learning rate, among the runs of a contest.

  A checkpoint from before the decay says little about the end: a high rate makes progress under
  noise that only the decay takes away (Hu et al., arXiv 2404.06395, section 4; Wen et al., arXiv
  2509.02046). With three tuning seeds or more the tuned rate of each rule and its two neighbours
  take part, otherwise the tuned rate alone. Only runs that never diverged count, and an order only
  where the intervals of both points exclude 0, all pairs together with `confidence`
  (Bonferroni).
  """
  task = contest.task
  start = settings.decay_start(config, config[task.name].steps)
  runs: dict[str, np.ndarray] = {}
  moved = 0
  for label, entry in contest.entries.items():
    steps = entry.tuned.steps
    at = int(np.flatnonzero(steps == start)[0])
    tuned = entry.tuned.loss.reshape(len(entry.rates), -1, len(steps))
    fine = np.isfinite(settled(tuned)).all(axis=1)
    means = comparable(task, np.where(fine[:, None, None], tuned, np.inf)).mean(axis=1)
    moved += int(np.argmin(means[:, -1])) > int(np.argmin(means[:, at]))
    taking_part = {entry.best: entry.compared.loss}
    if config[task.name].tuning_seeds >= 3:
      taking_part = {
        i: tuned[i] for i in range(entry.best - 1, entry.best + 2) if 0 <= i < len(tuned)
      }
    for i, loss in taking_part.items():
      if np.isfinite(settled(loss)).all():
        runs[f'{label} at {settings.short(entry.rates[i])}'] = comparable(task, loss)
  pairs = list(itertools.combinations(runs, 2))
  level = 1 - (1 - config.confidence) / max(len(pairs), 1)
  shown = []
  for first, second in pairs:
    before = paired(runs[first][:, at], runs[second][:, at], level)
    after = paired(runs[first][:, -1], runs[second][:, -1], level)
    if before.high < 0 < after.low:  # the first is worse before and better after
      shown.append(Flip(first, second, before, after))
    elif after.high < 0 < before.low:
      turned = (report.Interval(-i.value, -i.high, -i.low) for i in (before, after))
      shown.append(Flip(second, first, *turned))
  shown.sort(key=lambda flip: -min(-flip.before.value, flip.after.value))
  return Flips(task, steps, at, runs, len(pairs), shown, (moved, len(contest.entries)))


FLOAT32, NEAREST, STOCHASTIC = 'float32', 'bfloat16, rounded to nearest', 'bfloat16, stochastic'


def stall(config: Config, task: Task, log: Log, limit: float, show: Show) -> Stall:
  """Parameters in bfloat16 that small steps do not move, unless rounding is stochastic.

  Only the storage differs: losses and updates are computed in float32 from the stored values. A
  bfloat16 number has 8 bits of mantissa, so a step below 1/512 of a parameter is rounded away.
  """
  c = config.bfloat16
  schedule = settings.schedule(config, c.steps)
  rule = optim.create(c.rule, c.learning_rate, schedule=schedule)
  stored = in_bfloat16(task)
  points = settings.boundaries(c.steps, c.points)
  lanes = grid(range(c.seeds), learning_rate=[c.learning_rate])
  runs = {
    label: run(config, kind, update, label, lanes, points, log, limit, show)
    for label, kind, update in (
      (FLOAT32, task, rule),
      (NEAREST, stored, rule),
      (STOCHASTIC, stored, stochastic_round_params(rule)),
    )
  }
  final = {label: comparable(task, settled(x.loss)) for label, x in runs.items()}
  return Stall(
    task,
    np.array(points),
    {label: comparable(task, x.loss) for label, x in runs.items()},
    verdicts(final, config.confidence),
  )


def in_bfloat16(task: Task) -> Task:
  """The same task with its parameters stored in bfloat16 and read as float32."""

  def init(key: Key) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), task.init(key))

  def objective(params: Params, batch: Batch, key: Key | None = None) -> losses.Loss:
    return task.objective(at_least(params), batch, key)

  return dataclasses.replace(task, init=init, objective=objective)


def run(
  config: Config,
  task: Task,
  rule: Any,
  label: str,
  lanes: Lanes,
  points: Sequence[int],
  log: Log,
  limit: float,
  show: Show,
) -> Curves:
  """An effect's own runs, logged under the stage `effect`."""
  compiled = program(task, rule, list(lanes.values), len(lanes.seeds), config.seed, limit)
  return curves(
    log,
    {'task': task.name, 'stage': 'effect', 'rule': label},
    compiled,
    lanes,
    points,
    functools.partial(show, f'{task.name}  {label}'),
  )
