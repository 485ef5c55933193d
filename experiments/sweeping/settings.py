"""The keys under `sweep`, checked."""

from typing import Any

from experiments import keys
from experiments.keys import Config
from experiments.sweeping import space as spaces
from experiments.sweeping.space import Dimension
from jaxtune import sweep
from jaxtune.typing import InputError

SAMPLERS = ('random', 'tpe', 'grid')
SCHEDULERS = ('halving', 'asha')


def check(config: Config) -> list[Dimension]:
  """Refuses what cannot be a sweep, before anything is loaded; returns what is searched."""
  keys.check(config)
  c = config.sweep
  if c.sampler not in SAMPLERS:
    raise InputError(f'sweep.sampler is {c.sampler!r}; choose one of {", ".join(SAMPLERS)}')
  if c.scheduler not in SCHEDULERS:
    raise InputError(f'sweep.scheduler is {c.scheduler!r}; choose one of {", ".join(SCHEDULERS)}')
  if not config.model:
    raise InputError(
      'model is empty; a sweep tunes a pretrained model, give one with --config.model'
    )
  if not config.data.valid:
    raise InputError('data.valid is 0; candidates are judged on held-out rows, so set data.valid')
  unfit: dict[str, Any] = {
    'task': config.task == 'reinforcement',
    'objective.teacher': config.objective.teacher,
    'data.stream': config.data.stream,
    'data.buckets': config.data.buckets,
    'optim.average': config.optim.average,
    'optim.skip_spikes': config.optim.skip_spikes,
    'train.patience': config.train.patience,
  }
  for name, value in unfit.items():
    if value:
      raise InputError(f'{name} is set, which runs side by side cannot have; leave it out')
  start = str(config.method.options.get('start', ''))
  if start.startswith(('pissa', 'olora', 'loftq')):
    raise InputError(
      f'method.options.start is {start!r}, which changes the base, and lanes share one; choose '
      'kaiming or gaussian'
    )
  if config.optim.name == 'muonclip':
    raise InputError('optim.name is muonclip, which looks into each forward pass; choose muon')
  found = spaces.parse(c.space, config)
  spaces.values_of(config, found)
  if c.sampler == 'grid':
    spaces.grid(found)
  return found


def rungs(config: Config, steps: int) -> list[int]:
  """The steps at which candidates are judged."""
  c = config.sweep
  if c.factor == 1:
    return [steps]
  first = int(c.first) if c.first >= 1 else max(1, round(c.first * steps))
  if first > steps:
    raise InputError(
      f'sweep.first is {c.first}, but a run has {steps} steps; choose a fraction, or fewer'
    )
  return sweep.rungs(steps, first, c.factor)
