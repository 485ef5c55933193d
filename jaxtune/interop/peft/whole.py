"""Modules that an adapter of PEFT holds whole (`modules_to_save`)."""

import os
from collections.abc import Collection, Mapping

import jax
import numpy as np

from jaxtune import adapt, ops, tree
from jaxtune.interop.families import family_of
from jaxtune.interop.folder import open_weights
from jaxtune.interop.names import Family, bare_name, live_name
from jaxtune.interop.peft.modules import Module, copies_of
from jaxtune.interop.source import locate
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


def whole_modules(
  modules: Mapping[str, Module],
  held: frozenset[str],
  trained: set[str],
  model: ModelSpec,
  biased: Collection[str],
) -> set[str]:
  """Modules that were trained as they are, and a classifier's head.

  Args:
    modules, held, trained, model: what is exported.
    biased: modules whose trained biases go into the file alone.
  """
  found = set()
  for module in modules.values():
    tensors = (
      pieces
      for kind, pieces in module.tensors.items()
      if kind != 'bias' or module.name not in biased
    )
    for piece in (piece for pieces in tensors for piece in pieces):
      if any(path.startswith(f'{piece.path}/base') for path in trained):
        raise InputError(
          f'{piece.path!r} was trained under its adapter; write the whole model with save_hf'
        )
      heads = model.config.outputs and piece.path.startswith('head/')
      if heads or (piece.path in trained and piece.path not in held):
        reason = module.obstacle() if '{expert}' in piece.row.theirs else None
        if piece.row.part is not None:
          reason = f'{piece.path!r} is a part of {module.name}, which an adapter cannot hold alone'
        if piece.path == 'embed/tokens' and model.family == 'encoder_decoder':
          reason = (
            'embed/tokens was trained and is shared by encoder and decoder, which PEFT ignores'
          )
        if reason:
          raise InputError(f'{reason}; write the whole model with save_hf')
        found.add(module.name)
  return found


def absent_modules(
  modules: Mapping[str, Module], family: Family, base: str | os.PathLike[str]
) -> set[str]:
  """Modules that the base lacks, so that who loads the adapter would make them up afresh."""
  try:
    folder = locate(base)
  except InputError:
    return set()  # a name only: nothing to compare with
  if not folder.is_dir():
    return set()
  held = {bare_name(family, name) for name in open_weights(folder)}
  return {
    module.name
    for module in modules.values()
    for kind in module.tensors
    if bare_name(family, f'{module.name}.{kind}') not in held
  }


def with_inner(
  modules: Mapping[str, Module], whole: Collection[str], model: ModelSpec, params: Params
) -> set[str]:
  """The modules with those inside of them and a head tied to them, which PEFT saves with them."""
  inner = {m for m in modules if any(f'{m}.'.startswith(f'{outer}.') for outer in whole)}
  trained = {piece.path for name in inner for piece in modules[name].weight}
  family = family_of(model)
  return inner | {
    live_name(family, model.task, row.theirs).removesuffix('.weight')
    for row in copies_of(model, params)
    if row.ours == 'embed/tokens' and row.ours in trained
  }


def whole_tensors(
  modules: Mapping[str, Module],
  whole: Collection[str],
  model: ModelSpec,
  params: Params,
  prefix: str,
) -> dict[str, np.ndarray]:
  """The tensors of whole modules."""
  merged = dict(tree.named_weights(ops.scaled_biases(params)))
  found = {}
  for name in set(whole) & set(modules):
    for kind, pieces in modules[name].tensors.items():
      (piece,) = pieces
      leaf = jax.tree.map(lambda x: x[piece.place], merged[piece.path])  # noqa: B023
      value = np.asarray(ops.materialize(adapt.merge(leaf)))
      value = value.T if piece.row.transpose else value
      value = value if piece.row.shape is None else value.reshape(piece.row.shape)
      found[f'{prefix}{name}.{kind}'] = np.ascontiguousarray(value)
  family = family_of(model)
  for row in copies_of(model, params):
    name = live_name(family, model.task, row.theirs)
    if any(name.startswith(f'{module}.') for module in whole):
      value = np.asarray(ops.materialize(adapt.merge(merged[row.ours])))
      found[f'{prefix}{name}'] = np.ascontiguousarray(value.T if row.transpose else value)
  return found
