"""What a run minimizes: the objective that its configuration names, and what is added to it."""

import dataclasses
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from ml_collections.config_dict import ConfigDict as Config

from experiments import tasks
from jaxtune import adapt, data, losses, models
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

OWN = ':'  # in the name of an objective, between a file and a function in it


def factory(config: Config) -> Callable[..., losses.Objective]:
  """`(model, **options) -> objective`, of `jaxtune.losses` or the user's own.

  Raises:
    InputError: no such objective, or one that the task has no batches for.
  """
  name = config.objective.name
  task = tasks.TASKS[config.task]
  if OWN in name:
    return own_function(name, 'objective.name')
  if name and name not in task.objectives:
    raise InputError(
      f'objective.name is {name!r}; for task {config.task} choose one of '
      f'{", ".join(task.objectives)}, or FILE.py:FUNCTION of your own'
    )
  return losses.OBJECTIVES[name or task.objectives[0]]


def own_function(place: str, key: str) -> Callable[..., Any]:
  """The function that `FILE.py:FUNCTION` names.

  Raises:
    InputError: no such file or function, or a file that does not run.
  """
  file, _, name = place.rpartition(OWN)
  path = pathlib.Path(file)
  if not path.is_file():
    raise InputError(f'{key} is {place!r}, but there is no file {file!r}; give FILE.py:FUNCTION')
  module_name = f'jaxtune_user_{path.stem}'
  spec = importlib.util.spec_from_file_location(module_name, path)
  if spec is None or spec.loader is None:
    raise InputError(f'{key} is {place!r}, and {file!r} is no Python file; give FILE.py:FUNCTION')
  module = importlib.util.module_from_spec(spec)
  sys.modules[module_name] = module
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # somebody's own code
    raise InputError(f'{key}: {file} does not run: {type(error).__name__}: {error}') from None
  function = getattr(module, name, None)
  if not callable(function):
    raise InputError(f'{key} is {place!r}, but {file} has no function {name!r}')
  return function


def check(config: Config) -> None:
  """Refuses an objective or options that cannot be, before anything is loaded."""
  known = options_of(config)
  for option in config.objective.options:
    if option not in known:
      raise InputError(
        f'objective.options.{option}: the objective has no such option; it has '
        f'{", ".join(known) or "none"}'
      )


def options_of(config: Config) -> list[str]:
  """The names of the options of the configured objective."""
  return list(inspect.signature(factory(config)).parameters)[1:]


def refers(config: Config) -> bool:
  """Whether the objective compares with a reference model: one whose beta is 0 does not."""
  parameters = inspect.signature(factory(config)).parameters
  if 'reference' not in parameters:
    return False
  beta = parameters.get('beta')
  return bool(config.objective.options.get('beta', 1.0 if beta is None else beta.default))


def compares(config: Config) -> bool:
  """Whether the run holds its start, frozen, to compare with what trains."""
  c = config.objective
  held = refers(config) and c.reference == 'start'
  drawn = config.task == 'reinforcement' and config.rollout.kl
  return bool(held or drawn or c.kl or c.l2_sp)


def make(
  config: Config,
  model: ModelSpec,
  tok: data.Tokenizer,
  names: tuple[str, ...],
  teacher: ModelSpec | None = None,
) -> losses.Objective:
  """What the configuration minimizes; what the data or the tokenizer settle need not be given."""
  c = config.objective
  if c.neftune:
    model = models.neftune(model, c.neftune)
  facts: dict[str, Any] = {'names': names or None, 'mask_token': mask_token(tok)}
  if teacher is not None:
    facts |= {'teacher': adapt.student_and_teacher, 'teacher_model': teacher}
  if config.task == 'reinforcement':
    facts |= {name: config.rollout[name] for name in ('temperature', 'max_tokens')}
  known = options_of(config)
  options = {name: value for name, value in facts.items() if name in known and value is not None}
  if 'chunk' in known and config.train.chunk:
    options['chunk'] = config.train.chunk
  if refers(config) and c.reference == 'start':
    options['reference'] = adapt.policy_and_reference
  made = factory(config)(model, **{**options, **dict(c.options)})
  if c.kl:
    made = losses.kl_to_reference(made, model, adapt.policy_and_reference, c.kl)
  if c.l2_sp:
    penalty = adapt.l2_sp(c.l2_sp)
    if c.kl or refers(config):  # which look at the start themselves: do not hide it from them
      penalty = dataclasses.replace(penalty, own=())
    made = losses.penalized(made, penalty)
  return made


def mask_token(tok: data.Tokenizer) -> int | None:
  """The id of the token that stands for a hidden one; None where there is none."""
  names = (tok.special.texts.get('mask_token', '[MASK]'), '[MASK]', '<mask>')
  return next((i for name in names if (i := tok.encoder.token_to_id(name)) is not None), None)
