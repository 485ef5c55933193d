"""What was seen, in words and numbers."""

import math
from typing import Literal

import numpy as np

from experiments.comparison import settings
from experiments.comparison.contest import Contest, Entry
from experiments.comparison.effects import (
  BY_B0,
  BY_RATE,
  FLOAT32,
  NEAREST,
  SGD,
  STOCHASTIC,
  Flip,
  Flips,
  Robustness,
  Stall,
)
from experiments.comparison.tasks import Task
from experiments.comparison.verdict import Verdict
from jaxtune import report

COLUMNS = ('rule', 'tuned rate', 'final loss', 'behind the first', 'state', 'ms a step')
JUSTIFY: tuple[Literal['left', 'right'], ...] = (
  'left', 'right', 'right', 'left', 'right', 'right',
)  # fmt: skip


def rows(contest: Contest) -> list[tuple[str, ...]]:
  """The table of a task under `COLUMNS`: state in bytes a parameter, time of a step of a lane."""
  return [
    (
      label,
      rate(entry),
      average(contest, label),
      behind(contest, label),
      f'{entry.state_bytes:.1f}',
      f'{entry.step_seconds * 1e3:.3g}',
    )
    for label, entry in contest.entries.items()
  ]


def loss(task: Task, comparable: float) -> str:
  """A loss on the scale of comparison, as the loss that it is."""
  if not math.isfinite(comparable):
    return 'diverged'
  return f'{10**comparable:.3g}' if task.orders else f'{comparable:.4f}'


def average(contest: Contest, label: str) -> str:
  """The final loss of a rule over its seeds; how many diverged, where any did."""
  final = contest.final[label]
  fine = final[np.isfinite(final)]
  lost = len(final) - len(fine)
  if not len(fine):
    return f'diverged ({lost} of {len(final)})'
  mean = loss(contest.task, fine.mean())
  return f'{mean} ({lost} of {len(final)} diverged)' if lost else mean


def distance(task: Task, interval: report.Interval) -> str:
  """`0.052 (0.043 to 0.061)`, or as a factor for a task of orders."""
  if task.orders:
    value, low, high = (10**x for x in interval)
    return f'{value:.3g}x ({low:.3g}x to {high:.3g}x)'
  return f'{interval.value:.3g} ({interval.low:.3g} to {interval.high:.3g})'


def behind(contest: Contest, label: str) -> str:
  """How far a rule is behind the first of its task."""
  first = next(iter(contest.entries))
  if label == first:
    return ''
  (verdict,) = [v for v in contest.verdicts if (v.first, v.second) == (first, label)]
  if verdict.interval is None:
    return 'no verdict: diverged'
  far = distance(contest.task, verdict.interval)
  return far if verdict.better else f'no difference shown: {far}'


def verdict(task: Task, found: Verdict) -> str:
  """One pair of rules in a sentence."""
  if found.interval is None:
    return f'{found.first} and {found.second}: no verdict, for runs diverged.'
  far = distance(task, found.interval)
  if not found.better:
    return f'{found.first} and {found.second}: no difference shown, {far}.'
  return f'{found.first} is better than {found.second} by {far}.'


def rate(entry: Entry) -> str:
  """The tuned rate; marked where the grid ends there."""
  return settings.short(entry.rates[entry.best]) + (' (edge)' if entry.at_edge else '')


def headline(contest: Contest) -> str:
  """Who is ahead on a task."""
  first, *others = contest.entries
  name, unit = contest.task.name, contest.task.unit
  if not np.isfinite(contest.final[first]).all():
    return f'On {name} every rule diverged in some run: there is no verdict.'
  best = f'{first} reached the lowest loss on {name}, {average(contest, first)} {unit}'.rstrip()
  beside = [v for v in contest.verdicts if v.first == first]
  ahead = [v.second for v in beside if v.better]
  tied = [v.second for v in beside if v.interval and not v.better]
  lost = [v.second for v in beside if not v.interval]
  if len(ahead) > 1 and len(ahead) == len(others):
    ahead = ['every other rule']
  parts = [
    f'it is ahead of {listed(ahead)}' if ahead else '',
    f'no difference from {listed(tied)} is shown' if tied else '',
    f'there is no verdict on {listed(lost)}, which diverged' if lost else '',
  ]
  return '; '.join([best, *filter(None, parts)]) + '.'


