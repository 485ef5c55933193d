"""A LoRA adapter from PEFT's files onto a loaded model."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.adapt import Adapted, LoRA
from jaxtune.interop import fields
from jaxtune.interop.families import family_of
from jaxtune.interop.names import Family, Tensors, bare_name, tensors_of
from jaxtune.interop.save_adapter import PREFIX
from jaxtune.interop.source import locate
from jaxtune.interop.tensors import Tensor, open_safetensors
from jaxtune.models import ModelSpec, classifier
from jaxtune.typing import InputError, Params

# Fields that do not change what a loaded adapter computes, or that are read below. Any other that
# is set, now or in a later PEFT, means arithmetic that plain LoRA does not have.
_KNOWN = frozenset(
  'alpha_pattern auto_mapping base_model_name_or_path bias exclude_modules inference_mode '
  'init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout '
  'megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision '
  'runtime_config target_modules task_type use_rslora eva_config corda_config lora_ga_config '
  'ensure_weight_tying'.split()
)
# Starts that leave the base weights as they are.
_INITS = (None, True, False, 'gaussian', 'eva', 'orthogonal')

# `(module, shape of the matrix as [out, in]) -> (A, B, alpha / r)`, or None for another module.
Factors = Callable[[str, tuple[int, ...]], tuple[np.ndarray, np.ndarray, float] | None]


def load_adapter(
  folder: str | os.PathLike[str], model: ModelSpec, params: Params
) -> tuple[ModelSpec, Adapted]:
  """The base model with a PEFT LoRA adapter: `model, (params, rules) = load_adapter(...)`.

  Layers of one stack whose adapters differ in rank are padded with zeros in both factors, which
  stay zero in training; so do layers without an adapter. Modules that the adapter holds whole
  replace the model's. A classifier's head on a bare model makes it a classifier of as many outputs.

  Args:
    folder: with `adapter_config.json` and `adapter_model.safetensors`, or a Hub id.
    model: the base, built in.
    params: its parameters.

  Returns:
    The model, a classifier if the adapter made it one, and the parameters with the rules that
    train what the adapter brought.

  Raises:
    InputError: the adapter is damaged, does not fit, or is of a kind that plain LoRA cannot hold.
  """
  path = locate(folder)
  config, tensors = _open(path)
  family = family_of(model)
  if any(isinstance(leaf, LoRA) for _, leaf in tree.named_weights(params)):
    raise InputError('the model already has an adapter; merge it first (jaxtune.adapt.merge)')
  modules = {bare_name(family, name): name for name in tensors}
  tensors = {bare_name(family, name): tensor for name, tensor in tensors.items()}
  if not model.config.outputs:
    model, params = _classifier(path, family, model, params, config, tensors)
  used: set[str] = set()
  trained: list[str] = []

  names = [
    name._replace(theirs=bare_name(family, name.theirs)) for name in family.names(model.config)
  ]

  def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
    used.add(name)
    if name not in tensors:
      raise InputError(f'{path}: lacks the tensor {PREFIX}{name}; take a whole adapter')
    if tensors[name].shape != shape or tensors[name].dtype is None:
      raise InputError(
        f'{path}: tensor {PREFIX}{name} is {list(tensors[name].shape)} {tensors[name].kind}, but '
        f'the model and adapter_config.json make it {list(shape)}; take the base it was made for'
      )
    return tensors[name].read().astype(np.float32)

  def factors(module: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float] | None:
    a, b = f'{module}.lora_A.weight', f'{module}.lora_B.weight'
    if a not in tensors and b not in tensors:
      return None
    full = modules.get(a, a).removesuffix('.lora_A.weight')
    chosen = {
      'r': _setting(config, 'rank_pattern', full, config.get('r')),
      'lora_alpha': _setting(config, 'alpha_pattern', full, config.get('lora_alpha')),
    }
    rank = fields.integer(chosen, f'{path}/adapter_config.json', 'r')
    alpha = fields.real(chosen, f'{path}/adapter_config.json', 'lora_alpha')
    scale = alpha / (rank**0.5 if config.get('use_rslora') else rank)
    return read(a, (rank, shape[1])), read(b, (shape[0], rank)), scale

  def adapt(leaf_path: str, leaf: Any) -> Any:
    where = tensors_of(names, leaf_path, leaf.shape)
    whole = [name for name in where.names if name in tensors]
    _refuse_split(path, where, tensors)
    if whole:
      leaf = _replace(leaf, where, lambda name, shape: read(name, shape) if name in whole else None)
    lora = _lora(leaf, where, factors)
    if whole or lora is not leaf:
      fields_of = '' if lora is leaf else '/[ab]'
      trained.append(rf'^{re.escape(leaf_path)}{fields_of}$')
    return lora

  params = tree.map_weights(adapt, params)
  left = sorted(set(tensors) - used)
  if left:
    raise InputError(
      f'{path}: holds {PREFIX}{modules[left[0]]} (and {len(left) - 1} more), which this model has '
      'no place for; take the base it was made for'
    )
  if not trained:
    raise InputError(f'{path}: holds no tensors; take a whole adapter')
  return model, Adapted(params, (*((pattern, True) for pattern in trained), (r'', False)))


def _open(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  file, weights = path / 'adapter_config.json', path / 'adapter_model.safetensors'
  if not file.exists():
    raise InputError(f'{path}: has no adapter_config.json; give the folder of a PEFT adapter')
  config = fields.read_json(file)
  if config.get('peft_type') != 'LORA':
    raise InputError(f"{file}: peft_type is {config.get('peft_type')!r}; known: 'LORA'")
  fields.refuse(config, str(file), bias='none')
  if config.get('init_lora_weights') not in _INITS:
    raise InputError(
      f'{file}: init_lora_weights is {config["init_lora_weights"]!r}, which changes the base; '
      'export it with PEFT as plain LoRA (path_initial_model_for_weight_conversion)'
    )
  for key, value in config.items():
    if key not in _KNOWN and value:
      raise InputError(f'{file}: {key} is {value!r}, which jaxtune cannot apply; only plain LoRA')
  if not weights.exists():
    pickled = ' but adapter_model.bin, a pickle' if (path / 'adapter_model.bin').exists() else ''
    raise InputError(
      f'{path}: has no adapter_model.safetensors{pickled}; save the adapter with a current PEFT'
    )
  tensors = {name.removeprefix(PREFIX): t for name, t in open_safetensors(weights).items()}
  for name in tensors:
    if 'lora_embedding_' in name:
      raise InputError(f'{path}: holds {name}: adapters on embeddings are not supported')
  return config, tensors


def _classifier(
  path: pathlib.Path,
  family: Family,
  model: ModelSpec,
  params: Params,
  config: dict[str, Any],
  tensors: dict[str, Tensor],
) -> tuple[ModelSpec, Params]:
  """A model without a classifier under that of the adapter, if it has one."""
  each = config.get('task_type') == 'TOKEN_CLS'
  head = {'outputs': 1, 'each_token': each}
  names = {
    name.ours: bare_name(family, name.theirs)
    for name in family.names(dataclasses.replace(model.config, **head))
  }
  if names['head/dense'] not in tensors:
    return model, params
  outputs = tensors[names['head/dense']].shape[0]
  model, fresh = classifier(jax.random.key(0), model, params, outputs, each)
  for name, _ in tree.named_weights(fresh):
    known = name.startswith('pooler/') and 'pooler' in params
    if name.startswith(('head/', 'pooler/')) and not known and names[name] not in tensors:
      raise InputError(
        f'{path}: classifies through {names[name]} that neither it nor the base model holds; save '
        f'the adapter with {names[name].rpartition(".")[0]!r} among modules_to_save'
      )
  return model, fresh


def _refuse_split(path: pathlib.Path, where: Tensors, tensors: dict[str, Tensor]) -> None:
  row = where.row
  if row.part is None and row.shape is None and '{expert}' not in row.theirs:
    return
  for name in where.names:
    for held in (name, name.removesuffix('weight') + 'lora_A.weight'):
      if held in tensors:
        raise InputError(
          f'{path}: holds {tensors[held].name}, and jaxtune keeps that module in several parts; '
          'merge the adapter into its base with PEFT (merge_and_unload) and load the model'
        )


def _setting(config: dict[str, Any], key: str, module: str, default: Any) -> Any:
  """PEFT's rule: the first pattern that matches the end of the module's name."""
  for pattern, value in (config.get(key) or {}).items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return default


def _replace(leaf: Any, where: Tensors, read: Callable[..., np.ndarray | None]) -> jax.Array:
  """The leaf with the layers that the adapter holds whole."""
  array = np.array(leaf)
  for index in np.ndindex(*where.lead):
    target = array[(*index, ...)]
    target = target.T if where.row.transpose else target
    value = read(where.name(index), target.shape)
    if value is not None:
      target[...] = value
  return jnp.asarray(array)


def _lora(leaf: Any, where: Tensors, factors: Factors) -> Any:
  """The leaf under the adapters of its layers; as it is when there are none."""
  if len(where.rest) < 2 or where.row.ours.startswith('embed/'):
    return leaf
  inputs, outputs = leaf.shape[-2:]
  modules = [name.removesuffix('.weight') for name in where.names]
  found = [factors(module, (outputs, inputs)) for module in modules]
  rank = max((f[0].shape[0] for f in found if f is not None), default=0)
  if not rank:
    return leaf
  a = np.zeros((len(found), inputs, rank), np.float32)
  b = np.zeros((len(found), rank, outputs), np.float32)
  scale = np.ones((len(found),), np.float32)
  for layer, pair in enumerate(found):
    if pair is not None:
      a[layer, :, : len(pair[0])] = pair[0].T
      b[layer, : len(pair[0])] = pair[1].T
      scale[layer] = pair[2]
  if not where.lead:
    a, b, scale = a[0], b[0], scale[0]
  return LoRA(leaf, jnp.asarray(a), jnp.asarray(b), jnp.asarray(scale))
