"""Biases that were trained beside an adapter, which PEFT saves alone when all of a kind were."""

from collections.abc import Collection, Mapping

import numpy as np

from jaxtune import tree
from jaxtune.interop.peft.format import PREFIX
from jaxtune.interop.peft.modules import Module, by_part
from jaxtune.typing import Params


def trained_biases(
  modules: Mapping[str, Module], held: Collection[str], trained: Collection[str], adapted_only: str
) -> tuple[str, set[str]]:
  """`(PEFT's field bias, names of the modules whose biases it means)`.

  That is 'all', or the format's word for those of adapted modules. Biases of a head go with it, and
  other choices of biases with their whole modules.

  Args:
    modules: of the model.
    held: paths of the adapters.
    trained: paths that train.
    adapted_only: the format's word, '' where it has no such field.
  """
  biases = {
    module.name: {piece.path for piece in module.tensors['bias']}
    for module in modules.values()
    if 'bias' in module.tensors
  }
  body = {name for name, paths in biases.items() if not any(p.startswith('head/') for p in paths)}
  moved = {name for name in body if biases[name] <= set(trained)}
  adapted = {name for name in body if any(piece.path in held for piece in modules[name].weight)}
  if not adapted_only or not moved:
    return 'none', set()
  if moved == body:
    return 'all', moved
  return (adapted_only, moved) if moved == adapted else ('none', set())


def bias_tensors(
  modules: Mapping[str, Module], names: Collection[str], held: Collection[str], params: Params
) -> dict[str, np.ndarray]:
  """The biases of these modules as PEFT names them."""
  leaves = dict(tree.named_weights(params))
  found = {}
  for name in set(names) & set(modules):
    module = modules[name]
    pieces = module.tensors['bias']
    bias = by_part(pieces, [piece.of(leaves[piece.path]) for piece in pieces])
    inside = '.base_layer' if any(piece.path in held for piece in module.weight) else ''
    found[f'{PREFIX}{name}{inside}.bias'] = np.ascontiguousarray(bias)
  return found
