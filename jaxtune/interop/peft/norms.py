"""Norms that were trained alone in PEFT's files (LN_TUNING).

PEFT copies each chosen module and trains the copy: `ln_tuning_layers.weight` and `.bias` are what
the norm has, not a difference.
"""

import re

import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.interop.peft.format import PREFIX, Export, Format, Import, Written
from jaxtune.typing import InputError, Params, is_weight

_NORM = r'norm/(scale|bias)$'
_COPY = 'ln_tuning_layers'


def _write(export: Export) -> Written:
  leaves = dict(tree.named_weights(export.params))
  tensors: dict[str, np.ndarray] = {}
  names = set()
  for module in export.modules.values():
    pieces = [piece for pieces in module.tensors.values() for piece in pieces]
    if not any(piece.path in export.held for piece in pieces):
      continue
    names.add(module.name)
    for kind, (piece,) in module.tensors.items():
      value = np.asarray(piece.of(leaves[piece.path]), np.float32)
      tensors[f'{PREFIX}{module.name}.{_COPY}.{kind}'] = np.ascontiguousarray(value)
  return Written(tensors, names, {})


def _read(files: Import) -> Params:
  leaves = dict(tree.named_weights(files.params))
  new: dict[str, np.ndarray] = {}
  for module in files.modules.values():
    for kind, pieces in module.tensors.items():
      name = f'{module.name}.{_COPY}.{kind}'
      if name not in files.tensors:
        continue
      piece = pieces[0]
      if not re.search(_NORM, piece.path):
        raise InputError(
          f'{files.folder}: tunes {module.name}, which is no norm; merge the adapter into its base '
          'with PEFT (merge_and_unload) and load the model'
        )
      array = new.setdefault(piece.path, np.array(leaves[piece.path]))
      array[piece.place] = files.read(name, array[piece.place].shape)
  read = {path: jnp.asarray(value) for path, value in new.items()}
  return tree.map_weights(lambda path, leaf: read.get(path, leaf), files.params)


NORMS = Format(
  peft_type='LN_TUNING',
  holds=lambda path, leaf, trains: (
    trains and not is_weight(leaf) and re.search(_NORM, path) is not None
  ),
  write=_write,
  read=_read,
  trained=_NORM,
  moves=lambda name, values: f'.{_COPY}.' in name,
  alone=True,
)
