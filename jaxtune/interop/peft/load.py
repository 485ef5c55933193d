"""An adapter from PEFT's files onto a loaded model."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import adapt, tree
from jaxtune.adapt import Adapted
from jaxtune.interop import fields
from jaxtune.interop.families import family_of
from jaxtune.interop.labels import FILE
from jaxtune.interop.names import Family, bare_name, live_name
from jaxtune.interop.peft.base import check_base
from jaxtune.interop.peft.format import Format, Import
from jaxtune.interop.peft.formats import FORMATS
from jaxtune.interop.peft.modules import (
  VIRTUAL,
  Module,
  copies_of,
  is_target,
  modules_of,
  owner_of,
)
from jaxtune.interop.source import locate
from jaxtune.interop.tensors import Tensor, open_safetensors
from jaxtune.models import ModelSpec, classifier
from jaxtune.typing import InputError, Params, is_weight

# Fields that do not change what any loaded adapter computes.
_KNOWN = frozenset(
  'auto_mapping base_model_name_or_path exclude_modules inference_mode layers_to_transform '
  'modules_to_save peft_type peft_version revision runtime_config target_modules task_type'.split()
)


def load_peft(folder: str | os.PathLike[str], model: ModelSpec, params: Params) -> Adapted:
  """The base's parameters with an adapter from PEFT's files, ready to run or to train on.

  Layers of one stack whose adapters differ in rank are padded with zeros, which stay zero in
  training; so do layers without an adapter. Modules that the adapter holds whole replace the
  model's. For a classifier's adapter on a bare model call `adapter_head` first.

  Args:
    folder: with `adapter_config.json` and `adapter_model.safetensors`, or a Hub id.
    model: the base, built in.
    params: its parameters.

  Returns:
    The parameters, and the rules that train what the adapter brought.

  Raises:
    InputError: the adapter is damaged, does not fit, or is of a kind that jaxtune does not have.
  """
  path, format, config, tensors = _open(folder)
  family = family_of(model)
  leaves = tree.named_weights(params)
  if any(adapt.is_adapter(leaf) or path.partition('/')[0] in VIRTUAL for path, leaf in leaves):
    raise InputError('the model already has an adapter; merge it first (jaxtune.adapt.merge)')
  own = path / FILE
  if own.exists():
    check_base(params, fields.read_json(own).get('base') or {}, str(own))
  _check_head(path, family, model, config, tensors)
  bare = {bare_name(family, name): tensor for name, tensor in tensors.items()}
  names = family.names(model.config)
  files = Import(
    folder=path,
    config=config,
    tensors=bare,
    full={bare_name(family, name): name for name in tensors},
    used=set(),
    model=model,
    params=dict(params),
    modules=modules_of(names, params, lambda name: bare_name(family, name)),
  )
  _check_targets(
    files, modules_of(names, params, lambda name: live_name(family, model.task, name)), tensors
  )
  files = files._replace(params=_replaced(files))
  read = format.read(files)
  left = sorted(set(bare) - files.used)
  if left:
    raise InputError(
      f'{path}: holds {bare[left[0]].name} (and {len(left) - 1} more), which this model has no '
      'place for; take the base it was made for'
    )
  if not files.used:
    raise InputError(f'{path}: holds no tensors; take a whole adapter')
  return Adapted(read, _rules(files, format, read, params))


def _open(
  folder: str | os.PathLike[str],
) -> tuple[pathlib.Path, Format, dict[str, Any], dict[str, Tensor]]:
  path = locate(folder)
  file, weights = path / 'adapter_config.json', path / 'adapter_model.safetensors'
  if not file.exists():
    raise InputError(f'{path}: has no adapter_config.json; give the folder of a PEFT adapter')
  config = fields.read_json(file)
  kinds = {format.peft_type: format for format in FORMATS}
  if config.get('peft_type') not in kinds:
    raise InputError(
      f'{file}: peft_type is {config.get("peft_type")!r}; known: {", ".join(sorted(kinds))}'
    )
  format = kinds[config['peft_type']]
  for key, value in config.items():
    if key not in _KNOWN | format.known and value:
      raise InputError(
        f'{file}: {key} is {value!r}, which jaxtune cannot apply to {format.peft_type}; train the '
        'adapter without it'
      )
  if not weights.exists():
    pickled = ' but adapter_model.bin, a pickle' if (path / 'adapter_model.bin').exists() else ''
    raise InputError(
      f'{path}: has no adapter_model.safetensors{pickled}; save the adapter with a current PEFT'
    )
  for each in (file, weights):
    if not _inside(each, path):
      raise InputError(
        f"{each}: points outside of the adapter's folder; copy the file itself into the folder"
      )
  tensors = {}
  for name, tensor in open_safetensors(weights).items():
    plain = _plain(name, format.prefix)
    if plain == name.removeprefix(format.prefix) or plain not in tensors:
      tensors[plain] = tensor
  tensors.pop('', None)
  return path, format, config, tensors


def _plain(name: str, prefix: str) -> str:
  """The tensor of the base that a name means; '' for none, where PEFT saves what it replaced."""
  if '.original_module.' in name:
    return ''
  return re.sub(r'\.(base_layer|modules_to_save)(?=\.)', '', name.removeprefix(prefix))


def _inside(file: pathlib.Path, folder: pathlib.Path) -> bool:
  """Whether a file lies in its folder, or in the blobs of the Hub's cache that the folder is of."""
  target = file.resolve()
  if target.is_relative_to(folder.resolve()):
    return True
  snapshots = folder.resolve().parent
  return snapshots.name == 'snapshots' and target.is_relative_to(snapshots.parent / 'blobs')


