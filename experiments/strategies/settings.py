"""The configuration of a comparison of strategies, checked, and what follows from it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from configs import compare_methods
from experiments import keys
from experiments.keys import Config
from jaxtune import adapt
from jaxtune.typing import InputError

FILE = 'configs/compare_methods.py'
UNTRAINED = ('zero_shot', 'few_shot')
_OWN = ('compare', 'strategies')


class Strategy(NamedTuple):
  """One way to do the job; `method` is empty where nothing trains."""

  label: str
  method: str
  options: Mapping[str, Any]
  rates: tuple[float, ...]


def check_key(name: str) -> None:
  """Refuses a key that no such configuration has."""
  keys.check_key(name, compare_methods.get_config(), free=('strategies.', *keys.FREE), file=FILE)


def check(config: Config) -> None:
  """Refuses values that make no sense, before anything is read."""
  values = dict(keys.flatten(config))
  needed = [name for name, _ in keys.flatten(compare_methods.get_config())]
  keys.check_values(
    values, [name for name in needed if not name.startswith('strategies.')], check_key, FILE
  )
  keys.check(base(config))
  if config.task != 'classification':
    raise InputError(f'task is {config.task!r}; strategies are compared on classification')
  if not config.train.steps:
    raise InputError('train.steps is 0; a comparison needs a number of steps, the same for all')
  for name in ('tuning_seeds', 'shots'):
    if config.compare[name] < 1:
      raise InputError(f'compare.{name} is {config.compare[name]}; it must be at least 1')
  if config.compare.seeds < 2:
    raise InputError(f'compare.seeds is {config.compare.seeds}; an interval needs at least 2')
  if not 0 < config.compare.confidence < 1:
    raise InputError(f'compare.confidence is {config.compare.confidence}; it is between 0 and 1')
  if not config.compare.margin > 0:
    raise InputError(f'compare.margin is {config.compare.margin}; it must be above zero')
  for name in ('valid', 'test'):
    if not config.data[name]:
      raise InputError(f'data.{name} is 0; hold out rows to choose rates and rows to compare on')
  labels = [strategy.label for strategy in strategies(config)]
  if config.compare.reference not in labels:
    raise InputError(
      f'compare.reference is {config.compare.reference!r}; choose one of {", ".join(labels)}'
    )


def base(config: Config) -> Config:
  """The configuration of one run, without what is about the comparison."""
  return Config({name: config[name] for name in config if name not in _OWN})


def of_run(config: Config, strategy: Strategy, rate: float) -> Config:
  """The configuration of a run of a strategy."""
  one = base(config).copy_and_resolve_references()
  one.method.name = strategy.method
  one.method.options = Config(dict(strategy.options))
  one.optim.lr = rate
  return one


def strategies(config: Config) -> list[Strategy]:
  """All of them, in their order.

  Raises:
    InputError: one that is not known, or cannot be used.
  """
  found = []
  for label, given in config.strategies.items():
    unknown = sorted(set(given) - {'method', 'options', 'rates'})
    if unknown:
      raise InputError(
        f'strategies.{label} has {unknown[0]!r}; it may have method, options and rates'
      )
    method = given.get('method', '' if label in UNTRAINED else label)
    if method and method not in adapt.METHODS:
      raise InputError(
        f'strategies.{label} is of the method {method!r}; known: {", ".join(adapt.METHODS)}, '
        f'{", ".join(UNTRAINED)}'
      )
    rates = tuple(given.get('rates', ()))
    if method and not (rates and all(isinstance(r, int | float) and r > 0 for r in rates)):
      raise InputError(f'strategies.{label}.rates are {rates}; give learning rates above zero')
    known = adapt.options_of(method) if method else []
    for option in given.get('options', {}):
      if option not in known:
        raise InputError(
          f'strategies.{label} sets {option!r}; the method {method} has {", ".join(known)}'
        )
    found.append(Strategy(label, method, dict(given.get('options', {})), rates))
  if not found:
    raise InputError(f'strategies is empty; start from {FILE}')
  return found


def descriptions(config: Config, names: tuple[str, ...]) -> list[str]:
  """What zero-shot compares a text with, of each label in its order.

  Raises:
    InputError: a label without one.
  """
  given = dict(
    (label.strip(), text.strip())
    for label, sign, text in (
      part.partition('=') for part in config.compare.descriptions.split('|')
    )
    if sign
  )
  missing = [name for name in names if not given.get(name)]
  if missing:
    raise InputError(
      f'compare.descriptions is {config.compare.descriptions!r}, without the label {missing[0]!r}; '
      'give each label a text, as in 0=a bad movie|1=a good movie'
    )
  return [given[name] for name in names]
