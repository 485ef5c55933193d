"""Which keys a configuration may hold, and which values make sense."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections.config_dict import ConfigDict as Config

from configs import base
from experiments import objective, trace
from experiments.tasks import TASKS
from jaxtune import adapt, data, models
from jaxtune.typing import InputError

# Keys that a rule, a method, an objective or the data name.
FREE: tuple[str, ...] = ('optim.hyperparameters.', 'method.options.', 'objective.options.')
FREE += ('rollout.options.', 'data.columns.')
DTYPES = ('', 'bfloat16', 'float32', 'float16')
SUPERVISE = ('assistant', 'last', 'completion', 'all')
BAD = ('refuse', 'skip')
PACKS = ('', 'first_fit', 'best_fit', 'concat')
REFERENCES = ('start', 'cached')
SCALES = ('group', 'batch', 'none')
SCORES = ('likelihood', 'per_token', 'calibrated', 'batch_calibrated')
LEAST = {  # the smallest value of each that makes sense
  -1: ('data.seed',),
  0: (
    'seed',
    'data.valid',
    'data.test',
    'optim.warmup',
    'optim.weight_decay',
    'optim.clip_norm',
    'optim.average',
    'optim.skip_spikes',
    'objective.kl',
    'objective.l2_sp',
    'objective.neftune',
    'layers',
    'rollout.overlong',
    'rollout.kl',
    'train.steps',
    'train.epochs',
    'train.eval_every',
    'train.save_every',
    'train.patience',
    'train.rollback',
    'train.chunk',
    'evaluate.rows',
    'evaluate.shots',
    'evaluate.seed',
    'tune.steps',
    'tune.minutes',
  ),
  1: (
    'method.rank',
    'rollout.max_tokens',
    'rollout.updates',
    'train.batch_size',
    'train.accumulate',
    'train.keep',
    'train.log_every',
    'eval.batch_size',
    'evaluate.new_tokens',
    'decoder.width',
    'decoder.hidden',
    'decoder.layers',
    'decoder.heads',
    'decoder.kv_heads',
    'sweep.candidates',
    'sweep.lanes',
    'sweep.seeds',
    'sweep.factor',
  ),
  2: ('data.max_length', 'rollout.group'),
  257: ('decoder.vocabulary',),  # the bytes, and the end of a text
}


def defaults() -> Config:
  """The configuration with nothing chosen."""
  return base.get_config()


def check(config: Config) -> None:
  """Refuses values that make no sense, before anything is read or loaded."""
  values = dict(flatten(config))
  check_values(values, [name for name, _ in flatten(defaults())], check_key)
  for least, names in LEAST.items():
    for name in names:
      if values[name] < least:
        raise InputError(f'{name} is {values[name]}; it must be at least {least}')
  above = ['optim.lr', 'method.alpha', 'rollout.temperature', 'data.temperature', 'data.bad_limit']
  above += ['sweep.first']
  for name in above:
    if not values[name] > 0:
      raise InputError(f'{name} is {values[name]}; it must be above zero')
  for name, known in (
    ('method.name', adapt.METHODS),
    ('method.quantize', ('', *adapt.KINDS)),
    ('evaluate.score', SCORES),
    ('task', TASKS),
    ('dtype', DTYPES),
    ('train.dtype', DTYPES),
    ('train.remat', models.REMAT),
    ('data.supervise', SUPERVISE),
    ('data.pack', PACKS),
    ('data.bad', BAD),
    ('objective.reference', REFERENCES),
    ('rollout.scale', SCALES),
  ):
    if values[name] not in known:
      choices = ', '.join(filter(None, known))
      raise InputError(f'{name} is {values[name]!r}; choose one of {choices}')
  adapt.check_options(config.method.name, config.method.options)
  objective.check(config)
  trace.steps_of(config.train.profile)
  check_unused(config)
  if config.train.batch_size % config.train.accumulate:
    raise InputError(
      f'train.accumulate is {config.train.accumulate}, which does not divide '
      f'train.batch_size {config.train.batch_size}'
    )
  check_trouble(config)
  parts, length = config.mesh.sequence, config.data.max_length
  if parts > 1 and length % parts:
    raise InputError(
      f'data.max_length is {length}, which mesh.sequence={parts} does not divide; '
      f'set it to {length + -length % parts}'
    )
  if not config.data.path:
    raise InputError('data.path is empty; give a file with --config.data.path=FILE')


def check_unused(config: Config) -> None:
  """Refuses choices that the task would not look at, and those that do not go together."""
  c, task = config.rollout, config.task
  changed = overridden(config)
  drawn = [name for name in changed if name.startswith('rollout.')]
  if drawn and task != 'reinforcement':
    raise InputError(f'{drawn[0]} is set, but task {task} draws no answers; leave it out')
  if config.objective.name == 'rloo' and 'rollout.scale' in drawn:
    raise InputError("rollout.scale is set, but rloo's advantages have no scale; leave it out")
  for name in ('steps', 'eval_every', 'save_every'):
    if config.train[name] % c.updates:
      raise InputError(
        f'train.{name} is {config.train[name]}; it must be a multiple of rollout.updates, '
        f'{c.updates}'
      )
  if 'data.supervise' in changed and task != 'causal_lm':
    raise InputError(
      f'data.supervise is {config.data.supervise!r}, which is of task causal_lm; for task {task} '
      'leave it out'
    )
  if 'data.bad_limit' in changed and config.data.bad == 'refuse':
    raise InputError('data.bad_limit is set, and data.bad is refuse; set data.bad to skip')
  if config.data.completion and not config.data.prompt:
    raise InputError('data.completion is set, and data.prompt is empty; set both')
  if not all(type(width) is int for width in config.data.buckets):
    raise InputError(f'data.buckets is {config.data.buckets}; give whole numbers, as (64, 128)')
  if config.data.buckets and config.data.pack:
    raise InputError('data.buckets are for rows that are not packed; set data.pack or data.buckets')
  check_sources(config)
  if config.layers and not config.model:
    raise InputError('layers is of a pretrained model; set decoder.layers of one from scratch')
  method = config.method
  if method.select and not method.adapter and 'select' not in adapt.options_of(method.name):
    raise InputError(f'method.select is set, but {method.name} selects no weights; leave it out')


def check_trouble(config: Config) -> None:
  """Refuses answers to trouble that could not be given."""
  c, factor = config.train, config.optim.skip_spikes
  if factor and factor <= 1:
    raise InputError(f'optim.skip_spikes is {factor}; it must be above 1, or 0 to skip nothing')
  if c.patience and not (c.eval_every and config.data.valid):
    raise InputError(
      f'train.patience is {c.patience}, which counts evaluations; set train.eval_every and '
      'data.valid'
    )
  if c.rollback and not (factor and c.save_every):
    raise InputError(
      f'train.rollback is {c.rollback}, which counts skipped steps and needs checkpoints; set '
      'optim.skip_spikes and train.save_every'
    )


def check_sources(config: Config) -> None:
  """Refuses mixtures and streams that make no sense, and what needs all rows in one list."""
  c, task = config.data, config.task
  if not all(isinstance(path, str) and path for path in c.also):
    raise InputError(f"data.also is {c.also}; give paths, as ('more.jsonl',)")
  if len({c.path, *c.also}) <= len(c.also):
    raise InputError(f'data.also is {c.also}; give each file once, and not data.path')
  if c.weights and len(c.weights) != 1 + len(c.also):
    raise InputError(
      f'data.weights is {c.weights}, for {1 + len(c.also)} files; give one to data.path and each '
      'of data.also'
    )
  if c.weights:
    data.shares(dict(zip((c.path, *c.also), c.weights, strict=True)), c.temperature)
  if not c.also and c.temperature != 1:
    raise InputError('data.temperature is of a mixture; name other files in data.also')
  if not c.also and not c.stream:
    return
  name = 'data.stream' if c.stream else 'data.also'
  if task == 'reinforcement' or config.objective.reference == 'cached':
    reason = 'objective.reference is cached' if task != 'reinforcement' else f'task is {task}'
    raise InputError(f'{name} is set and {reason}, which needs its rows in one file; leave it out')
  if not c.stream:
    return
  if TASKS[task].names is not None:
    raise InputError(
      f'data.stream is set and task is {task}, which has to see all classes first; leave it out'
    )
  if not config.train.steps:
    raise InputError('data.stream is set, and a stream has no end; set train.steps')
  if c.also and not c.weights:
    raise InputError('data.stream is set, and streams have no size; give data.weights')
  for side in ('valid', 'test', 'bad_limit'):
    if 0 < c[side] < 1:
      raise InputError(
        f'data.{side} is {c[side]}, a fraction, and a stream has no size; give a count of rows'
      )


def check_values(
  values: Mapping[str, Any],
  needed: Sequence[str],
  check_key: Callable[[str], None],
  file: str = 'configs/base.py',
) -> None:
  """Refuses a configuration that lacks a key, has an unknown one, or a number that is none."""
  for name in needed:
    if name not in values:
      raise InputError(f'the configuration has no {name!r}; start it from {file}')
  for name, value in values.items():
    check_key(name)
    if isinstance(value, float) and not math.isfinite(value):
      raise InputError(f'{name} is {value}; it must be a finite number')


def count(value: float) -> int | float:
  """A count from 1 up, below that a fraction, as `optim.schedule` tells them apart: by the type."""
  return int(value) if value >= 1 else float(value)


def check_key(
  name: str,
  reference: Config | None = None,
  *,
  free: tuple[str, ...] = FREE,
  file: str = 'configs/base.py',
) -> None:
  """Refuses a key that no configuration has, and names the nearest that one has.

  Args:
    name: with dots.
    reference: a configuration with every key, by default that of `file`.
    free: what keys of anybody's choice start with.
    file: where all are listed.
  """
  known = [known for known, _ in flatten(defaults() if reference is None else reference)]
  if name not in known and not name.startswith(free):
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'{file} lists them all'
    raise InputError(f'unknown config key {name!r}; {hint}')


def overridden(config: Config) -> list[str]:
  """The keys whose values are not the defaults."""
  known = dict(flatten(defaults()))
  return [name for name, value in flatten(config) if value != known.get(name)]


def flatten(config: Any, prefix: str = '') -> list[tuple[str, Any]]:
  """`[('data.path', ...), ...]` for every value of a configuration."""
  rows: list[tuple[str, Any]] = []
  for name, value in config.items():
    if isinstance(value, Mapping | Config):
      rows += flatten(value, f'{prefix}{name}.')
    else:
      rows.append((f'{prefix}{name}', value))
  return rows
