"""What experiments/tune.py does with its flags."""

import pathlib
import time

from experiments import build, workdir
from experiments.keys import Config
from experiments.tuning import dimensions, finish, moves, page, rounds, settings, words
from experiments.tuning.moves import Plan, Round
from experiments.tuning.rounds import Loop
from jaxtune.typing import InputError

FILE = 'tune.json'


def start(config: Config, folder: str | None, *, dry_run: bool = False) -> int:
  """Tunes a configuration in a folder, or prints what it would do; returns the exit code."""
  settings.check(config)
  if dry_run:
    forecast(loop(config, pathlib.Path()))
    return 0
  if not folder:
    raise InputError('--workdir is missing: the folder of this loop')
  path = pathlib.Path(folder)
  workdir.check(path, config)
  found = workdir.result(path)
  if found and found.get('budget') == list(settings.budget(config)):
    print(f'{path} holds this loop, finished; nothing to do')
    finish.end(path, found['headline'])
    return 0
  with workdir.locked(path):
    clock = Clock(path / FILE)
    return run(loop(config, path), clock)


def loop(config: Config, path: pathlib.Path) -> Loop:
  """Loads what all rounds need.

  Raises:
    InputError: as `build.job`.
  """
  loaded = build.load(config)
  values, reasons = settings.start(config, loaded)
  steps = build.count_steps(config, loaded.corpus.train.examples)
  return Loop(config, path, rounds.Shared(loaded), values, reasons, steps, settings.order(config))


def run(it: Loop, clock: 'Clock') -> int:
  """Round after round, those that have ended only read; returns the exit code."""
  print('\n'.join(f'start: {line}' for line in it.reasons), flush=True)
  done: list[Round] = []
  while True:
    plan = moves.following(it.order, it.values(done), done)
    if isinstance(plan, str):
      break
    place = rounds.folder(it.folder, len(done), plan)
    if not rounds.begun(place):
      reason = unaffordable(it, done, plan, clock.seconds())
      if reason:
        plan = reason
        break
    print(f'\nround {len(done) + 1}: {plan.why}', flush=True)
    code = rounds.run(it.round(done, plan), place, it.shared)
    workdir.claim(it.folder, it.config)  # only now: what cannot begin leaves no trace
    clock.save()
    if code:
      return code
    done.append(rounds.read(it.config, place, plan, it.values(done)[plan.key]))
    print(f'move {len(done)}: {words.move(done[-1])}', flush=True)
    page.write(it, done, clock.seconds(), 'the loop goes on')
  print(f'\nend: {plan}', flush=True)
  finish.end(it.folder, finish.finish(it, done, clock.seconds(), plan))
  return 0


def unaffordable(it: Loop, done: list[Round], plan: Plan, seconds: float) -> str:
  """Why the budget does not hold a round; empty where it does.

  Raises:
    InputError: it is the first.
  """
  budget = settings.budget(it.config)
  steps = moves.cost(plan, it.config.sweep.seeds, it.steps)
  used = sum(one.steps for one in done)
  pace = 0.0
  if budget.minutes:
    pace = seconds / used if used else rounds.seconds_per_step(it.round(done, plan), it.shared)
  minutes = steps * pace / 60
  if budget.holds(used + steps, seconds / 60 * bool(done) + minutes):
    return ''
  takes = f'takes up to {steps:,} steps' + f', about {minutes:.1f} minutes' * bool(budget.minutes)
  if not done:
    given = f'tune.steps {budget.steps:,}, tune.minutes {budget.minutes:g}'
    raise InputError(f'the budget ({given}) is too small: the first round {takes}; give more of it')
  left = [f'{budget.steps - used:,} steps'] if budget.steps else []
  left += [f'{budget.minutes - seconds / 60:.1f} minutes'] if budget.minutes else []
  return f'the next round ({plan.why}) {takes}, and {" and ".join(left)} are left'


def forecast(it: Loop) -> None:
  """Prints the rounds that would run if none moved anything, with their costs."""
  budget, seeds = settings.budget(it.config), it.config.sweep.seeds
  print('\n'.join(f'start: {line}' for line in it.reasons))
  used, pace = 0, 0.0
  for number, key in enumerate(it.order):
    values = it.start[key]
    tried = dimensions.around(key, values, finer=key in it.order[:number])
    name = dimensions.TUNABLE[key].name
    plan = Plan(key, tried, number, f'round {number + 1}, {name}')
    pace = pace or rounds.seconds_per_step(it.round([], plan), it.shared)
    steps = moves.cost(plan, seeds, it.steps)
    used += steps
    within = budget.holds(used, used * pace / 60)
    print(words.costs(plan, steps, steps * pace / 60) + '; beyond the budget' * (not within))
  print(
    f'{used:,} steps in about {used * pace / 60:.1f} minutes in all; {moves.MISSES} rounds in a '
    'row that do not pay end the loop, and a best value at an edge adds a round'
  )


class Clock:
  """Seconds of this loop, those of earlier starts included."""

  def __init__(self, path: pathlib.Path):
    self._path, self._began = path, time.monotonic()
    self._before = workdir.read_json(path)['seconds'] if path.is_file() else 0.0

  def seconds(self) -> float:
    return float(self._before) + time.monotonic() - self._began

  def save(self) -> None:
    workdir.write_json(self._path, {'seconds': self.seconds()})
