"""An adapter in PEFT's files."""

import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxtune import adapt, tree
from jaxtune.interop.families import family_of
from jaxtune.interop.fields import read_json
from jaxtune.interop.labels import FILE, check_labels
from jaxtune.interop.names import Family, live_name
from jaxtune.interop.peft.base import fingerprint
from jaxtune.interop.peft.biases import bias_tensors, trained_biases
from jaxtune.interop.peft.format import PREFIX, Export, Format, Written
from jaxtune.interop.peft.formats import FORMATS
from jaxtune.interop.peft.modules import VIRTUAL, Module, is_target, modules_of, owner_of
from jaxtune.interop.peft.whole import absent_modules, whole_modules, whole_tensors, with_inner
from jaxtune.interop.tensors import open_safetensors
from jaxtune.interop.write import new_folder, write_json
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

_TASKS = {
  'causal_lm': 'CAUSAL_LM',
  'classification': 'SEQ_CLS',
  'seq2seq': 'SEQ_2_SEQ_LM',
  'token_classification': 'TOKEN_CLS',
}


def save_peft(
  folder: str | os.PathLike[str],
  model: ModelSpec,
  params: Params,
  base: str | os.PathLike[str] | None = None,
  labels: Sequence[str] | None = None,
  card: str | None = None,
  name: str | None = None,
) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors`, which PEFT loads on the base.

  A module goes in whole (`modules_to_save`, an adapter on it merged) when it is a classifier's
  head, when a plain parameter of it was trained, or when the base lacks it (the pooler of some
  encoders). Biases go in by themselves where PEFT's field `bias` can say which: all, or all of
  adapted modules. The written files are read back and checked before they take their place.

  Args:
    folder: to write; an earlier export there is replaced.
    model: a built-in model.
    params: its parameters as a method of `jaxtune.adapt` returned them, trained.
    base: folder, file or Hub id of the base; `model.source` by default.
    labels: names of a classifier's outputs, written beside in `jaxtune.json`.
    card: text of a README.md.
    name: what the adapter calls its base, a Hub id for whoever gets it; `base` by default.

  Raises:
    InputError: there is no adapter, it does nothing, or PEFT's files cannot hold what was trained.
  """
  family = family_of(model)
  if labels is not None:
    check_labels(tuple(labels), model.config.outputs)
  base = base or model.source or ''
  trained = _trained(params)
  format, held, modules, (bias, biased), whole = _sorted_out(model, params, trained)
  whole = with_inner(modules, whole | absent_modules(modules, family, base), model, params)
  _check_whole(format, whole)
  adapters = {name: module for name, module in modules.items() if name not in whole}
  written = format.write(Export(model, params, adapters, held, frozenset(whole)))
  tensors = (
    written.tensors
    | bias_tensors(adapters, biased, held, params)
    | whole_tensors(modules, whole, model, params, format.prefix)
  )
  config = _config(format, written, modules, whole, model, name or str(base))
  if biased:
    config['bias'] = bias
  with new_folder(folder) as fresh:
    file = fresh / 'adapter_model.safetensors'
    safetensors.numpy.save_file(tensors, file, metadata={'format': 'pt'})
    write_json(fresh / 'adapter_config.json', config)
    own: dict[str, Any] = {'base': fingerprint(params, trained)}
    if labels is not None:
      own['labels'] = list(labels)
    write_json(fresh / FILE, own)
    if card is not None:
      (fresh / 'README.md').write_text(card, encoding='utf-8')
    _read_back(fresh, format, written)


def adapter_obstacle(model: ModelSpec, params: Params) -> str | None:
  """Why no adapter's files can hold what these parameters train; None when they can.

  So a run can tell before it trains that it will write the merged model instead.
  """
  trained = _trained(params)

  def hollow(path: Any, x: Any) -> np.ndarray:
    """One number, another for each name of a field, without memory for all of it."""
    name = tree.path_name(path[-1:])
    return np.broadcast_to(np.array(1 + sum(map(ord, name)) % 89, x.dtype), x.shape)

  filled = jax.tree_util.tree_map_with_path(hollow, params)
  try:
    format, held, modules, _, whole = _sorted_out(model, params, trained)
    _check_whole(format, whole)
    adapters = {name: module for name, module in modules.items() if name not in whole}
    # What the writer refuses besides, it sees in shapes.
    format.write(Export(model, filled, adapters, held, frozenset(whole)))
  except InputError as error:
    return str(error).partition(';')[0]
  return None


def _sorted_out(
  model: ModelSpec, params: Params, trained: set[str]
) -> tuple[Format, frozenset[str], dict[str, Module], tuple[str, set[str]], set[str]]:
  """The kind of adapter, the paths of its leaves, all modules, biases that go by themselves, and
  modules that go whole."""
  format, held = _format(params, trained)
  modules = _modules(family_of(model), model, params, held)
  biases = trained_biases(modules, held, trained, format.biases)
  return format, held, modules, biases, whole_modules(modules, held, trained, model, biases[1])


def _trained(params: Params) -> set[str]:
  """The paths of leaves, and of the fields of weight leaves, that train."""
  if not isinstance(params, adapt.Adapted):
    return set()
  return {route.path for route in tree.routing(params.rules, params) if route.value}


def _format(params: Params, trained: set[str]) -> tuple[Format, frozenset[str]]:
  """The kind of adapter that these parameters hold, and the paths of its leaves."""
  leaves = tree.named_weights(params)
  for format in FORMATS:
    held = {path for path, leaf in leaves if format.holds(path, leaf, path in trained)}
    besides = {path for path in trained - held if not re.search(r'^(head|pooler)/', path)}
    if not held or (format.alone and besides):
      continue
    for path, leaf in leaves:
      virtual = path.partition('/')[0]
      if path not in held and virtual in VIRTUAL:
        raise InputError(
          f'a {virtual} stands beside {format.peft_type}, and an adapter of PEFT is of one kind; '
          f'write the merged weights without the {virtual} with save_hf, as the base of its own'
        )
      own = path in held or format.beside(leaf)
      if not own and adapt.is_adapter(leaf):
        raise InputError(
          f'{path!r} is a {type(leaf).__name__} beside {format.peft_type}, and an adapter of PEFT '
          'is of one kind; merge one of them (adapt.merge) or write the whole model with save_hf'
        )
      if own and adapt.is_adapter(leaf) and _adapted(leaf.base):
        raise InputError(
          f'{path!r} has an adapter on an adapter; merge the first (adapt.merge) and write its '
          'model with save_hf as the base'
        )
    return format, frozenset(held)
  raise InputError(
    'the parameters hold no adapter that PEFT has a format for; write the whole model with save_hf'
  )


def _adapted(base: Any) -> bool:
  return adapt.is_adapter(base) and not isinstance(base, adapt.Residual)


def _modules(
  family: Family, model: ModelSpec, params: Params, held: Collection[str]
) -> dict[str, Module]:
  """All modules.

  Raises:
    InputError: an adapter is on what is no module's matrix.
  """
  modules = modules_of(
    family.names(model.config), params, lambda name: live_name(family, model.task, name)
  )
  known = {piece.path for module in modules.values() for piece in module.weight}
  for path, leaf in tree.named_weights(params):
    if path in held and path not in known and adapt.is_adapter(leaf):
      raise InputError(
        f'{path!r} has an adapter and is no matrix of a module in their model; write the whole '
        'model with save_hf'
      )
  return modules


def _check_whole(format: Format, whole: Collection[str]) -> None:
  """Refuses modules that the format's files have no place for."""
  if whole and not format.saves:
    raise InputError(
      f'{min(whole)} would go along whole, and files of {format.peft_type} hold nothing besides; '
      'put lora beside it, or write the whole model with save_hf'
    )


def _config(
  format: Format,
  written: Written,
  modules: Mapping[str, Module],
  whole: set[str],
  model: ModelSpec,
  base: str,
) -> dict[str, Any]:
  # PEFT saves the module of such a name whole in any case.
  saved = sorted({re.sub(r'^(classifier|score)\..*', r'\1', module) for module in whole})
  tied = not whole <= set(modules)  # a head that is no module of its own
  saved = [name for name in saved if not any(name.startswith(f'{outer}.') for outer in saved)]
  config: dict[str, Any] = {
    'peft_type': format.peft_type,
    # PEFT's classes for a task take tokens.
    'task_type': None if model.family == 'vision' else _TASKS.get(model.task, 'FEATURE_EXTRACTION'),
    'base_model_name_or_path': base,
    'inference_mode': True,
  }
  if written.modules:
    config['target_modules'] = _targets(written.modules, set(modules))
  if format.saves:
    config['modules_to_save'] = saved or None
  if tied and 'ensure_weight_tying' in format.known:
    config['ensure_weight_tying'] = True
  return config | written.config


def _targets(adapted: set[str], modules: set[str]) -> list[str]:
  """The shortest suffixes that cover the adapted modules and none of the others."""
  others = [f'.{module}' for module in modules - adapted]
  suffixes: list[str] = []
  for module in sorted(adapted):
    if any(f'.{module}'.endswith(f'.{suffix}') for suffix in suffixes):
      continue
    parts = module.split('.')
    for start in reversed(range(len(parts))):
      suffix = '.'.join(parts[start:])
      if not any(other.endswith(f'.{suffix}') for other in others):
        break
    suffixes.append(suffix)
  return sorted(suffixes)


def _read_back(folder: pathlib.Path, format: Format, written: Written) -> None:
  """Refuses files that PEFT would load in part, or that would change nothing."""
  config = read_json(folder / 'adapter_config.json')
  tensors = open_safetensors(folder / 'adapter_model.safetensors')
  modules, moved = written.modules, False
  for key, tensor in tensors.items():
    bare = key.removeprefix(PREFIX)
    whole = any(f'.{name}.' in f'.{bare}' for name in config.get('modules_to_save') or [])
    biased = config.get('bias', 'none') != 'none' and bare.endswith('.bias')
    beside = any(bare.startswith(f'{name}.') for name in written.beside)
    if modules and not (whole or biased or beside) and key.startswith(PREFIX):
      if not is_target(owner_of(bare, modules), config['target_modules']):
        raise InputError(f'the adapter would hold {key}, which PEFT would ignore')
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
      raise InputError(f'the adapter holds NaN or infinite numbers in {key}; train again')
    moved = moved or (not whole and format.moves(key, values))
  if not moved:
    raise InputError('the adapter changes nothing; train before you export it')
