"""The configuration of a comparison, checked, and what follows from it."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from configs import compare_optimizers
from experiments import keys
from experiments.keys import Config
from jaxtune import optim
from jaxtune.typing import InputError

TASKS = ('quadratic', 'digits', 'language')
EFFECTS = ('adagrad_norm', 'rank_flips', 'bfloat16')
LEAST = {
  0: (
    'seed',
    'memory_limit_gb',
    'warmup',
    'decay',
    'quadratic.noise',
    *(f'{task}.clip_norm' for task in TASKS),
    'adagrad_norm.eta.quadratic',
    'adagrad_norm.eta.digits',
  ),
  1: (
    *(f'{task}.{key}' for task in TASKS for key in ('steps', 'points', 'rates', 'tuning_seeds')),
    'quadratic.rows',
    'quadratic.columns',
    'quadratic.condition',
    'digits.batch_size',
    'language.rows',
    'language.batch_size',
    'language.held_out',
    'language.width',
    'language.hidden',
    'language.layers',
    'language.heads',
    'language.kv_heads',
    'adagrad_norm.rates',
    'bfloat16.steps',
    'bfloat16.points',
  ),
  2: (
    *(f'{name}.seeds' for name in (*TASKS, 'adagrad_norm', 'bfloat16')),
    'language.length',
  ),
  257: ('language.vocabulary',),
}
ABOVE = {0: ('adagrad_norm.low', 'bfloat16.learning_rate'), 1: ('spacing',)}
FILE = 'configs/compare_optimizers.py'


class Rule(NamedTuple):
  """A rule of the comparison under its label, with the centre of its grid of rates by task."""

  label: str
  name: str
  centres: dict[str, float]
  hyperparameters: dict[str, Any]


def check_key(name: str) -> None:
  """Refuses a key that the configuration has not; a file of one's own may have any rule."""
  keys.check_key(name, compare_optimizers.get_config(), free=('rules.',), file=FILE)


def check(config: Config) -> None:
  """Refuses values that make no sense, before anything is read or compiled.

  Raises:
    InputError: naming the key, its value and the remedy.
  """
  values = dict(keys.flatten(config))
  known = [name for name, _ in keys.flatten(compare_optimizers.get_config())]
  keys.check_values(values, [n for n in known if not n.startswith('rules.')], check_key, FILE)
  for least, names in LEAST.items():
    for name in names:
      if values[name] < least:
        why = ': an interval needs two seeds' if name.endswith('.seeds') else ''
        raise InputError(f'{name} is {values[name]}; it must be at least {least}{why}')
  for bound, names in ABOVE.items():
    for name in names:
      if not values[name] > bound:
        raise InputError(f'{name} is {values[name]}; it must be above {bound}')
  if not config.adagrad_norm.low < config.adagrad_norm.high:
    raise InputError(
      f'adagrad_norm.low is {config.adagrad_norm.low}; it must be below adagrad_norm.high, '
      f'{config.adagrad_norm.high}'
    )
  if config.bfloat16.task not in TASKS:
    raise InputError(f'bfloat16.task is {config.bfloat16.task!r}; choose one of {", ".join(TASKS)}')
  if not 0 < config.confidence < 1:
    raise InputError(f'confidence is {config.confidence}; it must lie between 0 and 1')
  if not (chosen(config, 'tasks', TASKS) or chosen(config, 'effects', EFFECTS)):
    raise InputError('tasks and effects are both empty; give one, as in --config.tasks=digits')
  for task in chosen(config, 'tasks', TASKS):
    for rule in rules(config, [task]):
      make(config, task, rule)
  if 'bfloat16' in chosen(config, 'effects', EFFECTS):
    optim.create(config.bfloat16.rule, config.bfloat16.learning_rate)
  if 'rank_flips' in chosen(config, 'effects', EFFECTS):
    if not chosen(config, 'tasks', TASKS):
      raise InputError(
        'effects has rank_flips, but tasks is empty: it looks at their runs; give one, as in '
        '--config.tasks=quadratic'
      )
    if config.schedule in ('constant', 'rsqrt', 'cyclic'):
      raise InputError(
        f'effects has rank_flips, but the schedule {config.schedule} never decays to its end; '
        'choose wsd, cosine or linear, or leave rank_flips out'
      )


