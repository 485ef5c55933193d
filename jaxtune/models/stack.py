"""Layers of one shape, stacked on a leading axis and scanned, cut into consecutive segments.

A stack is a dict from segment to stacked parameters: `{'0-7': ..., '8-11': ...}`. One segment holds
all layers until something (a method that trains the last k layers, say) needs them apart; the
functions here read the segments from the keys.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.tree import bounds, segments
from jaxtune.typing import Key, Params

# What of a layer the backward pass computes again: 'none'; 'products', what lies between products
# (`ops.dot`, `ops.attention`): norms, rotation, softmax, activation; or in 'full' everything but
# what goes from layer to layer. What is kept scan zero-fills, writes and reads: on CPU 'none' takes
# 6% more time than 'products', and twice the memory.
REMAT: Mapping[str, Any] = {
  'none': jax.checkpoint_policies.everything_saveable,
  'products': jax.checkpoint_policies.save_only_these_names('product'),
  'full': jax.checkpoint_policies.nothing_saveable,
}


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
  remat: str,
) -> Any:
  """`x` through all layers in order; the body is compiled once a segment.

  Args:
    layer: `(params of one layer, x, number of the layer, key) -> x`.
    stack: segments of stacked parameters.
    x: activations, or a tree of what goes from layer to layer.
    key: for dropout; every layer gets its own, the same however the stack is cut. None for none.
    remat: a name of `REMAT`.
  """

  def body(x: Any, xs: tuple[Params, jax.Array]) -> tuple[Any, None]:
    params, index = xs
    own = None if key is None else jax.random.fold_in(key, index)
    return layer(params, x, index, own), None

  # Under scan nothing can be merged across iterations anyway, and the barrier costs time.
  body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat])
  for segment in segments(stack):
    first, end = bounds(segment)
    x, _ = lax.scan(body, x, (stack[segment], jnp.arange(first, end)))
  return x
