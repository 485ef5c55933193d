"""Layers of one shape, stacked on a leading axis and scanned, cut into consecutive segments.

A stack is a dict from segment to stacked parameters: `{'0-7': ..., '8-11': ...}`. One segment holds
all layers until something (a method that trains the last k layers, say) needs them apart; the
functions here read the segments from the keys.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.typing import InputError, Key, Params

# What scan keeps it zero-fills, writes and reads: on CPU, keeping everything takes 6% more time
# than computing the cheap parts again, and twice the memory.
_PRODUCTS = jax.checkpoint_policies.save_only_these_names('product')


def bounds(segment: str) -> tuple[int, int]:
  """`'0-7' -> (0, 8)`: the first layer and the one behind the last."""
  first, last = segment.split('-')
  return int(first), int(last) + 1


def segments(stack: Params) -> list[str]:
  """The segment names from the first layer to the last."""
  return sorted(stack, key=bounds)


def init_stack(init_layer: Callable[..., Params], key: Key, kinds: Sequence[Any]) -> Params:
  """Every layer made by `init_layer(key, kind=...)` under a key of its own.

  Consecutive layers of one kind (with experts, say) have the same parameters and are one segment.
  """
  keys = jax.random.split(key, len(kinds))
  stack, first = {}, 0
  for kind, group in itertools.groupby(kinds):
    end = first + len(list(group))
    init = functools.partial(init_layer, kind=kind)
    stack[f'{first}-{end - 1}'] = jax.vmap(init)(keys[first:end])
    first = end
  return stack


def scan_stack(
  layer: Callable[[Params, Any, jax.Array, Key | None], Any],
  stack: Params,
  x: Any,
  key: Key | None,
  remat: bool,
) -> Any:
  """`x` through all layers in order; the body is compiled once a segment.

  Args:
    layer: `(params of one layer, x, number of the layer, key) -> x`.
    stack: segments of stacked parameters.
    x: activations, or a tree of what goes from layer to layer.
    key: for dropout; every layer gets its own, the same however the stack is cut. None for none.
    remat: keep only the activations between layers and compute the rest again in the backward pass;
      else keep the products too (`ops.dot`, `ops.attention`) and compute only what lies between
      them again: norms, rotation, softmax, activation.
  """

  def body(x: Any, xs: tuple[Params, jax.Array]) -> tuple[Any, None]:
    params, index = xs
    own = None if key is None else jax.random.fold_in(key, index)
    return layer(params, x, index, own), None

  # Under scan nothing can be merged across iterations anyway, and the barrier costs time.
  body = jax.checkpoint(body, prevent_cse=False, policy=None if remat else _PRODUCTS)
  for segment in segments(stack):
    first, end = bounds(segment)
    x, _ = lax.scan(body, x, (stack[segment], jnp.arange(first, end)))
  return x


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
