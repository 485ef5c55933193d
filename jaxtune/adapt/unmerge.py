"""Merged weights apart again, and how far merging moved the model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import tree
from jaxtune.adapt.adapted import is_adapter
from jaxtune.adapt.lora import LoRA
from jaxtune.adapt.lora_starts import Residual
from jaxtune.typing import InputError, Params


def unmerge(merged: Params, params: Params) -> Params:
  """The base again: merged weights minus the adapters that went into them.

  `W = (W + s A B) - s A B` in float32: exact to its rounding for float32 weights. A bfloat16 weight
  was rounded to 8 bits of mantissa when it was merged, and what was lost does not come back: there
  the base is only near, by up to half a unit in the last place of the merged weight. Keep the base
  where you can; this is for when merging took its place.

  Args:
    merged: from `merge`.
    params: the same parameters under their adapters, of which only the adapters are read.

  Returns:
    Plain parameters in the types of `merged`; what no adapter is on is as in `merged`.

  Raises:
    InputError: an adapter other than LoRA, or one on a weight that `merged` does not have.
  """
  leaves = dict(tree.named_weights(params))

  def one(path: str, weight: Any) -> Any:
    leaf, left = leaves.pop(path, None), weight.astype(jnp.float32)
    if not is_adapter(leaf):
      return weight
    while is_adapter(leaf) and not isinstance(leaf, Residual):
      if not isinstance(leaf, LoRA):
        raise InputError(
          f'unmerge: {path!r} is a {type(leaf).__name__}, and only a LoRA can be taken out of a '
          'merged weight again; keep the base'
        )
      left = left - leaf.scale[..., None, None] * (leaf.a @ leaf.b)
      leaf = leaf.base
    return left.astype(weight.dtype)

  with jax.default_matmul_precision('highest'):
    base = tree.map_weights(one, merged)
  for path, leaf in leaves.items():
    if is_adapter(leaf):
      raise InputError(
        f'unmerge: the merged weights have no {path!r}; give those of these adapters'
      )
  return base


def merge_difference(
  apply: Callable[..., jax.Array], params: Params, merged: Params, *inputs: Any, **options: Any
) -> dict[str, float]:
  """How far the outputs of the merged model are from those of the adapted one.

  Rounding alone: about 1e-6 of `scale` in float32, 1e-2 in bfloat16. More than that is a fault.

  Args:
    apply: `(params, *inputs, **options) -> outputs`, as `model.apply`.
    params: with adapters.
    merged: without.
    *inputs: tokens, mask.
    **options: of `apply`.

  Returns:
    `max_abs`, the largest difference of an output, and `scale`, the largest output of the adapted
    model.
  """
  run = jax.jit(apply)
  adapted = run(params, *inputs, **options).astype(jnp.float32)
  plain = run(merged, *inputs, **options).astype(jnp.float32)
  return {
    'max_abs': float(jnp.max(jnp.abs(adapted - plain))),
    'scale': float(jnp.max(jnp.abs(adapted))),
  }
