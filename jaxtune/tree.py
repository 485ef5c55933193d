"""Path rules over parameter trees: everything chosen per parameter is a table of them.

A rule is `(pattern, value)`; the pattern is a regular expression searched in a path such as
`decoder/0-11/attn/q`. The first rule that matches wins, and a leaf that no rule covers is an error.
Rules name the weight (`attn/q`). The fields of a weight leaf (`attn/q/a`) are matched by their own
path or by that of their weight, so adapting a model does not break the rules written for it.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.typing import InputError, Params, is_weight

Rules = Sequence[tuple[str, Any]]


class Route(NamedTuple):
  """What a rule table decided for one leaf."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  pattern: str
  value: Any


class Owner(NamedTuple):
  """The parameter that a leaf of a state belongs to: the leaf's path is `state/parameter/field`.

  state: the path before the parameter's, such as `inner/0/nu`.
  position: that of the parameter among the leaves.
  field: the path after it, such as `codes`; mostly empty.
  """

  state: str
  position: int
  field: str


def path_name(path: Sequence[Any]) -> str:
  """`decoder/0-11/attn/q` for a JAX key path."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def paths(tree: Any) -> list[str]:
  """The path of every leaf, in tree order."""
  return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def is_stacked(path: str) -> bool:
  """Whether a leaf at `path` lies in a stack of layers, so that its first axis counts layers.

  A segment of a stack is named by its first and last layer: `decoder/0-11/attn/q`.
  """
  return re.search(r'(^|/)\d+-\d+/', path) is not None


def bounds(segment: str) -> tuple[int, int]:
  """`'0-7' -> (0, 8)`: the first layer and the one behind the last."""
  first, last = segment.split('-')
  return int(first), int(last) + 1


def segments(stack: Params) -> list[str]:
  """The segment names from the first layer to the last."""
  return sorted(stack, key=bounds)


def cut(stack: Params, at: int) -> Params:
  """The same stack with a segment border before layer `at`.

  Raises:
    InputError: the stack has no such layer.
  """
  ends = [bounds(segment) for segment in segments(stack)]
  if not ends[0][0] <= at <= ends[-1][1]:
    raise InputError(f'cannot cut before layer {at}: the stack has layers 0 to {ends[-1][1] - 1}')
  result: dict[str, Any] = {}
  for segment in segments(stack):
    first, end = bounds(segment)
    if first < at < end:
      result[f'{first}-{at - 1}'] = jax.tree.map(lambda x: x[: at - first], stack[segment])  # noqa: B023
      result[f'{at}-{end - 1}'] = jax.tree.map(lambda x: x[at - first :], stack[segment])  # noqa: B023
    else:
      result[segment] = stack[segment]
  return result


def named_weights(tree: Any) -> list[tuple[str, Any]]:
  """`(path, leaf)` of every array and weight leaf, in tree order."""
  leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_weight)[0]
  return [(path_name(path), leaf) for path, leaf in leaves]


def map_weights(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """Maps `function(path, leaf)` over arrays and whole weight leaves."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(path_name(path), leaf), tree, is_leaf=is_weight
  )


def _routed(rules: Rules, tree: Any) -> tuple[list[Route], Any]:
  compiled = [(re.compile(pattern), pattern, value) for pattern, value in rules]
  weights, outer = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_weight)
  routes, rebuilt = [], []
  for weight_path, weight in weights:
    fields, inner = jax.tree_util.tree_flatten_with_path(weight)
    values = []
    for field_path, field in fields:
      name = path_name((*weight_path, *field_path))
      names = {name, path_name(weight_path)}
      for expression, pattern, value in compiled:
        if any(expression.search(n) for n in names):
          routes.append(Route(name, tuple(field.shape), str(field.dtype), pattern, value))
          values.append(value)
          break
      else:
        raise InputError(
          f'no rule covers the parameter {name!r}; add one for it, or a last rule that matches all'
        )
    rebuilt.append(jax.tree.unflatten(inner, values))
  return routes, jax.tree.unflatten(outer, rebuilt)


def match(rules: Rules, tree: Any) -> Any:
  """The tree of the values that the rules give to each leaf.

  Raises:
    InputError: a leaf that no rule covers.
  """
  return _routed(rules, tree)[1]


