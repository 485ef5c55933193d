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

from jaxtune.tree import bounds, segments
from jaxtune.typing import Key, Params

# What scan keeps it zero-fills, writes and reads: on CPU, keeping everything takes 6% more time
# than computing the cheap parts again, and twice the memory.
_PRODUCTS = jax.checkpoint_policies.save_only_these_names('product')


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
