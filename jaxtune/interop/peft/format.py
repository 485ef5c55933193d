"""What a kind of adapter has to tell so that PEFT's files of it can be written and read."""

import collections
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops, tree
from jaxtune.interop import fields
from jaxtune.interop.peft.modules import Module
from jaxtune.interop.tensors import Tensor
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

PREFIX = 'base_model.model.'


class Export(NamedTuple):
  """What a writer is given.

  Attributes:
    model, params: what is exported.
    modules: those that do not go into the file whole, by the name that they have there.
    held: the paths of the leaves that are this format's.
    whole: names of the modules that go into the file whole.
  """

  model: ModelSpec
  params: Params
  modules: Mapping[str, Module]
  held: frozenset[str]
  whole: frozenset[str] = frozenset()

  def adapted(self) -> list[tuple[Module, list[Any]]]:
    """Each module of which a weight is held, with its weights' leaves at its place, as NumPy.

    Raises:
      InputError: an adapter cannot be on that module.
    """
    leaves = dict(tree.named_weights(self.params))
    found = []
    for module in self.modules.values():
      if not any(piece.path in self.held for piece in module.weight):
        continue
      reason = module.obstacle()
      if reason:
        raise InputError(f'{reason}; write the whole model with save_hf')
      found.append((module, [piece.of(leaves[piece.path]) for piece in module.weight]))
    return found


class Written(NamedTuple):
  """What a writer returns.

  Attributes:
    tensors: of the file, by their names in it.
    modules: names of the modules with an adapter: the save makes `target_modules` of them.
    config: the other fields of adapter_config.json.
    beside: names of modules whose tensors PEFT finds by other fields than `target_modules`.
  """

  tensors: dict[str, np.ndarray]
  modules: set[str]
  config: dict[str, Any]
  beside: Collection[str] = ()


