"""A task's contest: every rule gets as many rates, then meets the others on new seeds."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.comparison import settings
from experiments.comparison.lanes import Program, Segment, compile_lanes, grid
from experiments.comparison.log import Curves, Log, curves
from experiments.comparison.tasks import Task
from experiments.comparison.verdict import Verdict, ranked, settled, verdicts
from experiments.keys import Config
from jaxtune import optim, tree


class Entry(NamedTuple):
  """A rule on a task.

  Attributes:
    rule: which.
    rates: the grid.
    tuned: its runs at every rate, lanes `[rates * tuning seeds]` in this order.
    best: place of the rate with the lowest mean final loss over the tuning seeds.
    compared: its runs at that rate on other seeds.
    state_bytes: of optimizer state, for a parameter.
  """

  rule: settings.Rule
  rates: list[float]
  tuned: Curves
  best: int
  compared: Curves
  state_bytes: float

  @property
  def at_edge(self) -> bool:
    """Whether a better rate may lie outside of the grid."""
    return self.best in (0, len(self.rates) - 1)

  @property
  def step_seconds(self) -> float:
    """Time of a step of a lane."""
    done = [len(c.loss) * c.steps[-1] for c in (self.tuned, self.compared)]
    return (self.tuned.seconds + self.compared.seconds) / sum(done)


class Contest(NamedTuple):
  """All rules on a task, the best first; `final` holds a rule's last losses by seed, comparable
  (their base-ten logarithms for a task of orders), infinite where a run diverged."""

  task: Task
  entries: dict[str, Entry]
  final: dict[str, np.ndarray]
  verdicts: list[Verdict]


def tuning_seeds(config: Config, task: str) -> range:
  return range(config[task].tuning_seeds)


def comparison_seeds(config: Config, task: str) -> range:
  """None of which took part in choosing the rates."""
  first = config[task].tuning_seeds
  return range(first, first + config[task].seeds)


def hold(
  config: Config, task: Task, log: Log, limit: float, show: Callable[[str, Segment], None]
) -> Contest:
  """Runs (or reads from the log) every rule on a task, and judges."""
  entries = {
    rule.label: enter(config, task, rule, log, limit, show)
    for rule in settings.rules(config, [task.name])
  }
  final = {
    label: comparable(task, settled(entry.compared.loss)) for label, entry in entries.items()
  }
  order = ranked(final)
  return Contest(
    task,
    {label: entries[label] for label in order},
    {label: final[label] for label in order},
    verdicts(final, config.confidence),
  )


def enter(
  config: Config,
  task: Task,
  rule: settings.Rule,
  log: Log,
  limit: float,
  show: Callable[[str, Segment], None],
) -> Entry:
  c = config[task.name]
  transformation = settings.make(config, task.name, rule)
  rates = settings.rates(config, task.name, rule)
  tuning, comparison = tuning_seeds(config, task.name), comparison_seeds(config, task.name)
  # One program serves both stages: it is as wide as the smaller.
  width = min(len(rates) * len(tuning), len(comparison))
  compiled = program(task, transformation, ['learning_rate'], width, config.seed, limit)
  points = settings.boundaries(c.steps, c.points, [settings.decay_start(config, c.steps)])

  def run(stage: str, rates: Sequence[float], seeds: Sequence[int]) -> Curves:
    return curves(
      log,
      {'task': task.name, 'stage': stage, 'rule': rule.label},
      compiled,
      grid(seeds, learning_rate=rates),
      points,
      functools.partial(show, f'{task.name}  {rule.label}  {stage}'),
    )

  tuned = run('tuning', rates, tuning)
  means = comparable(task, settled(tuned.loss)).reshape(len(rates), -1).mean(axis=1)
  best = int(np.argmin(means))
  compared = run('comparison', [rates[best]], comparison)
  params = jax.eval_shape(task.init, jax.random.key(0))
  state_bytes = optim.state_bytes(transformation, params) / tree.count(params)
  return Entry(rule, rates, tuned, best, compared, state_bytes)


def program(
  task: Task,
  rule: optax.GradientTransformation,
  names: Sequence[str],
  width: int,
  seed: int,
  limit: float,
) -> Callable[[], Program]:
  """Compiles when it is first asked for."""
  return functools.cache(lambda: compile_lanes(task, rule, names, width, seed=seed, limit=limit))


def comparable(task: Task, losses: np.ndarray) -> np.ndarray:
  """Losses on the scale on which they are averaged and compared."""
  return np.log10(np.maximum(losses, 1e-30)) if task.orders else losses
