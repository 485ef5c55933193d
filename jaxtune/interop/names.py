"""How other tools name our parameters: one table a family serves load, save and adapters."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune.models import stack
from jaxtune.typing import InputError

_SEGMENT = re.compile(r'(?<=/)\d+-\d+(?=/)')
_OLD_NORMS = ((r'LayerNorm\.gamma$', 'LayerNorm.weight'), (r'LayerNorm\.beta$', 'LayerNorm.bias'))


class Name(NamedTuple):
  """One row of a table: one of our leaves, or of a stack's, and the tensor that holds it.

  A second row for the same leaf names a copy that a file may hold besides: it is checked where it
  is there, and never written.

  Attributes:
    ours: path in our parameters, with `{layer}` for the segment of a stack.
    theirs: tensor in the other file of the whole model, with `{layer}` for the layer's number and
      `{expert}` for the expert's.
    transpose: whether they hold the matrix as `[out, in]`.
    part: of a tensor that holds several of our leaves, or one in another order: which entries of
      its axis of outputs are ours, in our order; None for all as they are.
    shape: theirs, where it is ours (after transposing) reshaped.
  """

  ours: str
  theirs: str
  transpose: bool = False
  part: np.ndarray | None = None
  shape: tuple[int, ...] | None = None


class Tensors(NamedTuple):
  """The tensors of another file that one leaf is made of.

  Attributes:
    row: of the table.
    first: number of the first layer.
    lead: the leading axes of the leaf that the tensors are counted through: (layers), (layers,
      experts) or none; the tensors are in their C order.
    rest: the other axes.
  """

  row: Name
  first: int
  lead: tuple[int, ...]
  rest: tuple[int, ...]

  @property
  def total(self) -> int:
    """How many tensors there are, without naming them."""
    return math.prod(self.lead)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(self.name(index) for index in np.ndindex(*self.lead))

  def name(self, index: Sequence[int]) -> str:
    """The tensor at a place of the leading axes."""
    layer, expert = (*index, 0, 0)[:2]
    return self.row.theirs.format(layer=self.first + layer, expert=expert)

  @property
  def matrix(self) -> tuple[int, ...]:
    """Shape of what is ours in one tensor: transposed as theirs is, but not reshaped."""
    *others, inputs, outputs = (1, 1, *self.rest)
    return (*others[2:], outputs, inputs) if self.row.transpose else self.rest

  @property
  def out_axis(self) -> int:
    """The axis of the outputs, counted from a tensor's last."""
    return -2 if self.row.transpose else -1


class Family(NamedTuple):
  """What differs between families in Hugging Face's files.

  Attributes:
    model_type: the word in `config.json`.
    prefix: what precedes tensor names under a head (`bert.`, `model.`) and is absent from a bare
      body; names are compared without it.
    names: `(config) -> table`. Rows for parameters that the configuration lacks are ignored, but
      for that of `head/dense` where the head is tied: it names a copy of `embed/tokens`.
    read_config: `(raw, file) -> config` of the body.
    write_config: `(config) -> raw`, without `model_type`, and without `architectures` but for a
      class that `classes` does not have.
    classes: the class of each task that the family has, as `architectures` names it.
    left_out: regular expression of the tensors (without the prefix) that are left out with a
      warning.
    buffers: of those that follow from the configuration and are left out without a word.
    renamed: `(pattern, replacement)` from other names of tensors (without the prefix) that files
      may have to the table's.
    live: `(pattern, replacement)` from the table's names to those that transformers 5 has in
      memory, where they differ; adapters have these.
  """

  model_type: str
  prefix: str
  names: Callable[[Any], tuple[Name, ...]]
  read_config: Callable[[dict[str, Any], str], Any]
  write_config: Callable[[Any], dict[str, Any]]
  classes: Mapping[str, str]
  left_out: str = r'(?!)'
  buffers: str = r'(position_ids|rotary_emb\.inv_freq)$'
  renamed: tuple[tuple[str, str], ...] = _OLD_NORMS
  live: tuple[tuple[str, str], ...] = ()


def tensors_of(names: Sequence[Name], path: str, shape: Sequence[int]) -> Tensors:
  """The tensors of the leaf at `path`, a segment of a stack or a leaf of its own.

  Raises:
    InputError: the table has no such leaf.
  """
  ours = generic(path)
  for name in names:
    if name.ours == ours:
      return located(name, path, shape)
  raise InputError(
    f'the parameter {path!r} has no name in files of this family; only those of a built-in model '
    'can be written or read'
  )


def located(name: Name, path: str, shape: Sequence[int]) -> Tensors:
  """A row of the table for one leaf."""
  segment = _SEGMENT.search(path)
  first = 0 if segment is None else stack.bounds(segment[0])[0]
  # A leaf of experts has their axis behind that of the layers.
  leading = (segment is not None) + ('{expert}' in name.theirs)
  return Tensors(name, first, tuple(shape[:leading]), tuple(shape[leading:]))


def generic(path: str) -> str:
  """`decoder/{layer}/attn/q` for a leaf of any segment, as tables have it."""
  return _SEGMENT.sub('{layer}', path, count=1)


def bare_name(family: Family, tensor: str) -> str:
  """The name without the prefix, as the table has it."""
  tensor = tensor.removeprefix(family.prefix)
  for pattern, replacement in family.renamed:
    tensor = re.sub(pattern, replacement, tensor)
  return tensor


def full_name(family: Family, task: str, tensor: str) -> str:
  """The name in a file of the class for a task: without the prefix if that is the bare body."""
  return tensor.removeprefix(family.prefix) if task == 'features' else tensor


def live_name(family: Family, task: str, tensor: str) -> str:
  """The name in memory of the class for a task, as adapters have it."""
  name = full_name(family, task, tensor)
  for pattern, replacement in family.live:
    name = re.sub(pattern, replacement, name)
  return name
