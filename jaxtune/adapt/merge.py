"""From adapted parameters to plain ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops, tree
from jaxtune.adapt.adapted import Adapted, is_adapter
from jaxtune.typing import Params, is_weight


def merge(params: Params) -> Params:
  """Every weight leaf as the one matrix that it stands for, computed in float32.

  The result is what the base model had: the same paths, and of each weight the dtype.

  Raises:
    InputError: a method that is no function of the weights (bottleneck adapters).
  """
  plain = ops.scaled_biases(dict(params) if isinstance(params, Adapted) else params)
  with jax.default_matmul_precision('highest'):  # accelerators round to bf16 by default
    return tree.map_weights(lambda _, leaf: _dense(leaf) if is_weight(leaf) else leaf, plain)


def base_of(leaf: Any) -> Any:
  """The innermost weight under any adapters: an array, or quantized codes."""
  return base_of(leaf.base) if is_adapter(leaf) else leaf


def _dense(leaf: Any) -> jax.Array:
  def widen(leaf: Any) -> Any:
    if is_adapter(leaf):
      return dataclasses.replace(leaf, base=widen(leaf.base))
    return (leaf.materialize() if is_weight(leaf) else leaf).astype(jnp.float32)

  base = base_of(leaf)
  dtype = jax.eval_shape(base.materialize).dtype if is_weight(base) else base.dtype
  return ops.materialize(widen(leaf)).astype(dtype)
