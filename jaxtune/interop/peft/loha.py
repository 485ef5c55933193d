"""LoHa in PEFT's files.

ΔW = alpha / r * (w1_a w1_b) ∘ (w2_a w2_b) with `w1_a` [out, r] and `w1_b` [r, in], the transposes
of our b1 and a1.
"""

from typing import Any

import numpy as np

from jaxtune.adapt import LoHa
from jaxtune.interop.peft.format import (
  PREFIX,
  Export,
  Format,
  Import,
  Written,
  patterns,
  plain,
  zeros,
)
from jaxtune.interop.peft.modules import Module, side_by_side
from jaxtune.typing import InputError, Params

# Our fields by their names; each is the other's transpose.
_NAMES = {'hada_w1_a': 'b1', 'hada_w1_b': 'a1', 'hada_w2_a': 'b2', 'hada_w2_b': 'a2'}


def check_linear(module: Module, kind: str) -> None:
  """Refuses modules on which PEFT has no such adapter: all but `torch.nn.Linear`.

  Raises:
    InputError: it is another.
  """
  piece = module.weight[0]
  if piece.path.startswith('embed/') or not piece.row.transpose:
    what = 'an embedding' if piece.path.startswith('embed/') else 'a Conv1D there'
    raise InputError(
      f'{piece.path!r} is {what}, on which PEFT has no {kind}; write the whole model with save_hf'
    )


# What the files of LoHa and LoKr say besides.
DEFAULTS = {'rank_dropout': 0.0, 'module_dropout': 0.0, 'init_weights': True}


def rank_and_alpha(files: Import, module: Module, kind: str) -> tuple[int, float]:
  """Those of a module that has a tensor of this name."""
  rank = files.setting(module.name, kind, 'r', 'rank_pattern')
  alpha = files.setting(module.name, kind, 'alpha', 'alpha_pattern')
  return files.integer('r', rank), files.real('alpha', alpha)


def _is(leaf: Any) -> bool:
  return isinstance(leaf, LoHa)


def _joined(module: Module, leaves: list[Any]) -> tuple[dict[str, np.ndarray], float]:
  """`(tensors by their names, alpha / r)` of a module.

  Of a fused tensor the factors of the parts stand side by side: no output has factors of two parts,
  so both products are those of each part alone. Their scales go into the first.
  """
  if module.weight[0].row.part is None:
    return {name: getattr(leaves[0], ours).T for name, ours in _NAMES.items()}, leaves[0].scale
  found = {}
  for n in '12':
    outputs = [
      getattr(leaf, f'b{n}').T * (leaf.scale if n == '1' else 1) if _is(leaf) else None
      for leaf in leaves
    ]
    found[f'hada_w{n}_a'] = side_by_side(module.weight, outputs)
    inputs = [getattr(leaf, f'a{n}').T for leaf in leaves if _is(leaf)]
    found[f'hada_w{n}_b'] = np.concatenate(inputs)
  return found, 1.0


def _write(export: Export) -> Written:
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  alphas: dict[str, float] = {}
  for module, leaves in export.adapted():
    check_linear(module, 'LoHa')
    found, scale = _joined(module, leaves)
    for name, values in found.items():
      tensors[f'{PREFIX}{module.name}.{name}'] = np.ascontiguousarray(values)
    ranks[module.name] = len(found['hada_w1_b'])
    alphas[module.name] = plain(float(scale) * ranks[module.name])
  return Written(
    tensors,
    set(ranks),
    patterns(ranks, alphas, 'alpha') | DEFAULTS | {'use_effective_conv2d': False},
  )


def _read(files: Import) -> Params:
  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    names = {name: f'{module.name}.{name}' for name in _NAMES}
    if not any(name in files.tensors for name in names.values()):
      return None
    rank, alpha = rank_and_alpha(files, module, 'hada_w1_a')
    inputs, outputs = shape
    shapes = {'a': (outputs, rank), 'b': (rank, inputs)}
    fields = {ours: files.read(names[name], shapes[name[-1]]).T for name, ours in _NAMES.items()}
    return fields | {'scale': np.array(alpha / rank, np.float32)}

  def part(found: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return found | {name: found[name][:, rows] for name in ('b1', 'b2')}

  return files.wrapped(find, zeros, LoHa, part=part, pattern=r'^(?!embed/)')


LOHA = Format(
  peft_type='LOHA',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/[ab][12]$',
  moves=lambda name, values: name.endswith('.hada_w2_b') and bool(values.any()),
  # Dropouts are of training, and effective convolutions of convolutions alone.
  known=frozenset(
    'alpha alpha_pattern init_weights layers_pattern module_dropout r rank_dropout rank_pattern '
    'use_effective_conv2d'.split()
  ),
)