def edges(contest: Contest) -> str:
  """A warning about rules whose best rate may lie outside of their grids."""
  found = [label for label, entry in contest.entries.items() if entry.at_edge]
  if not found:
    return ''
  keys = listed([f'rules.{label}.learning_rate' for label in found])
  return (
    f'The best rate of {listed(found)} lies at the edge of the grid: it may do better; move {keys}.'
  )


def robust(one: Robustness) -> str:
  """What AdaGrad-Norm's rate did on a task, beside SGD's."""
  works = {label: f'{decades.mean():.1f}' for label, decades in one.decades.items()}
  best = {label: loss(one.task, final.mean(axis=1).min()) for label, final in one.final.items()}
  wider = one.wider
  return (
    f'{"Seen" if wider.low > 0 else "Not seen"} on {one.task.name}: AdaGrad-Norm with b0 varied '
    f'works over {works[BY_B0]} decades of first rates and SGD over {works[SGD]}, a difference of '
    f'{wider.value:.1f} decades ({wider.low:.1f} to {wider.high:.1f}); their best losses are '
    f'{best[BY_B0]} and {best[SGD]}. With b0 fixed and its rate varied it works over '
    f'{works[BY_RATE]} decades, and its best loss is {best[BY_RATE]}.'
  )


def flipped(one: Flips, confidence: float) -> str:
  """What the decay did to the order of runs on a task."""
  start, end = one.steps[one.at], one.steps[-1]
  moved, rules = one.moved
  higher = (
    f'The best rate at the end is higher than the best at step {start} for {moved} of {rules} '
    f'rules.'
  )
  if not one.shown:
    return (
      f'Not seen on {one.task.name}: of {one.pairs} pairs of runs none has, at {confidence:.0%} '
      f'confidence, one order at step {start} and the other at step {end}. {higher}'
    )
  return (
    f'Seen on {one.task.name}: {len(one.shown)} of {one.pairs} pairs of runs change their order '
    f'between step {start}, where the rate starts to fall, and step {end}. The clearest: '
    f'{flip(one, one.shown[0])} {higher}'
  )


def flip(one: Flips, found: Flip) -> str:
  """One pair whose order changes."""
  start, end = one.steps[one.at], one.steps[-1]
  before, after = found.before.value, found.after.value
  if one.task.orders:
    return (
      f'{found.first} has {10**-before:.3g}x the loss of {found.second} at step {start} and '
      f'{10**-after:.3g}x at step {end}.'
    )
  return (
    f'{found.first} is {-before:.3g} {one.task.unit} behind {found.second} at step {start} and '
    f'{after:.3g} ahead at step {end}.'
  )


def stalled(one: Stall) -> str:
  """How far each storage came of the way that float32 parameters came."""
  start = one.loss[FLOAT32][:, 0].mean()
  ends = {label: x[:, -1].mean() for label, x in one.loss.items()}
  fall = start - ends[FLOAT32]
  share = {label: (start - end) / fall if fall > 0 else math.nan for label, end in ends.items()}
  better = {(v.better, v.second if v.better == v.first else v.first) for v in one.verdicts}
  seen = {(FLOAT32, NEAREST), (STOCHASTIC, NEAREST)} <= better
  apart = (FLOAT32, STOCHASTIC) in better or (STOCHASTIC, FLOAT32) in better
  between = 'a difference' if apart else 'no difference'
  return (
    f'{"Seen" if seen else "Not seen"} on {one.task.name}: in {one.steps[-1]} steps the loss fell '
    f'from {loss(one.task, start)} to {loss(one.task, ends[FLOAT32])} with parameters in float32, '
    f'{share[NEAREST]:.0%} of that way in bfloat16 rounded to nearest, and {share[STOCHASTIC]:.0%} '
    f'in bfloat16 rounded stochastically; between that and float32 {between} is shown.'
  )


def listed(names: list[str]) -> str:
  """`a, b and c`."""
  return ' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)
