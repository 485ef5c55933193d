"""LoKr in PEFT's files.

ΔW = alpha / r * w1 ⊗ w2 with `w1` [out1, in1] and `w2` [out2, in2], each whole or as a product of
`_a` [out, r] and `_b` [r, in], the transposes of our `_b` and `_a`. PEFT tells from r,
`decompose_both` and `decompose_factor` which of them are there, so those three have to fit.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxtune.adapt import LoKr
from jaxtune.adapt.lokr import factorization
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
from jaxtune.interop.peft.loha import DEFAULTS, check_linear, rank_and_alpha
from jaxtune.interop.peft.modules import Module
from jaxtune.typing import InputError, Params

Side = tuple[int, int]


def _is(leaf: Any) -> bool:
  return isinstance(leaf, LoKr)


def _sides(leaf: LoKr) -> tuple[Side, Side]:
  """`((in1, out1), (in2, out2))`."""
  return leaf.left().shape, leaf.right().shape  # type: ignore[return-value]


def _factor(leaves: Collection[LoKr]) -> int:
  """The `decompose_factor` that cuts the sides of all these weights as they are cut.

  Raises:
    InputError: there is none.
  """
  cuts = set()
  for leaf in leaves:
    (in1, out1), (in2, out2) = _sides(leaf)
    cuts |= {(in1, in2), (out1, out2)}
  for factor in (-1, *range(1, 1 + max(a * b for a, b in cuts))):
    if all(factorization(a * b, factor) == (a, b) for a, b in cuts):
      return factor
  raise InputError(
    'the Kronecker factors were cut by more than one decompose_factor, and an adapter of PEFT has '
    'one for all; write the whole model with save_hf'
  )


def _rank(leaf: LoKr, both: bool) -> int | None:
  """An r by which PEFT expects just the factors that the leaf has; None if there is none."""
  (in1, out1), (in2, out2) = _sides(leaf)
  thin = {n: getattr(leaf, f'w{n}_a') for n in '12'}
  ranks = {a.shape[-1] for a in thin.values() if a is not None}
  if len(ranks) > 1 or (both and thin['1'] is None):
    return None
  rank = ranks.pop() if ranks else math.ceil(max(in2, out2) / 2)
  fits = (thin['2'] is not None) == (rank < max(in2, out2) / 2)
  if both:
    fits = fits and rank < max(in1, out1) / 2
  return rank if fits else None


def _whole(leaf: LoKr, numbers: str) -> LoKr:
  """The same with these factors multiplied out."""
  if '1' in numbers:
    leaf = dataclasses.replace(leaf, w1=leaf.left(), w1_a=None, w1_b=None)
  return (
    dataclasses.replace(leaf, w2=leaf.right(), w2_a=None, w2_b=None) if '2' in numbers else leaf
  )


def _expressible(leaves: Sequence[LoKr]) -> tuple[list[LoKr], list[int], bool]:
  """`(leaves, their r, decompose_both)`, with factors multiplied out where PEFT's rule wants it."""
  ranks = [_rank(leaf, True) for leaf in leaves]
  both = None not in ranks
  if not both:
    leaves = [_whole(leaf, '1') for leaf in leaves]
    leaves = [leaf if _rank(leaf, False) else _whole(leaf, '2') for leaf in leaves]
    ranks = [_rank(leaf, False) for leaf in leaves]
  return list(leaves), [rank for rank in ranks if rank is not None], both


def _write(export: Export) -> Written:
  adapted = export.adapted()
  for module, _ in adapted:
    check_linear(module, 'LoKr')
    if module.weight[0].row.part is not None:
      raise InputError(
        f'{module.weight[0].path!r} is a part of {module.name}, and Kronecker products of parts '
        'are none of the whole; write the whole model with save_hf'
      )
  leaves, ranks, both = _expressible([leaf for _, (leaf,) in adapted])
  tensors: dict[str, np.ndarray] = {}
  alphas: dict[str, float] = {}
  for (module, _), leaf, rank in zip(adapted, leaves, ranks, strict=True):
    alphas[module.name] = plain(float(leaf.scale) * rank)
    for n in '12':
      for ours, theirs in ((f'w{n}', f'w{n}'), (f'w{n}_a', f'w{n}_b'), (f'w{n}_b', f'w{n}_a')):
        values = getattr(leaf, ours)
        if values is not None:
          tensors[f'{PREFIX}{module.name}.lokr_{theirs}'] = np.ascontiguousarray(values.T)
  return Written(
    tensors,
    set(alphas),
    patterns(dict(zip(alphas, ranks, strict=True)), alphas, 'alpha')
    | DEFAULTS
    | {
      'decompose_both': both,
      'decompose_factor': _factor(leaves),
      'rank_dropout_scale': False,
      'use_effective_conv2d': False,
    },
  )


def _read(files: Import) -> Params:
  factor = files.config.get('decompose_factor', -1)
  if not isinstance(factor, int) or isinstance(factor, bool):
    raise InputError(f'{files.file}: decompose_factor is {factor!r}; it must be a whole number')
  # Layers of one stack have the same fields: whole ones for all if one of them has them.
  whole = {
    (piece.path, n)
    for module in files.modules.values()
    for piece in module.weight
    for n in '12'
    if f'{module.name}.lokr_w{n}' in files.tensors
  }

  def one(module: Module, n: str, rank: int, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    name = f'{module.name}.lokr_w{n}'
    if name in files.tensors:
      return {f'w{n}': files.read(name, (outputs, inputs)).T}
    b, a = files.read(f'{name}_a', (outputs, rank)).T, files.read(f'{name}_b', (rank, inputs)).T
    return {f'w{n}': a @ b} if (module.weight[0].path, n) in whole else {f'w{n}_a': a, f'w{n}_b': b}

  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    kinds = [f'lokr_w{n}{end}' for n in '12' for end in ('', '_a')]
    kind = next((kind for kind in kinds if f'{module.name}.{kind}' in files.tensors), None)
    if kind is None:
      return None
    rank, alpha = rank_and_alpha(files, module, kind)
    (in1, in2), (out1, out2) = (factorization(side, factor) for side in shape)
    fields = one(module, '1', rank, in1, out1) | one(module, '2', rank, in2, out2)
    return fields | {'scale': np.array(alpha / rank, np.float32)}

  return files.wrapped(find, zeros, LoKr, pattern=r'^(?!embed/)')


LOKR = Format(
  peft_type='LOKR',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/w[12](_[ab])?$',
  moves=lambda name, values: name.endswith(('.lokr_w1', '.lokr_w1_a')) and bool(values.any()),
  # Dropouts are of training, and effective convolutions of convolutions alone.
  known=frozenset(
    'alpha alpha_pattern decompose_both decompose_factor init_weights layers_pattern '
    'module_dropout r rank_dropout rank_dropout_scale rank_pattern use_effective_conv2d'.split()
  ),
)
