"""A finished run, opened again from the files that it exported."""

import pathlib
from typing import NamedTuple

import jax

from experiments import keys, parameters, sources, tasks, workdir
from experiments.keys import Config
from jaxtune import data, interop, models
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


class Tuned(NamedTuple):
  """A tuned model with what it takes to feed it and to name its outputs."""

  config: Config
  model: ModelSpec
  params: Params
  tok: data.Tokenizer
  names: tuple[str, ...]
  source: str | None  # of the base; None for a model from scratch


def open_run(folder: str) -> Tuned:
  """The model that a finished run exported.

  Raises:
    InputError: no run there, or one that is not finished.
  """
  path = pathlib.Path(folder)
  config = keys.defaults()
  config.update(workdir.read_config(path))  # older runs lack the keys that came after them
  if workdir.result(path) is None:
    raise InputError(f'{path} holds a run that is not finished; start it again to go on with it')
  export = path / 'export'
  base = sources.resolve(config.model) if config.model else None
  if base and (export / 'adapter_config.json').exists():
    model, params = interop.load(base)
    if config.task == 'masked_lm':  # any body can be one; what the adapter saved then replaces it
      model, params = models.masked_lm(jax.random.key(0), model, params)
    model, params = interop.adapter_head(export, model, params)
    params = interop.load_peft(export, model, parameters.quantized(config, params))
  elif base and (export / interop.TRAINED).exists():
    names = interop.load_labels(export) or ()
    model, params = parameters.pretrained(config, base)
    _, head_key, method_key = parameters.streams(config)
    if tasks.TASKS[config.task].outputs is not None:
      model, params = parameters.headed(config, head_key, model, params, len(names) or 1, names)
    params = interop.load_trained(export, parameters.method(config, method_key, model, params))
  else:
    model, params = interop.load(export)
  tokens = base or export
  return Tuned(
    config=config,
    model=model,
    params=params,
    tok=interop.tokenizer(tokens),
    names=(interop.load_labels(export) or ()) if tasks.TASKS[config.task].names else (),
    source=base,
  )
