"""Whether the tensors of a file are those that a model's parameters are made of."""

import collections
import difflib
from collections.abc import Collection, Mapping, Sequence

from jaxtune import tree
from jaxtune.interop.names import Name, Tensors, generic, located, tensors_of
from jaxtune.interop.tensors import TYPES, Tensor
from jaxtune.typing import InputError, Params


def without_copies(
  wanted: Params, names: Sequence[Name], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
  """The tensors without the copies that the table's second rows name; see `Name`.

  Where only the copy is in the file it takes the tensor's place.

  Raises:
    InputError: a copy that is none.
  """
  rows = collections.defaultdict(list)
  for name in names:
    rows[name.ours].append(name)
  left = dict(tensors)
  for path, leaf in tree.named_weights(wanted):
    first, *others = (located(row, path, leaf.shape) for row in rows[generic(path)])
    for copy in others:
      for own, second in zip(first.names, copy.names, strict=True):
        if second not in left:
          continue
        found = left.pop(second)
        if not left.setdefault(own, found).same(found):
          raise InputError(
            f'{found.file}: {found.name} differs from {left[own].name}, but the config makes them '
            'one; take the config that belongs to the weights (tie_word_embeddings, say)'
          )
  return left


def check(wanted: Params, names: Sequence[Name], tensors: Mapping[str, Tensor]) -> set[str]:
  """That every leaf has its tensors in the right shapes; returns the names of the tensors used.

  Raises:
    InputError: a tensor is missing, is not of floating type, or has another shape than the
      configuration gives it.
  """
  file = next(iter(tensors.values())).file if tensors else 'the file'
  sources = [tensors_of(names, path, leaf.shape) for path, leaf in tree.named_weights(wanted)]
  for source in sources:
    if source.total > len(tensors):
      raise InputError(
        f'{file}: holds {len(tensors)} tensors, but the config asks for {source.total} like '
        f'{source.name((0, 0))}; take the config that belongs to the weights'
      )
  used: collections.Counter[str] = collections.Counter()  # the outputs that are ours of each tensor
  for source in sources:
    for name in source.names:
      used[name] += source.matrix[source.out_axis] if source.rest else 1
  missing = [name for name in used if name not in tensors]
  if missing:
    some = listed(missing, [name for name in tensors if name not in used])
    raise InputError(f'{file}: lacks the tensor {some}; take a whole checkpoint of this model')
  for source in sources:
    for name in source.names:
      _check_one(source, used[name], tensors[name])
  return set(used)


def _check_one(source: Tensors, outputs: int, tensor: Tensor) -> None:
  shape = list(source.matrix)
  if source.row.part is not None:
    shape[source.out_axis] = outputs
  shape = shape if source.row.shape is None else list(source.row.shape)
  if list(tensor.shape) != shape:
    raise InputError(
      f'{tensor.file}: tensor {tensor.name} has the shape {list(tensor.shape)}, but the config '
      f'makes it {shape}; take the config that belongs to the weights'
    )
  if tensor.dtype is None:
    raise InputError(
      f'{tensor.file}: tensor {tensor.name} is of type {tensor.kind}; jaxtune reads '
      f'{", ".join(TYPES)}, so take a checkpoint that is not quantized'
    )


def listed(names: Collection[str], known: Collection[str]) -> str:
  """The first few names, each with the one among the known that is nearest to it."""
  some = []
  for name in sorted(names)[:3]:
    near = difflib.get_close_matches(name, sorted(known)[:1000], 1)
    some.append(f'{name} (the nearest is {near[0]})' if near else name)
  return ', '.join(some) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
