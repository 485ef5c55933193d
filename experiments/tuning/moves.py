"""What a round has shown, what comes next, and what the budget holds: nothing here trains."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.tuning import dimensions

MISSES = 2  # rounds in a row without a gain that end the loop


class Plan(NamedTuple):
  """A round that is to run.

  Attributes:
    key: of the configuration.
    values: that are tried, the present one among them.
    place: in the order of keys.
    why: in words.
  """

  key: str
  values: tuple[Any, ...]
  place: int
  why: str


class Measured(NamedTuple):
  """A setting over seeds: held-out losses, and the score on test rows, which decides nothing."""

  losses: tuple[float, ...]
  scores: tuple[float, ...]


class Round(NamedTuple):
  """A round that has ended.

  Attributes:
    plan: what was to run.
    present: the value before it.
    best: the value with the lowest held-out loss of the first seed.
    response: value -> that loss; not a number where the run died.
    before, after: the present setting, and that with the best value.
    steps, seconds: that it took.
  """

  plan: Plan
  present: Any
  best: Any
  response: Mapping[Any, float]
  before: Measured
  after: Measured
  steps: int
  seconds: float

  @property
  def pays(self) -> bool:
    """Whether the gain is larger than what seeds alone move a setting by."""
    gain = mean(self.before.losses) - mean(self.after.losses)
    return self.best != self.present and gain > self.noise

  @property
  def noise(self) -> float:
    """The standard deviation over seeds, of the setting that they move more."""
    return max(spread(self.before.losses), spread(self.after.losses))

  @property
  def value(self) -> Any:
    """What the key has from here on."""
    return self.best if self.pays else self.present


class Budget(NamedTuple):
  """Steps of all runs, and minutes; 0 for no limit."""

  steps: int
  minutes: float

  def holds(self, steps: int, minutes: float) -> bool:
    return (not self.steps or steps <= self.steps) and (not self.minutes or minutes <= self.minutes)


def mean(values: Sequence[float]) -> float:
  """Infinite where a run died."""
  return statistics.fmean(values) if all(map(math.isfinite, values)) else math.inf


def spread(values: Sequence[float]) -> float:
  """The standard deviation of the runs that lived."""
  alive = [value for value in values if math.isfinite(value)]
  return statistics.stdev(alive) if len(alive) > 1 else 0.0


def following(order: Sequence[str], values: Mapping[str, Any], done: Sequence[Round]) -> Plan | str:
  """The round after those that are done, or why there is none.

  Args:
    order: the keys, as often as each is tuned.
    values: of these keys at present.
    done: from the first.
  """
  last = done[-1] if done else None
  if last and last.pays:
    further = dimensions.beyond(last.plan.key, last.plan.values, last.best)
    if further:
      name = dimensions.TUNABLE[last.plan.key].name
      side = 'largest' if last.best == max(last.plan.values) else 'smallest'
      why = f'{name} beyond {last.best:g}, the {side} of the last round'
      return Plan(last.plan.key, further, last.plan.place, why)
  if len(done) >= MISSES and not any(one.pays for one in done[-MISSES:]):
    return f'{MISSES} rounds in a row did not pay'
  place = last.plan.place + 1 if last else 0
  if place == len(order):
    return 'everything in tune.order is tuned'
  key = order[place]
  again = key in order[:place]
  tried = dimensions.around(key, values[key], finer=again)
  why = f'{dimensions.TUNABLE[key].name} around {values[key]:g}{" in finer steps" * again}'
  return Plan(key, tried, place, why)


def cost(plan: Plan, seeds: int, steps: int) -> int:
  """The most steps that a round can take: each value once, then two settings over the seeds."""
  return steps * (len(plan.values) + 2 * (seeds - 1))
