"""What a sweep searches: keys of the configuration, each with a range or a list of values.

optim.lr 1e-4..1e-2 log     any number in between, by its logarithm
optim.weight_decay 0..0.1   any number in between
method.rank 4, 16, 64       one of these
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import keys, objective
from experiments.keys import Config
from jaxtune import adapt, optim
from jaxtune.typing import InputError

# What is data in a lane. Everything else is part of the program.
LANES: tuple[str, ...] = (
  *('seed', 'optim.lr', 'optim.weight_decay', 'optim.clip_norm', 'optim.warmup'),
  *('method.rank', 'method.alpha', 'method.options.dropout', 'objective.kl', 'objective.l2_sp'),
)
GROUPS = ('optim.hyperparameters.', 'objective.options.')  # all numbers in them
_RANGE = re.compile(r'^(\S+?)\.\.(\S+?)(?:\s+(log))?$')


class Dimension(NamedTuple):
  """One key and what it may be: one of `choices`, or a number from `low` to `high`."""

  key: str
  choices: tuple[Any, ...] = ()
  low: float = 0.0
  high: float = 0.0
  log: bool = False

  def __contains__(self, value: object) -> bool:
    if self.choices:
      return value in self.choices
    return isinstance(value, int | float) and self.low <= value <= self.high

  @property
  def largest(self) -> Any:
    return max(self.choices) if self.choices else self.high

  def text(self) -> str:
    if self.choices:
      return ', '.join(map(str, self.choices))
    return f'{self.low:g}..{self.high:g}{" log" if self.log else ""}'


def parse(lines: Sequence[str], config: Config) -> list[Dimension]:
  """The dimensions of `sweep.space`.

  Raises:
    InputError: an unknown key, a value that it cannot have, an empty range, or a key that no lane
      can have of its own.
  """
  if isinstance(lines, str):
    lines = (lines,)
  if not lines:
    raise InputError("sweep.space is empty; give keys and values, as ('optim.lr 1e-4..1e-2 log',)")
  found = [_dimension(str(line), config) for line in lines]
  names = [dimension.key for dimension in found]
  for name in names:
    if names.count(name) > 1:
      raise InputError(f'sweep.space has {name} twice; give it once')
  return found


def _dimension(line: str, config: Config) -> Dimension:
  key, _, values = line.strip().partition(' ')
  values = values.strip()
  where = f'sweep.space {line!r}'
  keys.check_key(key)
  if not values:
    raise InputError(f'{where}: no values; give a range, as 1e-4..1e-2 log, or a list, as 4, 8, 16')
  _check_lane(key, line, config)
  match = _RANGE.match(values)
  if match:
    low, high = (_number(text, where) for text in match.groups()[:2])
    if not low < high:
      raise InputError(f'{where}: the range is empty; give the smaller end first')
    if match[3] and low <= 0:
      raise InputError(f'{where}: a range by logarithm must be above 0')
    if key in ('seed', 'method.rank'):
      raise InputError(f'{where}: {key} is a whole number; list its values, as 4, 8, 16')
    return Dimension(key, low=low, high=high, log=bool(match[3]))
  choices = tuple(_number(text.strip(), where) for text in values.split(','))
  if len(set(choices)) < len(choices):
    raise InputError(f'{where}: a value is listed twice; list it once')
  if key in ('seed', 'method.rank'):
    if not all(value == int(value) for value in choices):
      raise InputError(f'{where}: {key} is a whole number')
    choices = tuple(int(value) for value in choices)
  return Dimension(key, choices)


def _number(text: str, where: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise InputError(f'{where}: {text!r} is no number; only numbers are data that a lane can have')
  return value


def _check_lane(key: str, line: str, config: Config) -> None:
  where = f'sweep.space {line!r}'
  if key not in LANES and not key.startswith(GROUPS):
    values = [text.strip() for text in line.strip().partition(' ')[2].split(',')]
    each = '; '.join(f'--config.{key}={value}' for value in values if '..' not in value)
    raise InputError(
      f'{where}: {key} is part of the program and not data, so each value needs a program of its '
      f'own; group the candidates by it, one sweep with {each or f"--config.{key}=VALUE"} (lanes '
      f'can differ in {", ".join(LANES)}, optim.hyperparameters and objective.options)'
    )
  option = key.rpartition('.')[2]
  if key.startswith('method.') and option not in adapt.options_of(config.method.name):
    raise InputError(f'{where}: the method {config.method.name} has no {option}; leave it out')
  if key.startswith('objective.options.') and option not in objective.options_of(config):
    raise InputError(
      f'{where}: the objective has no {option}; it has {", ".join(objective.options_of(config))}'
    )


def grid(space: Sequence[Dimension]) -> list[dict[str, Any]]:
  """Every combination of the listed values.

  Raises:
    InputError: a range, which has no end of values.
  """
  for dimension in space:
    if not dimension.choices:
      raise InputError(
        f'sweep.sampler is grid, and {dimension.key} has the range {dimension.text()}; list values'
      )
  names = [dimension.key for dimension in space]
  return [
    dict(zip(names, values, strict=True))
    for values in itertools.product(*(dimension.choices for dimension in space))
  ]


def candidates(config: Config, space: Sequence[Dimension]) -> int:
  """How many settings are tried."""
  return len(grid(space)) if config.sweep.sampler == 'grid' else config.sweep.candidates


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
  """A copy of the configuration with other values of some keys."""
  made = config.copy_and_resolve_references()
  with made.unlocked():
    for name, value in values.items():
      made.update_from_flattened_dict({name: value})
  return made


def values_of(config: Config, space: Sequence[Dimension]) -> dict[str, Any]:
  """What a configuration has for the keys that are searched.

  Raises:
    InputError: it has none, and what takes it has no number as its default.
  """
  flat = dict(keys.flatten(config))
  found = {d.key: flat.get(d.key, default(config, d.key)) for d in space}
  for key, value in found.items():
    if not isinstance(value, int | float):
      raise InputError(
        f'sweep.space has {key}, whose default is {value!r}; give the number to compare with, '
        f'--config.{key}=VALUE'
      )
  return found


def default(config: Config, key: str) -> Any:
  """Of an option that the configuration leaves to the function that takes it."""
  function: Callable[..., Any]
  if key.startswith('objective.options.'):
    function = objective.factory(config)
  elif key.startswith('optim.hyperparameters.'):
    function = optim.factory(config.optim.name)
  else:
    function = adapt.METHODS[config.method.name]
  given = inspect.signature(function).parameters.get(key.rpartition('.')[2])
  return None if given is None or given.default is given.empty else given.default
