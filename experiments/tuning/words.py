"""What the loop says: where it starts, what a round would cost, and each move with its reason."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.sweeping import words
from experiments.tuning import moves
from experiments.tuning.dimensions import TUNABLE
from experiments.tuning.moves import Measured, Plan, Round


def setting(values: Mapping[str, Any]) -> str:
  """`learning rate 0.0018, rank 16`."""
  return ', '.join(
    f'{TUNABLE[key].name} {words.short(value)}' for key, value in values.items() if key in TUNABLE
  )


def listed(values: Sequence[Any]) -> str:
  return ', '.join(map(words.short, values))


def measured(losses: Sequence[float], digits: int = 4) -> str:
  """`0.5120 ± 0.0041`."""
  mean = moves.mean(losses)
  if not math.isfinite(mean):
    return 'no number'
  return f'{mean:.{digits}f} ± {moves.spread(losses):.{digits}f}'


def costs(plan: Plan, steps: int, minutes: float) -> str:
  """A round before it runs."""
  return f'{plan.why}: {listed(plan.values)}; at most {steps:,} steps, about {minutes:.1f} minutes'


def move(one: Round) -> str:
  """What a round has shown and what follows from it."""
  name, seeds = TUNABLE[one.plan.key].name, len(one.before.losses)
  old, new = words.short(one.present), words.short(one.best)
  if one.best == one.present:
    return f'{name} stays {old}: held-out loss {measured(one.before.losses)}; {around(one)}'
  gain = moves.mean(one.before.losses) - moves.mean(one.after.losses)
  if one.pays:
    return (
      f'{name} {old} -> {new}: held-out loss {measured(one.after.losses)} over {seeds} seeds, '
      f'before {measured(one.before.losses)}; {around(one)}'
    )
  if gain <= 0:
    return (
      f'{name} {old} -> {new} not taken: better with the first seed, and over {seeds} seeds '
      f'{measured(one.after.losses)} where it was {measured(one.before.losses)}'
    )
  share = 100 * gain / abs(moves.mean(one.before.losses) or 1.0)
  return (
    f'{name} {old} -> {new} not taken: {gain:.4f} ({share:.1f}%) better, and seeds move one '
    f'setting by {one.noise:.4f}'
  )


def around(one: Round) -> str:
  """The loss beside the best value, with the first seed."""
  tried = list(one.plan.values)
  place = tried.index(one.best)
  sides = [tried[i] for i in (place - 1, place + 1) if 0 <= i < len(tried)]
  shown = ', '.join(f'{words.short(x)}: {loss(one.response.get(x, math.nan))}' for x in sides)
  best = loss(one.response.get(one.best, math.nan))
  if len(sides) == 2:
    return f'with the first seed the loss is higher on both sides ({shown}; here {best})'
  end, other = ('largest', 'smaller') if place else ('smallest', 'larger')
  return f'it is the {end} of this round, and {other} ones are worse ({shown}; here {best})'


def loss(value: float) -> str:
  return f'{value:.4f}' if math.isfinite(value) else 'died'


def headline(
  values: Mapping[str, Any],
  name: str,
  rows: int,
  first: Measured,
  last: Measured,
  steps: int,
  minutes: float,
) -> str:
  """One sentence: the setting, its score and that of the start, and what it took."""
  start = f'the start {measured(first.scores, 3)}'
  if last is first:
    start = 'the setting of the start, which nothing beat by more than seeds move it'
  return (
    f'{setting(values)}: {name} on {rows:,} held-out rows {measured(last.scores, 3)} over '
    f'{len(last.scores)} seeds, {start}; {steps:,} steps in {minutes:.1f} minutes.'
  )
