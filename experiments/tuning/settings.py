"""The configuration of a loop, checked, and where it starts."""

import inspect
from collections.abc import Mapping
from typing import Any

from experiments import build, keys
from experiments.keys import Config
from experiments.sweeping import settings as sweeps
from experiments.sweeping.space import with_values
from experiments.tuning import dimensions
from experiments.tuning.moves import Budget, Plan
from jaxtune import adapt, optim, plan
from jaxtune.plan import Advice
from jaxtune.typing import InputError


def check(config: Config) -> None:
  """Refuses what cannot be tuned, before anything is loaded.

  Raises:
    InputError: what a sweep refuses too, no budget, or an order that makes no sense.
  """
  keys.check(config)
  if not any(budget(config)):
    raise InputError('tune.steps and tune.minutes are both 0; give a budget with one of them')
  if config.sweep.space:
    raise InputError(
      'sweep.space is set, and tune searches what tune.order names; leave sweep.space out'
    )
  if config.sweep.seeds < 2:
    raise InputError(
      'sweep.seeds is 1, and a gain must be larger than what seeds move; set it to 2 or more'
    )
  tuned = tuple(config.tune.order)
  if not tuned:
    raise InputError(f'tune.order is empty; name keys: {", ".join(dimensions.TUNABLE)}')
  for place, key in enumerate(tuned):
    if key not in dimensions.TUNABLE:
      raise InputError(
        f'tune.order names {key!r}; choose from {", ".join(dimensions.TUNABLE)}, or search it with '
        'experiments.sweep'
      )
    if tuned.count(key) > 2 or (key in tuned[:place] and not dimensions.TUNABLE[key].finer):
      raise InputError(f'tune.order names {key} too often; leave one out')
  if not order(config):
    raise InputError(
      f'tune.order names nothing that {config.method.name} and {config.optim.name} have; '
      'add optim.lr'
    )
  first = order(config)[0]
  value = dict(keys.flatten(config)).get(first, 0.0)
  sweeps.check(of_round(config, {}, Plan(first, dimensions.around(first, value), 0, ''), 0))


def budget(config: Config) -> Budget:
  return Budget(config.tune.steps, config.tune.minutes)


def order(config: Config) -> list[str]:
  """`tune.order` without what the method and the rule do not have."""
  has = {'optim.lr': True, 'optim.warmup': True}
  options = adapt.options_of(config.method.name)
  has['method.rank'] = 'rank' in options and not config.method.adapter  # which has its own
  has['method.options.dropout'] = 'dropout' in options and not config.method.adapter
  rule = inspect.signature(optim.factory(config.optim.name)).parameters
  has['optim.weight_decay'] = 'weight_decay' in rule
  return [key for key in config.tune.order if has[key]]


def start(config: Config, loaded: build.Loaded) -> tuple[dict[str, Any], list[str]]:
  """(the values to start from, a line on each): the adviser's, where the user has not chosen."""
  advised = plan.starting_point(
    config.method.name,
    config.optim.name,
    width=loaded.model.config.width,
    steps=build.count_steps(config, loaded.corpus.train.examples),
    task=config.task,
  )
  if config.method.adapter:
    advised = tuple(one for one in advised if not one.key.startswith('method.'))
  return chosen(config, advised)


def chosen(config: Config, advised: tuple[Advice, ...]) -> tuple[dict[str, Any], list[str]]:
  """`start` from what is advised."""
  flat, usual = dict(keys.flatten(config)), dict(keys.flatten(keys.defaults()))
  own = set(keys.overridden(config))
  values, lines = {}, []
  for one in advised:
    if one.key in own:
      values[one.key] = flat[one.key]
      other = '' if flat[one.key] == one.value else f' (usual is {one.value:g}: {one.reason})'
      lines.append(f'{one.key} {flat[one.key]:g}, from the configuration{other}')
    else:
      values[one.key] = one.value
      lines.append(f'{one.key} {one.value:g}: {one.reason} ({one.source})')
  for key in dict.fromkeys(order(config)):
    if key not in values:
      values[key] = flat.get(key, 0.0)
      whose = 'from the configuration' if key in own or key not in usual else 'the default'
      lines.append(f'{key} {values[key]:g}, {whose}')
  return values, lines


def of_round(config: Config, values: Mapping[str, Any], one: Plan, number: int) -> Config:
  """The configuration of a round's sweep, in which every value is tried to the end."""
  c = config.sweep
  widest = max(len(one.values), 2 * (c.seeds - 1))
  return with_values(
    config,
    {
      **values,
      'sweep.space': (f'{one.key} {", ".join(map(repr, one.values))}',),
      'sweep.sampler': 'grid',
      'sweep.scheduler': 'halving',
      'sweep.candidates': len(one.values),
      'sweep.factor': 1.0,
      'sweep.lanes': min(c.lanes, widest),
      'sweep.study': f'{c.study}-{number + 1}',
    },
  )