def label(tree: Any, rules: Rules) -> Any:
  """`match` with the arguments in the order that `optax.partition` labels want (tree first)."""
  return match(rules, tree)


def routing(rules: Rules, tree: Any) -> list[Route]:
  """Which rule took which parameter, one row a leaf."""
  return _routed(rules, tree)[0]


def format_routing(routes: Sequence[Route]) -> str:
  """The routing as an aligned text table."""
  rows = [('parameter', 'shape', 'dtype', 'rule', 'value')]
  rows += [
    (r.path, 'x'.join(map(str, r.shape)) or '-', r.dtype, r.pattern, str(r.value)) for r in routes
  ]
  return aligned(rows)


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
  """Rows of cells as text in columns, flush left but for the columns in `right`."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i in right else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def partition(tree: Any, rules: Rules) -> tuple[Any, Any]:
  """Splits a tree into (trainable, frozen), each with `None` where the other has the leaf.

  Raises:
    InputError: a leaf that no rule covers, or a trainable leaf without a gradient (integer codes).
  """
  routes, chosen = _routed(rules, tree)
  for route in routes:
    if route.value and not jax.numpy.issubdtype(route.dtype, jax.numpy.inexact):
      raise InputError(
        f'rule {route.pattern!r} makes {route.path!r} trainable, but its type {route.dtype} has no '
        'gradient; freeze it, or adapt it and train the adapter'
      )
  trainable = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, chosen)
  frozen = jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, chosen)
  return trainable, frozen


def combine(trainable: Any, frozen: Any) -> Any:
  """The inverse of `partition`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None
  )


def owners(state: Any, params: Any) -> list[Owner | None]:
  """The parameter of each leaf of `state` in tree order, None for a leaf of no single parameter.

  It is the one whose path lies in the leaf's path; of several the longest, and then the last.
  """
  places = {name: i for i, name in enumerate(paths(params))}

  def owner(path: Any) -> Owner | None:
    parts = [path_name((key,)) for key in path]
    for length in range(len(parts), -1, -1):
      for end in range(len(parts), length - 1, -1):
        position = places.get('/'.join(parts[end - length : end]))
        if position is not None:
          return Owner('/'.join(parts[: end - length]), position, '/'.join(parts[end:]))
    return None

  return [owner(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]


def state_shardings(state: Any, params: Any, shardings: Any, replicated: NamedSharding) -> Any:
  """Shardings of a tree that holds leaves of `params` somewhere (a train or optimizer state).

  A leaf that belongs to a parameter (see `owners`) lies like it along the leading axes that both
  have, which are all of them for a moment or its codes, and is whole along the others. A leaf of no
  parameter (counts, scalars) is replicated.

  Args:
    state: arrays or their shapes.
    params: the same, all that `state` may hold leaves of.
    shardings: a `NamedSharding` at the path of each parameter.
    replicated: the sharding of all that belongs to none.

  Raises:
    InputError: a parameter without a sharding.
  """
  known = {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(shardings)[0]}
  owned = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if path_name(path) not in known:
      raise InputError(f'the shardings have none for the parameter {path_name(path)!r}; add one')
    owned.append((leaf, known[path_name(path)]))

  def one(leaf: Any, owner: Owner | None) -> NamedSharding:
    if owner is None:
      return replicated
    param, sharding = owned[owner.position]
    if leaf.shape == param.shape:
      return sharding
    same = [a == b for a, b in zip(leaf.shape, param.shape, strict=False)]
    common = [*same, False].index(False)
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:common]))

  leaves, structure = jax.tree.flatten(state)
  return jax.tree.unflatten(structure, list(map(one, leaves, owners(state, params))))


def difference(wanted: Any, found: Any) -> str | None:
  """The first leaf in which `found` is another tree than `wanted`, in words; None if they agree.

  Compared are the paths, shapes and dtypes of leaves.
  """

  def leaves(tree: Any) -> dict[str, str]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in flat}

  new, old = leaves(wanted), leaves(found)
  for name in [*new, *old]:
    if name not in old:
      return f'{name!r} of {new[name]} is missing'
    if name not in new:
      return f'{name!r} of {old[name]} is not wanted'
    if new[name] != old[name]:
      return f'{name!r} is {old[name]} where {new[name]} is wanted'
  return None


def count(tree: Any) -> int:
  """Number of elements in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def size(tree: Any) -> int:
  """Bytes of all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
