"""A LoRA adapter in PEFT's files.

ΔW = alpha / r * B A with A `[r, in]` and B `[out, r]`, the transposes of our fields.
https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint
"""

import collections
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from jaxtune import adapt, ops, tree
from jaxtune.interop.families import family_of
from jaxtune.interop.fields import read_json
from jaxtune.interop.folder import open_weights
from jaxtune.interop.labels import FILE, check_labels
from jaxtune.interop.names import Family, Name, bare_name, full_name, tensors_of
from jaxtune.interop.source import locate
from jaxtune.interop.tensors import open_safetensors
from jaxtune.interop.write import new_folder, write_json
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

PREFIX = 'base_model.model.'
_TASKS = {
  'causal_lm': 'CAUSAL_LM',
  'classification': 'SEQ_CLS',
  'seq2seq': 'SEQ_2_SEQ_LM',
  'token_classification': 'TOKEN_CLS',
}


def save_adapter(
  folder: str | os.PathLike[str],
  model: ModelSpec,
  params: Params,
  base: str | os.PathLike[str],
  rules: tree.Rules | None = None,
  labels: Sequence[str] | None = None,
  card: str | None = None,
  name: str | None = None,
) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors`, which PEFT loads on the base.

  A module goes in whole (`modules_to_save`, an adapter on it merged) when it is a classifier's
  head, when `rules` train a plain parameter of it, or when the base lacks it (the pooler of some
  encoders). The written files are read back and checked before they take their place.

  Args:
    folder: to write; an earlier export there is replaced.
    model: a built-in encoder or decoder.
    params: its parameters, some of them `adapt.LoRA`.
    base: folder, file or Hub id that the base model was loaded from.
    rules: of `adapt.Adapted`: what was trained, so that nothing trained is left behind.
    labels: names of a classifier's outputs, written beside in `jaxtune.json`.
    card: text of a README.md.
    name: what the adapter calls its base, a Hub id for whoever gets it; `base` by default.

  Raises:
    InputError: there is no adapter, it does nothing, or PEFT's files cannot hold what was trained.
  """
  family = family_of(model)
  if labels is not None:
    check_labels(tuple(labels), model.config.outputs)
  rows = _rows(family, model, params)
  whole = _whole(rows, params, rules, model) | _absent(rows, family, base)
  tensors: dict[str, np.ndarray] = {}
  scales: dict[str, tuple[int, float]] = {}
  for row in rows:
    if row.module in whole:
      _refuse_split(row)
      _refuse_whole(row, model)
      tensors[PREFIX + row.tensor] = _dense(row)
    elif _is_lora(row.leaf):
      _refuse_split(row)
      _refuse_lora(row)
      a, b, scale = (
        np.asarray(field)[row.place] for field in (row.leaf.a, row.leaf.b, row.leaf.scale)
      )
      tensors[f'{PREFIX}{row.module}.lora_A.weight'] = np.ascontiguousarray(a.T)
      tensors[f'{PREFIX}{row.module}.lora_B.weight'] = np.ascontiguousarray(b.T)
      scales[row.module] = (a.shape[1], float(scale) * a.shape[1])
  if not scales:
    raise InputError('the parameters hold no LoRA adapter; write the whole model with save_hf')
  targets = _targets(set(scales), {row.module for row in rows})
  # PEFT saves the module of such a name whole in any case.
  saved = {re.sub(r'^(classifier|score)\..*', r'\1', module) for module in whole}
  task = _TASKS.get(model.task, 'FEATURE_EXTRACTION')
  config = _config(scales, targets, sorted(saved), task, name or str(base))
  with new_folder(folder) as fresh:
    file = fresh / 'adapter_model.safetensors'
    safetensors.numpy.save_file(tensors, file, metadata={'format': 'pt'})
    write_json(fresh / 'adapter_config.json', config)
    if labels is not None:
      write_json(fresh / FILE, {'labels': list(labels)})
    if card is not None:
      (fresh / 'README.md').write_text(card, encoding='utf-8')
    _read_back(fresh)


class _Row(NamedTuple):
  """One tensor of the other side: a leaf, or one layer (and expert) of it."""

  path: str
  leaf: Any
  place: tuple[int, ...]
  tensor: str
  name: Name

  @property
  def module(self) -> str:
    return self.tensor.rpartition('.')[0]


def _rows(family: Family, model: ModelSpec, params: Params) -> list[_Row]:
  rows, names = [], family.names(model.config)
  for path, leaf in tree.named_weights(params):
    where = tensors_of(names, path, leaf.shape)
    for index in np.ndindex(*where.lead):
      tensor = full_name(family, model.task, where.name(index))
      rows.append(_Row(path, leaf, index, tensor, where.row))
  return rows


def _whole(
  rows: list[_Row], params: Params, rules: tree.Rules | None, model: ModelSpec
) -> set[str]:
  """Modules that were trained as they are: what `rules` say, and a classifier's head."""
  trained = {route.path for route in tree.routing(rules, params) if route.value} if rules else set()
  for row in rows:
    if f'{row.path}/base' in trained:
      raise InputError(
        f'{row.path!r} was trained under its adapter; write the whole model with save_hf'
      )
  heads = {'head'} if model.config.outputs else set()
  return {row.module for row in rows if row.path in trained or row.path.partition('/')[0] in heads}


def _absent(rows: list[_Row], family: Family, base: str | os.PathLike[str]) -> set[str]:
  """Modules that the base lacks, so that who loads the adapter would make them up afresh."""
  try:
    folder = locate(base)
  except InputError:
    return set()  # a name only: nothing to compare with
  if not folder.is_dir():
    return set()
  held = {bare_name(family, name) for name in open_weights(folder)}
  return {row.module for row in rows if bare_name(family, row.tensor) not in held}


def adapter_obstacle(model: ModelSpec, params: Params) -> str | None:
  """Why an adapter alone cannot hold the LoRA leaves of these parameters; None when it can.

  So a run can tell before it trains that it will write the merged model instead.
  """
  found = (_split(row) for row in _rows(family_of(model), model, params) if _is_lora(row.leaf))
  return next((text for text in found if text), None)


def _is_lora(leaf: Any) -> bool:
  return isinstance(leaf, adapt.LoRA)


def _split(row: _Row) -> str | None:
  if '{expert}' in row.name.theirs:
    return f'{row.path!r} holds many experts, which an adapter cannot hold one by one'
  if row.name.part is not None or row.name.shape is not None:
    return f'{row.path!r} is a part of {row.tensor}, which an adapter cannot hold by itself'
  return None


def _refuse_split(row: _Row) -> None:
  reason = _split(row)
  if reason:
    raise InputError(f'{reason}; write the whole model with save_hf')


def _refuse_whole(row: _Row, model: ModelSpec) -> None:
  if row.path == 'embed/tokens' and model.family == 'decoder' and model.config.tied:
    raise InputError(
      'embed/tokens was trained and is tied to the head, which an adapter cannot hold; '
      'write the whole model with save_hf'
    )


def _refuse_lora(row: _Row) -> None:
  if isinstance(row.leaf.base, adapt.LoRA):
    raise InputError(
      f'{row.path!r} has an adapter on an adapter; merge the first (adapt.merge) and write its '
      'model with save_hf as the base'
    )
  if row.path.startswith('embed/'):
    raise InputError(
      f'{row.path!r} is an embedding, whose adapter PEFT applies in another way to tied heads; '
      'write the whole model with save_hf'
    )


def _dense(row: _Row) -> np.ndarray:
  leaf = jax.tree.map(lambda x: x[row.place], row.leaf)
  value = np.asarray(ops.materialize(adapt.merge(leaf)))
  return np.ascontiguousarray(value.T if row.name.transpose else value)


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


def _config(
  scales: dict[str, tuple[int, float]], targets: list[str], whole: list[str], task: str, base: str
) -> dict[str, Any]:
  ranks = {module: rank for module, (rank, _) in scales.items()}
  alphas = {module: _plain(alpha) for module, (_, alpha) in scales.items()}
  rank = collections.Counter(ranks.values()).most_common(1)[0][0]
  alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
  return {
    'peft_type': 'LORA',
    'task_type': task,
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': {module: r for module, r in ranks.items() if r != rank},
    'alpha_pattern': {module: a for module, a in alphas.items() if a != alpha},
    'target_modules': targets,
    'modules_to_save': whole or None,
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': False,
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'inference_mode': True,
  }


def _plain(alpha: float) -> int | float:
  """Alpha without the noise of a float32 scale: `32`, not `32.00000048`."""
  alpha = float(f'{alpha:.7g}')
  return int(alpha) if alpha.is_integer() else alpha


def _read_back(folder: pathlib.Path) -> None:
  """Refuses files that PEFT would load in part, or that would change nothing."""
  config = read_json(folder / 'adapter_config.json')
  tensors = open_safetensors(folder / 'adapter_model.safetensors')
  moved = False
  for key, tensor in tensors.items():
    module, _, kind = key.removeprefix(PREFIX).partition('.lora_')
    if kind:
      found = any(f'.{module}'.endswith(f'.{name}') for name in config['target_modules'])
    else:
      module = module.rpartition('.')[0]
      found = any(f'.{name}.' in f'.{module}.' for name in config['modules_to_save'] or [])
    if not found:
      raise InputError(f'the adapter would hold {key}, which PEFT would ignore')
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
      raise InputError(f'the adapter holds NaN or infinite numbers in {key}; train again')
    moved = moved or (kind.startswith('B') and bool(values.any()))
  if not moved:
    raise InputError('the adapter changes nothing: every B is zero; train before you export it')
