"""What a run minimizes: the objective that its configuration names, and what is added to it."""

import dataclasses
import functools
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections.config_dict import ConfigDict as Config

from experiments import tasks
from jaxtune import adapt, data, losses, models
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

OWN = ':'  # in the name of an objective, between a file and a function in it
# Options that other keys settle.
SETTLED = {
  'reference': 'objective.reference',
  'teacher': 'objective.teacher',
  'teacher_model': 'objective.teacher',
}
# What the rows of an embedding have beside `anchor` and `positive`, if they have it.
ROWS = {'triplet': 'negative', 'cosine_similarity': 'label', 'cosent': 'label'}


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


@functools.cache  # the file runs once
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


def call(make: Callable[..., Any], *args: Any, key: str, options: Mapping[str, Any]) -> Any:
  """`make(*args, **options)`, of the library or the user's own.

  Raises:
    InputError: an option that is missing, or of a type that it cannot be.
  """
  parameters = list(inspect.signature(make).parameters.values())[len(args) :]
  for parameter in parameters:
    needed = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    if needed and parameter.default is parameter.empty and parameter.name not in options:
      raise InputError(f'{key}.{parameter.name} is missing; it has no default')
  try:
    return make(*args, **options)
  except TypeError as error:
    raise InputError(f'{key}: {", ".join(options)}: {error}') from None


def check_options(known: Iterable[str], options: Iterable[str], key: str, what: str) -> None:
  """Refuses options that are not among those known."""
  known = list(known)
  for option in options:
    if option not in known:
      raise InputError(
        f'{key}.{option}: {what} has no such option; it has {", ".join(known) or "none"}'
      )


def check(config: Config) -> None:
  """Refuses an objective, options or additions that cannot be, before anything is loaded."""
  c, known = config.objective, options_of(config)
  check_options(known, c.options, 'objective.options', 'the objective')
  settled = dict(SETTLED)
  if config.task == 'reinforcement':
    settled['temperature'] = 'rollout.temperature'
  for option, key in settled.items():
    if option in c.options:
      raise InputError(f'objective.options.{option} follows from {key}; set that instead')
  if c.reference == 'cached' and not refers(config):
    raise InputError(
      "objective.reference is 'cached', but the objective compares with no reference; leave it out"
    )
  if c.reference == 'cached' and config.task == 'reinforcement':
    raise InputError(
      "objective.reference is 'cached', but answers that are drawn in every step have nothing to "
      'compute once; leave it out'
    )
  if c.teacher and 'teacher' not in known:
    raise InputError(
      f'objective.teacher is {c.teacher!r}, but the objective has no teacher; leave it out, or set '
      'objective.name to distillation'
    )
  if c.name == 'distillation' and not c.teacher:
    raise InputError('objective.teacher is empty; name a finished run, or a model that was tuned')
  if c.kl and config.task != 'causal_lm':
    raise InputError(
      f'objective.kl is {c.kl}, which is a divergence per token of task causal_lm; for task '
      f'{config.task} leave it out'
    )
  if config.train.chunk and not (c.kl or 'chunk' in known or config.task == 'reinforcement'):
    raise InputError(
      f'train.chunk is {config.train.chunk}, but the objective holds no logits of tokens; set it '
      'to 0'
    )


def check_example(config: Config, example: Mapping[str, Any]) -> None:
  """Refuses rows of an embedding that the objective cannot learn from, or not as they are."""
  if config.task != 'embedding' or OWN in config.objective.name:
    return
  name = config.objective.name or tasks.TASKS[config.task].objectives[0]
  needed = ROWS.get(name)
  if needed and needed not in example:
    raise InputError(
      f'objective.name is {name!r}, and the rows have no {needed!r}; take data that has, or '
      'objective.name info_nce'
    )
  if 'label' in example and needed != 'label':
    raise InputError(
      f'the pairs have scores, which the objective {name} does not look at; set objective.name to '
      'cosent or cosine_similarity, or take pairs without scores'
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
  weights: Mapping[str, Any] | None = None,
) -> losses.Objective:
  """What the configuration minimizes; what the data or the tokenizer settle need not be given.

  `weights` are values of keys of `objective` that count instead, such as those of a lane.
  """
  c = config.objective
  own = {name.removeprefix('objective.'): x for name, x in (weights or {}).items()}
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
  options |= dict(c.options)
  options |= {x.removeprefix('options.'): own[x] for x in own if x.startswith('options.')}
  made = call(factory(config), model, key='objective.options', options=options)
  if c.kl:
    chunk = config.train.chunk or None
    made = losses.kl_to_reference(
      made, model, adapt.policy_and_reference, own.get('kl', c.kl), chunk
    )
  if config.train.dtype:
    made = losses.computed_in(made, config.train.dtype)
  if c.l2_sp:
    # The head of a language model is not new: it is pulled to its start as all else.
    language = config.task == 'masked_lm' or tasks.TASKS[config.task].outputs is None
    penalty = adapt.l2_sp(own.get('l2_sp', c.l2_sp), new=r'(?!)' if language else adapt.HEAD)
    if c.kl or refers(config):  # which look at the start themselves: do not hide it from them
      penalty = dataclasses.replace(penalty, own=())
    made = losses.penalized(made, penalty)
  return made


def mask_token(tok: data.Tokenizer) -> int | None:
  """The id of the token that stands for a hidden one; None where there is none."""
  names = (tok.special.texts.get('mask_token', '[MASK]'), '[MASK]', '<mask>')
  return next((i for name in names if (i := tok.encoder.token_to_id(name)) is not None), None)
