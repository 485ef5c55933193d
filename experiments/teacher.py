"""The teacher of a distillation: a finished run, or a model as it is."""

import pathlib

import jax

from experiments import sources, tasks, tuned, workdir
from experiments.keys import Config
from jaxtune import adapt, data, interop
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


def teacher(
  config: Config, names: tuple[str, ...], tok: data.Tokenizer
) -> tuple[ModelSpec, Params] | None:
  """The model that `objective.teacher` names, its adapters multiplied out; None where it is empty.

  Raises:
    InputError: it has no outputs for the task, tells other classes apart, or reads other tokens.
  """
  source = config.objective.teacher
  if not source:
    return None
  if (pathlib.Path(source) / workdir.RUN).is_file():
    run = tuned.open_run(source)
    model, params, own = run.model, jax.jit(adapt.merge)(run.params), run.names
    taught = run.tok
  else:
    found = sources.resolve(source)
    model, params = interop.load(found)
    own = tuple(interop.load_labels(found) or ())
    taught = interop.tokenizer(found)
  task = tasks.TASKS[config.task]
  wanted = task.base or config.task
  if model.task != wanted:
    raise InputError(
      f'objective.teacher {source!r} is a model for {model.task}, and the student learns '
      f'{wanted}; give a teacher that was tuned for it'
    )
  if names and own != names:
    raise InputError(
      f'objective.teacher {source!r} tells {", ".join(own) or "no named classes"} apart, and the '
      f'data has {", ".join(names)}; give a teacher of these'
    )
  if taught.encoder.get_vocab() != tok.encoder.get_vocab():
    raise InputError(
      f'objective.teacher {source!r} has other tokens than the student; give a teacher with the '
      "student's tokenizer"
    )
  if config.data.max_length > model.config.positions:
    raise InputError(
      f'data.max_length is {config.data.max_length}, but objective.teacher {source!r} has '
      f'{model.config.positions} positions; set it to {model.config.positions} or less'
    )
  return model, params