def _check_targets(
  files: Import, modules: Mapping[str, Module], tensors: Mapping[str, Tensor]
) -> None:
  """Refuses targets that match no module, and tensors of modules that are no target.

  PEFT would load the first as an adapter of nothing, and ignore the second.
  """
  targets = files.config.get('target_modules')
  if not targets or targets == 'all-linear':
    return

  try:
    matched = {name for name in modules if is_target(name, targets)}
  except (re.error, TypeError):
    raise InputError(
      f'{files.file}: target_modules is {targets!r}; it must be a list of names or a regular '
      'expression'
    ) from None
  owners = {name: owner_of(name, modules) for name in tensors}
  if not matched and any(owners.values()):
    raise InputError(
      f'{files.file}: target_modules {targets!r} match no module of this model; take the base it '
      'was made for'
    )
  for name, tensor in tensors.items():
    owner = owners[name]
    field = name.removeprefix(f'{owner}.')
    # Whole modules, biases and rows of tokens go by other fields of the file.
    if owner and owner not in matched and re.match(r'(lora|ia3|vera|hada|lokr)_', field):
      raise InputError(
        f'{files.folder}: holds {tensor.name}, but target_modules {targets!r} do not name that '
        'module, and PEFT would ignore it; name it there'
      )


def _replaced(files: Import) -> Params:
  """The parameters with the tensors of modules that the adapter holds whole."""
  new: dict[str, np.ndarray] = {}
  leaves = dict(tree.named_weights(files.params))
  for module in files.modules.values():
    for kind, pieces in module.tensors.items():
      name = f'{module.name}.{kind}'
      if name not in files.tensors:
        continue
      total = sum(len(piece.row.part) for piece in pieces if piece.row.part is not None)
      for piece in pieces:
        if is_weight(leaves[piece.path]):
          raise InputError(
            f'{files.folder}: holds {files.tensors[name].name}, and {piece.path!r} is a '
            f'{type(leaves[piece.path]).__name__} in this model; load the adapter on plain weights'
          )
        array = new.setdefault(piece.path, np.array(leaves[piece.path]))
        target = array[piece.place]
        rows = slice(None) if piece.row.part is None else piece.row.part
        shape = target.shape[:-1] + (total or target.shape[-1],)
        theirs = shape[::-1] if piece.row.transpose else shape
        value = files.read(name, piece.row.shape or theirs).reshape(theirs)
        target[...] = (value.T if piece.row.transpose else value)[..., rows]
  # PEFT saves the base of adapted embeddings, changed or not.
  bases = {
    piece.path
    for module in files.modules.values()
    for piece in module.weight
    if piece.path in new and '.base_layer.' in files.tensors[f'{module.name}.weight'].name
  }
  family = family_of(files.model)
  for row in copies_of(files.model, files.params):
    name = bare_name(family, row.theirs)
    if name not in files.tensors:
      if row.ours == 'embed/tokens' and row.ours in set(new) - bases:
        raise InputError(
          f'{files.folder}: replaces the embeddings and not {name}, which is tied to them; train '
          'with ensure_weight_tying'
        )
      continue
    value = files.read(name)
    value = value.T if row.transpose else value
    if not np.array_equal(value, new.get(row.ours, leaves[row.ours])):
      raise InputError(
        f'{files.folder}: {files.tensors[name].name} differs from what it is tied to in this '
        'model; merge the adapter into its base with PEFT and load the model'
      )
  same = {path for path in bases if np.array_equal(new[path], leaves[path])}
  replaced = {path: jnp.asarray(value) for path, value in new.items() if path not in same}
  return tree.map_weights(lambda path, leaf: replaced.get(path, leaf), files.params)


