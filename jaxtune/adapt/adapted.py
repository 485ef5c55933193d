"""Parameters that know which of them train, and the rules by which a method chooses its weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import tree
from jaxtune.typing import InputError, Params, is_weight

# Every matrix of a built-in model's layers; attention alone loses (docs/adapt.md).
LINEAR = r'(^|/)((attn|cross)/[qkvo]|(mlp|experts)/(gate|up|down)|pooler/dense)$'
HEAD = r'^head/'

Select = str | tree.Rules


@jax.tree_util.register_pytree_with_keys_class
class Adapted(dict):
  """What a method returns: the parameters, a dict like any other, and which of them train.

  `jax.tree.map` keeps the rules; a new dict made of the entries does not.

  Attributes:
    rules: path rules to True (trained) or False (frozen), see `tree.partition`.
  """

  def __init__(self, params: Mapping[str, Any], rules: tree.Rules):
    super().__init__(params)
    self.rules = tuple((pattern, bool(value)) for pattern, value in rules)

  def tree_flatten_with_keys(self):
    names = tuple(sorted(self))
    leaves = tuple((jax.tree_util.DictKey(name), self[name]) for name in names)
    return leaves, (names, self.rules)

  @classmethod
  def tree_unflatten(cls, aux, children):
    names, rules = aux
    made = cls.__new__(cls)
    dict.__init__(made, zip(names, children, strict=True))
    made.rules = rules
    return made


def rules_of(params: Params) -> tree.Rules:
  """The rules that say what trains.

  Raises:
    InputError: no method was applied.
  """
  if not isinstance(params, Adapted):
    raise InputError(
      'no method has said which of these parameters train; apply one, as in '
      'params = jaxtune.adapt.full(key, params)'
    )
  return params.rules


def trainable(params: Params) -> tuple[Params, Params]:
  """(trainable, frozen), each with None where the other has the leaf; `tree.combine` undoes it.

  Raises:
    InputError: no method was applied, or what it trains has no gradient (integer codes).
  """
  return tree.partition(params, rules_of(params))


def beside(params: Params, parts: Mapping[str, Any], undo: str) -> Adapted:
  """The parameters with further ones beside them, frozen, that no method and no model knows.

  Args:
    params: what a method returned.
    parts: top-level names and what they hold.
    undo: the function that takes them out, for the error.

  Raises:
    InputError: no method was applied, or the parameters have an entry of that name.
  """
  rules = rules_of(params)
  for name in parts:
    if name in params:
      raise InputError(
        f'the parameters have an entry {name!r} already; take it out with adapt.{undo}'
      )
  return Adapted({**params, **parts}, (*map(_held, parts), *rules))


def without(params: Params, *names: str) -> Adapted:
  """The parameters as they were before `beside`, with what was trained since."""
  held = {_held(name) for name in names}
  kept = {name: leaf for name, leaf in params.items() if name not in names}
  return Adapted(kept, [rule for rule in rules_of(params) if rule not in held])


def _held(name: str) -> tuple[str, bool]:
  return rf'^{name}/', False


def widened(params: Adapted) -> Adapted:
  """The parameters with all that trains in float32."""
  train, frozen = trainable(params)
  return tree.combine(jax.tree.map(lambda x: x.astype(jnp.float32), train), frozen)


def train_also(params: Params, rules: Sequence[tuple[str, bool]]) -> Adapted:
  """The parameters with rules ahead of those that they have; what none names stays frozen."""
  before = params.rules if isinstance(params, Adapted) else ((r'', False),)
  return Adapted(params, (*rules, *before))


def selected(params: Params, select: Select, method: str) -> dict[str, Mapping[str, Any]]:
  """The paths that `select` chooses, each with the options that its rule sets.

  Args:
    params: the parameters; rules name whole weights.
    select: a regular expression, or path rules to True, False, or a dict of the method's options
      for the weights of this rule, such as `{'rank': 4}`. The first match wins.
    method: for the messages.

  Raises:
    InputError: a weight that no rule covers, a value that is none, or nothing chosen.
  """
  rules = ((select, True), (r'', False)) if isinstance(select, str) else tuple(select)
  found: dict[str, Mapping[str, Any]] = {}
  for path, _ in tree.named_weights(params):
    value = next((value for pattern, value in rules if re.search(pattern, path)), None)
    if value is None:
      raise InputError(
        f'{method}: no rule of select covers the parameter {path!r}; end with ("", False)'
      )
    if not isinstance(value, bool | Mapping):
      raise InputError(
        f'{method}: select gives {path!r} the value {value!r}; it must be True, False, or a dict '
        'of options'
      )
    if value is not False:
      found[path] = {} if value is True else value
  if not found:
    matrices = [path for path, leaf in tree.named_weights(params) if len(leaf.shape) > 1]
    raise InputError(
      f'{method}: select {select!r} matches no parameter; the matrices are {", ".join(matrices)}'
    )
  return found


def replaced(
  params: Params,
  select: Select,
  method: str,
  make: Callable[..., Any],
  options: Mapping[str, Any],
) -> tuple[Params, list[str]]:
  """The parameters with `make(path, weight, **options)` for each chosen weight, and those paths.

  Args:
    params: the parameters; rules that they have stay.
    select: see `selected`.
    method: for the messages.
    make: what takes a weight's place.
    options: of `make`, unless a rule of `select` sets them.

  Raises:
    InputError: as `selected`; a rule sets an option that the method does not have.
  """
  chosen = selected(params, select, method)
  for path, own in chosen.items():
    for name in own:
      if name not in options:
        raise InputError(
          f'{method}: select sets {name!r} for {path!r}; its options are {", ".join(options)}'
        )
  made = tree.map_weights(
    lambda path, leaf: make(path, leaf, **{**options, **chosen[path]}) if path in chosen else leaf,
    params,
  )
  return made, list(chosen)


def wrap(
  params: Params,
  select: Select,
  method: str,
  make: Callable[..., Any],
  fields: str,
  also: str | None = HEAD,
  **options: Any,
) -> Adapted:
  """Puts a weight leaf in place of each chosen weight and trains its fields.

  Args:
    params: the parameters.
    select: see `selected`.
    method: for the messages.
    make: `(path, weight, **options) -> leaf`.
    fields: regular expression of the leaf's fields that train, as in `[ab]`.
    also: regular expression over parameters to train as they are, beside the leaves; None for none.
    **options: of `make`, unless a rule of `select` sets them.

  Raises:
    InputError: as `selected`; a rule sets an option that the method does not have.
  """
  made, chosen = replaced(params, select, method, make, options)
  rules: list[tuple[str, bool]] = []
  for path in map(re.escape, chosen):
    rules += [(rf'^{path}/({fields})$', True), (rf'^{path}/', False)]
  if also is not None:
    rules.append((also, True))
  return train_also(made, rules)


def is_adapter(leaf: Any) -> bool:
  """Whether a leaf is something around a base weight, and not an array or quantized codes."""
  return is_weight(leaf) and hasattr(leaf, 'base')


def matrix_sides(path: str, weight: Any, method: str) -> tuple[tuple[int, ...], int, int]:
  """`(leading axes, in, out)` of a weight.

  Raises:
    InputError: it is no matrix, or no stack of them.
  """
  shape = tuple(weight.shape)
  if len(shape) < 2 + tree.is_stacked(path):
    raise InputError(
      f'{method} needs a matrix, and {path!r} has the shape {shape}; narrow what it selects'
    )
  return shape[:-2], shape[-2], shape[-1]