def needed(config: Config) -> list[str]:
  """The tasks that rules or effects run on."""
  tasks = {*chosen(config, 'tasks', TASKS)}
  effects = chosen(config, 'effects', EFFECTS)
  if 'adagrad_norm' in effects:
    tasks |= {task for task, eta in config.adagrad_norm.eta.items() if eta}
  if 'bfloat16' in effects:
    tasks.add(config.bfloat16.task)
  return [task for task in TASKS if task in tasks]


def chosen(config: Config, key: str, known: Sequence[str]) -> list[str]:
  """The names in a value such as 'digits,language', in the order of `known`."""
  names = [name.strip() for name in config[key].split(',') if name.strip()]
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise InputError(f'{key} has {name!r}; {hint}choose among {", ".join(known)}')
  return [name for name in known if name in names]


def rules(config: Config, tasks: Sequence[str]) -> list[Rule]:
  """The rules to compare, each with a rate for every one of the tasks.

  Raises:
    InputError: no rules, or one without a rate.
  """
  if not config.rules:
    raise InputError(
      "rules is empty; give some, as in config.rules.adamw = {'learning_rate': 1e-3}"
    )
  found = []
  for label, given in config.rules.items():
    if not isinstance(given, Mapping | Config):
      raise InputError(f'rules.{label} is {given!r}; give its hyperparameters, as in {FILE}')
    hyperparameters = dict(given)
    centre = hyperparameters.pop('learning_rate', None)
    centres = {}
    for task in tasks:
      rate = centre.get(task) if isinstance(centre, Mapping | Config) else centre
      if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise InputError(
          f'rules.{label} has the learning rate {rate!r} for the task {task}; give the centre of '
          f'its grid, a number above zero, as rules.{label}.learning_rate.{task} or for all tasks '
          f'as rules.{label}.learning_rate'
        )
      centres[task] = float(rate)
    name = hyperparameters.pop('rule', label)
    found.append(Rule(label, name, centres, hyperparameters))
  return found


def make(config: Config, task: str, rule: Rule) -> optax.GradientTransformationExtraArgs:
  """The rule with its schedule for the steps of a task."""
  shared = {
    'schedule': schedule(config, config[task].steps),
    'clip_norm': config[task].clip_norm or None,
  }
  return optim.create(rule.name, rule.centres[task], **(shared | rule.hyperparameters))


def schedule(config: Config, steps: int) -> Any:
  """The same shape for every rule; `decay` is for wsd alone."""
  options: dict[str, Any] = {'warmup': keys.count(config.warmup)}
  if config.schedule == 'wsd':
    options['decay'] = keys.count(config.decay)
  return optim.schedule(config.schedule, steps=steps, **options)


def rates(config: Config, task: str, rule: Rule) -> list[float]:
  """The grid of a rule: as many as any other rule's, spaced evenly around its centre."""
  number = config[task].rates
  powers = np.arange(number) - (number - 1) / 2
  return [float(np.float32(rule.centres[task] * config.spacing**p)) for p in powers]


def short(rate: float) -> str:
  """A rate as people write it: 0.0095, 32, 100."""
  return f'{float(f"{rate:.2g}"):g}'


def boundaries(steps: int, points: int, also: Sequence[int] = ()) -> list[int]:
  """Steps at which a run is measured: `points` after the first, evenly, and some others."""
  even = np.linspace(0, steps, points + 1).round().astype(int)
  return sorted({*even.tolist(), *also})


def decay_start(config: Config, steps: int) -> int:
  """The first step at a falling rate under wsd; the middle of the run under other schedules."""
  if config.schedule != 'wsd':
    return steps // 2
  decay = keys.count(config.decay)
  return steps - (decay if isinstance(decay, int) else round(decay * steps))