def _rules(files: Import, format: Format, read: Params, before: Params) -> tree.Rules:
  """Rules that train what the adapter brought."""
  known = dict(tree.named_weights(before))
  rules: list[tuple[str, bool]] = []
  for path, leaf in tree.named_weights(read):
    if leaf is known.get(path):
      continue
    whole = any(
      f'{module.name}.{kind}' in files.tensors and piece.path == path
      for module in files.modules.values()
      for kind, pieces in module.tensors.items()
      for piece in pieces
    )
    exact = rf'^{re.escape(path)}'
    if adapt.is_adapter(leaf):
      for route in tree.routing(((r'', True),), {path: leaf}):
        if re.search(format.trained, route.path):
          rules.append((rf'^{re.escape(route.path)}$', True))
      rules.append((rf'{exact}/', False))
    elif whole or re.search(format.trained, path):
      rules.append((rf'{exact}$', True))
  return (*rules, (r'', False))


def _head_names(family: Family, model: ModelSpec, each: bool) -> dict[str, str]:
  config = dataclasses.replace(model.config, outputs=1, each_token=each)
  return {name.ours: bare_name(family, name.theirs) for name in family.names(config)}


def _check_head(
  path: pathlib.Path,
  family: Family,
  model: ModelSpec,
  config: dict[str, Any],
  tensors: dict[str, Tensor],
) -> None:
  if getattr(model.config, 'outputs', 1):
    return
  names = _head_names(family, model, config.get('task_type') == 'TOKEN_CLS')
  if names.get('head/dense') in {bare_name(family, name) for name in tensors}:
    raise InputError(
      f'{path}: holds the head of a classifier, which this model is not; make it one first with '
      'model, params = jaxtune.interop.adapter_head(folder, model, params)'
    )


def adapter_head(
  folder: str | os.PathLike[str], model: ModelSpec, params: Params
) -> tuple[ModelSpec, Params]:
  """The model under the classifier that an adapter brings, if it brings one; else as it is.

  Raises:
    InputError: the adapter is damaged, or classifies through parameters that nobody has.
  """
  path, _, config, found = _open(folder)
  family = family_of(model)
  if getattr(model.config, 'outputs', 1):
    return model, params
  tensors = {bare_name(family, name): tensor for name, tensor in found.items()}
  each = config.get('task_type') == 'TOKEN_CLS'
  names = _head_names(family, model, each)
  if names.get('head/dense') not in tensors:
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
