"""Optimizer arithmetic and state in float32 whatever the parameters are stored in."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def at_least(tree: Any, dtype: Any = jnp.float32) -> Any:
  """Casts inexact leaves up to `dtype`; leaves that are more precise, and integers, stay."""

  def cast(x):
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    return x.astype(jnp.promote_types(x.dtype, dtype))

  return jax.tree.map(cast, tree)


def in_precision(
  inner: optax.GradientTransformation, dtype: Any = jnp.float32
) -> optax.GradientTransformationExtraArgs:
  """Runs `inner` on gradients and parameters cast up to at least `dtype`.

  Optax's rules follow the dtype of the parameters. In bfloat16 (8 bits of mantissa) a second moment
  with b2 = 0.999 stalls, because `0.001 * g^2` is below half a unit in the last place of `0.999 *
  nu`. Here the state of a bfloat16 model is float32, a float64 model keeps float64, and the
  updates come out in the state's dtype: whoever adds them casts the sum (`optax.apply_updates`
  does).

  Args:
    inner: any gradient transformation.
    dtype: the least precise dtype that its arithmetic and state may have.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return inner.init(at_least(params, dtype))

  def update(updates, state, params=None, **extra):
    return inner.update(at_least(updates, dtype), state, at_least(params, dtype), **extra)

  return optax.GradientTransformationExtraArgs(init, update)
