"""The modules of another tool's model, each with our leaves that its tensors are made of."""

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtune import tree
from jaxtune.interop.families import family_of
from jaxtune.interop.names import Name, tensors_of
from jaxtune.models import ModelSpec
from jaxtune.typing import Params


class Piece(NamedTuple):
  """One of our leaves, or one layer (and expert) of it, as all or a part of their tensor."""

  path: str
  place: tuple[int, ...]
  row: Name

  def of(self, leaf: Any) -> Any:
    """The fields of the leaf at this place, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[self.place]), leaf)


@dataclasses.dataclass
class Module:
  """A module as their tools name it: `model.layers.3.self_attn.q_proj`.

  Attributes:
    name: of the module, as the class for the model's task has it.
    tensors: `weight`, `bias`, ... to the pieces that it is made of: one, or of a fused tensor
      several, which then say by `row.part` which of its outputs are theirs.
  """

  name: str
  tensors: dict[str, list[Piece]]

  @property
  def weight(self) -> list[Piece]:
    return self.tensors.get('weight', [])

  def obstacle(self) -> str | None:
    """Why no adapter can be on this module's weight; None where one can."""
    for piece in self.weight:
      if '{expert}' in piece.row.theirs:
        return f'{piece.path!r} holds many experts, which an adapter cannot hold one by one'
      if piece.row.shape is not None:
        return f'{piece.path!r} is {self.name} in another shape, which an adapter cannot hold'
    return None


def modules_of(
  names: Sequence[Name], params: Params, rename: Callable[[str], str] = lambda name: name
) -> dict[str, Module]:
  """Every module by its name.

  Args:
    names: the family's table.
    params: the parameters; what does not come from a file (`prompt/...`) is left out.
    rename: from the table's name of a tensor to the one wanted.
  """
  modules: dict[str, Module] = {}
  for path, leaf in tree.named_weights(params):
    if path.partition('/')[0] in VIRTUAL:
      continue
    where = tensors_of(names, path, leaf.shape)
    for index in np.ndindex(*where.lead):
      name, _, kind = rename(where.name(index)).rpartition('.')
      module = modules.setdefault(name, Module(name, {}))
      module.tensors.setdefault(kind, []).append(Piece(path, tuple(index), where.row))
  return modules


def parts_of(pieces: Sequence[Piece]) -> list[np.ndarray]:
  """Of a fused tensor the outputs of each piece; empty where a piece is all of its tensor."""
  return [piece.row.part for piece in pieces if piece.row.part is not None]


def by_part(pieces: Sequence[Piece], values: Sequence[np.ndarray]) -> np.ndarray:
  """`[out]` of a tensor from the vectors of its pieces, one or the parts of a fused one."""
  parts = parts_of(pieces)
  if not parts:
    return values[0]
  out = np.zeros(sum(map(len, parts)), np.float32)
  for rows, own in zip(parts, values, strict=True):
    out[rows] = own
  return out


def side_by_side(pieces: Sequence[Piece], blocks: Sequence[np.ndarray | None]) -> np.ndarray:
  """`[out, sum of r]` of a fused tensor from `[own outputs, r]` of its parts, None for no adapter.

  Each part has columns of its own: a product of two such matrices is that of each part alone.
  """
  parts, own = parts_of(pieces), [block for block in blocks if block is not None]
  out = np.zeros((sum(map(len, parts)), sum(block.shape[1] for block in own)), np.float32)
  start = 0
  for rows, block in zip(parts, blocks, strict=True):
    if block is not None:
      out[rows, start : start + block.shape[1]] = block
      start += block.shape[1]
  return out


def owner_of(tensor: str, modules: Collection[str]) -> str:
  """The module that a tensor's name begins with, the longest of several; '' for none."""
  return max((name for name in modules if tensor.startswith(f'{name}.')), key=len, default='')


def is_target(module: str, targets: str | Collection[str]) -> bool:
  """PEFT's rule of `target_modules`: a list of ends of names, or an expression for whole names."""
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(f'.{module}'.endswith(f'.{target}') for target in targets)


def copies_of(model: ModelSpec, params: Params) -> list[Name]:
  """Rows of tensors that hold a leaf once more: a bias by a second name, a tied head."""
  heads = model.task in ('causal_lm', 'masked_lm', 'seq2seq')
  leaves = {path for path, _ in tree.named_weights(params)}
  seen: set[str] = set()
  copies = []
  for row in family_of(model).names(model.config):
    if row.ours == 'head/dense' and row.ours not in leaves and heads:
      copies.append(Name('embed/tokens', row.theirs))
    elif row.ours in seen and row.ours in leaves:
      copies.append(row)
    seen.add(row.ours)
  return copies


# Entries of the parameters that a method brought and no model's file has.
VIRTUAL = ('prompt', 'prefix')
