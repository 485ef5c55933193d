"""How other tools name our parameters: one table a family serves load, save and adapters."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtune.models import stack
from jaxtune.typing import InputError

_SEGMENT = re.compile(r'(?<=/)\d+-\d+(?=/)')


class Name(NamedTuple):
  """One row of a table: one of our leaves, or of a stack's, and the tensor that holds it.

  Attributes:
    ours: path in our parameters, with `{layer}` for the segment of a stack.
    theirs: tensor in the other file, with `{layer}` for the layer's number.
    transpose: whether they hold the matrix as `[out, in]`.
  """

  ours: str
  theirs: str
  transpose: bool = False


class Tensors(NamedTuple):
  """The tensors of another file that one leaf is made of.

  Attributes:
    names: one a layer of the leaf's segment, or one.
    transpose: whether they are `[out, in]`.
    stacked: whether the leaf has a leading axis of layers.
  """

  names: tuple[str, ...]
  transpose: bool
  stacked: bool


class Family(NamedTuple):
  """What differs between families in Hugging Face's files.

  Attributes:
    model_type: the word in `config.json`.
    prefix: what precedes tensor names under a head (`bert.`, `model.`) and is absent from a bare
      body.
    names: `(config) -> table`, without the prefix.
    read_config: `(raw, file, outputs) -> config`.
    write_config: `(config) -> raw`.
  """

  model_type: str
  prefix: str
  names: Callable[[Any], tuple[Name, ...]]
  read_config: Callable[[dict[str, Any], str, int], Any]
  write_config: Callable[[Any], dict[str, Any]]


def tensors_of(names: Sequence[Name], path: str) -> Tensors:
  """The tensors of the leaf at `path`, a segment of a stack or a leaf of its own.

  Raises:
    InputError: the table has no such leaf.
  """
  segment = _SEGMENT.search(path)
  ours = _SEGMENT.sub('{layer}', path, count=1)
  for name in names:
    if name.ours == ours:
      break
  else:
    raise InputError(
      f'the parameter {path!r} has no name in files of this family; only those of a built-in model '
      'can be written or read'
    )
  if segment is None:
    return Tensors((name.theirs,), name.transpose, False)
  layers = range(*stack.bounds(segment[0]))
  return Tensors(tuple(name.theirs.format(layer=i) for i in layers), name.transpose, True)


def full_name(family: Family, config: Any, path: str, tensor: str) -> str:
  """The name in a file of the whole model: with the prefix, but for the head and a bare encoder."""
  bare = family.model_type == 'bert' and not config.outputs
  return tensor if bare or path.startswith('head/') else family.prefix + tensor


def bare_name(family: Family, tensor: str) -> str:
  """The name in the family's table: without the prefix, LayerNorm's old gamma and beta renamed."""
  tensor = tensor.removeprefix(family.prefix)
  tensor = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', tensor)
  return re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', tensor)