class Import(NamedTuple):
  """What a reader is given.

  Attributes:
    folder: of the adapter, for messages.
    config: of adapter_config.json.
    tensors: those of the file without `base_model.model.` and the family's prefix.
    full: to each of these names the one in the file without `base_model.model.`.
    used: names of tensors that were read; the load refuses a file of which some were not.
    model, params: of the base.
    modules: all of them, by their names without the family's prefix.
  """

  folder: pathlib.Path
  config: dict[str, Any]
  tensors: Mapping[str, Tensor]
  full: Mapping[str, str]
  used: set[str]
  model: ModelSpec
  params: Params
  modules: Mapping[str, Module]

  @property
  def file(self) -> str:
    return f'{self.folder}/adapter_config.json'

  def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A tensor as float32; of this shape, if one is given.

    Raises:
      InputError: it is missing, has another shape, or holds NaN.
    """
    self.used.add(name)
    if name not in self.tensors:
      raise InputError(f'{self.folder}: lacks the tensor {PREFIX}{name}; take a whole adapter')
    tensor = self.tensors[name]
    if tensor.dtype is None or (shape is not None and tensor.shape != shape):
      raise InputError(
        f'{self.folder}: tensor {tensor.name} is {list(tensor.shape)} {tensor.kind}, but the model '
        f'and adapter_config.json make it {list(shape or ())}; take the base it was made for'
      )
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
      raise InputError(
        f'{self.folder}: tensor {tensor.name} holds NaN or infinite numbers; train again'
      )
    return values

  def setting(self, module: str, kind: str, key: str, patterns: str) -> Any:
    """A number of a module by PEFT's rule: the first pattern that matches its name's end.

    Args:
      module: without the family's prefix.
      kind: a suffix that the module has in the file, to find its full name there.
      key: the field without patterns, such as `r`.
      patterns: the field of patterns, such as `rank_pattern`.
    """
    name = self.full.get(f'{module}.{kind}', f'{module}.{kind}').removesuffix(f'.{kind}')
    for pattern, value in (self.config.get(patterns) or {}).items():
      if re.match(rf'(.*\.)?({pattern})$', name):
        return value
    return self.config.get(key)

  def integer(self, name: str, value: Any) -> int:
    return fields.integer({name: value}, self.file, name)

  def real(self, name: str, value: Any) -> float:
    return fields.real({name: value}, self.file, name)

  def wrapped(
    self,
    find: Callable[[Module, tuple[int, int]], dict[str, np.ndarray] | None],
    blank: Callable[[np.ndarray, dict[str, np.ndarray]], dict[str, np.ndarray]],
    make: Callable[..., Any],
    part: Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]] | None = None,
    pattern: str = '',
  ) -> Params:
    """The parameters with a leaf around every weight of whose modules the file has an adapter.

    Layers of one stack whose fields differ in size are padded with zeros.

    Args:
      find: `(module, (in, out)) -> fields` of its leaf, ours in shape; None without an adapter.
      blank: `(weight [in, out], fields of another layer) -> fields` of a leaf that changes nothing.
      make: `(weight, **fields) -> leaf`.
      part: `(fields, outputs) -> fields` of the leaf on these outputs of a fused tensor; None where
        the kind cannot be cut.
      pattern: regular expression of the paths to look at.
    """
    where: dict[str, dict[tuple[int, ...], tuple[Module, int]]] = {}
    for module in self.modules.values():
      for number, piece in enumerate(module.weight):
        where.setdefault(piece.path, {})[piece.place] = (module, number)

    def one(module: Module, number: int, shape: tuple[int, ...]) -> dict[str, np.ndarray] | None:
      if len(shape) < 2 or module.obstacle():
        return None
      if len(module.weight) == 1 and module.weight[0].row.part is None:
        return find(module, (shape[-2], shape[-1]))
      rows = module.weight[number].row.part
      total = sum(len(piece.row.part) for piece in module.weight if piece.row.part is not None)
      found = find(module, (shape[-2], total))
      if found is None:
        return None
      if part is None or rows is None:
        raise InputError(
          f'{self.folder}: has an adapter on {module.name}, which jaxtune keeps in several parts; '
          'merge it into its base with PEFT (merge_and_unload) and load the model'
        )
      return part(found, rows)

    def adapt(path: str, leaf: Any) -> Any:
      places = where.get(path, {})
      if not re.search(pattern, path):
        return leaf
      found = {place: one(*places[place], tuple(leaf.shape)) for place in places}
      some = next((f for f in found.values() if f is not None), None)
      if some is None:
        return leaf
      filled = {
        place: blank(_weight(leaf, place), some) if f is None else f for place, f in found.items()
      }
      stacked = {name: jnp.asarray(_stacked([f[name] for f in filled.values()])) for name in some}
      if () in filled:
        stacked = {name: value[0] for name, value in stacked.items()}
      return make(leaf, **stacked)

    return tree.map_weights(adapt, self.params)


def _weight(leaf: Any, place: tuple[int, ...]) -> np.ndarray:
  return np.asarray(ops.materialize(jax.tree.map(lambda x: x[place], leaf)), np.float32)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
  """Arrays on a new first axis, padded with zeros to the largest."""
  shape = tuple(max(sides) for sides in zip(*(array.shape for array in arrays), strict=True))
  out = np.zeros((len(arrays), *shape), np.float32)
  for row, array in enumerate(arrays):
    place: tuple[Any, ...] = (row, *(slice(side) for side in array.shape))
    out[place] = array
  return out


class Format(NamedTuple):
  """One kind of adapter in PEFT's files; `formats.FORMATS` is the table of them.

  Attributes:
    peft_type: of adapter_config.json.
    holds: `(path, leaf, trains) -> bool`: whether a parameter is one of this kind.
    write: see `Export`.
    read: `(files) -> params` with leaves; which fields train is `trained`.
    trained: regular expression over the paths of the fields that train, as `/[ab]$`.
    biases: PEFT's word in the field `bias` for the biases of adapted modules, as `lora_only`; ''
      where the kind has no such field.
    moves: `(name, values) -> bool`: whether a tensor shows that the adapter does something.
    known: fields of adapter_config.json that `read` understands or that change nothing.
    prefix: what precedes the names of modules in the file.
    beside: `(leaf) -> bool`: whether a leaf is of another kind that these files hold too.
    saves: whether they hold other modules whole.
    alone: whether nothing but a head may have been trained besides; else it is not this kind.
  """

  peft_type: str
  holds: Callable[[str, Any, bool], bool]
  write: Callable[[Export], Written]
  read: Callable[[Import], Params]
  trained: str
  moves: Callable[[str, np.ndarray], bool]
  known: frozenset[str] = frozenset()
  prefix: str = PREFIX
  biases: str = ''
  beside: Callable[[Any], bool] = lambda leaf: False
  saves: bool = True
  alone: bool = False


def zeros(
  weight: np.ndarray, like: dict[str, np.ndarray], scale: float = 1.0
) -> dict[str, np.ndarray]:
  """The fields of a leaf whose product changes nothing: what `wrapped` wants of most kinds."""
  del weight
  fields = {name: np.zeros_like(value) for name, value in like.items()}
  return fields | {'scale': np.array(scale, np.float32)}


def patterns(ranks: Mapping[str, int], alphas: Mapping[str, float], alpha: str) -> dict[str, Any]:
  """The fields of ranks and alphas: the most frequent ones, and patterns for the other modules.

  Args:
    ranks, alphas: by module.
    alpha: PEFT's name of the field.
  """
  r, a = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
  return {
    'r': r,
    alpha: a,
    'rank_pattern': {module: own for module, own in ranks.items() if own != r},
    'alpha_pattern': {module: own for module, own in alphas.items() if own != a},
  }


def plain(number: float) -> int | float:
  """A number without the noise of float32: `32`, not `32.00000048`."""
  number = float(f'{number:.7g}')
  return int(number) if number.is_integer() else number
