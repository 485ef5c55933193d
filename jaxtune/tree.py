"""Path rules over parameter trees: everything chosen per parameter is a table of them.

A rule is `(pattern, value)`; the pattern is a regular expression searched in a path such as
`decoder/0-11/attn/q`. The first rule that matches wins, and a leaf that no rule covers is an error.
Rules name the weight (`attn/q`). The fields of a weight leaf (`attn/q/a`) are matched by their own
path or by that of their weight, so adapting a model does not break the rules written for it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxtune.typing import InputError, is_weight

Rules = Sequence[tuple[str, Any]]


class Route(NamedTuple):
  """What a rule table decided for one leaf."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  pattern: str
  value: Any


def path_name(path: Sequence[Any]) -> str:
  """`decoder/0-11/attn/q` for a JAX key path."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def is_stacked(path: str) -> bool:
  """Whether a leaf at `path` lies in a stack of layers, so that its first axis counts layers.

  A segment of a stack is named by its first and last layer: `decoder/0-11/attn/q`.
  """
  return re.search(r'(^|/)\d+-\d+/', path) is not None


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
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
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


def count(tree: Any) -> int:
  """Number of elements in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def size(tree: Any) -> int:
  """Bytes of all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
