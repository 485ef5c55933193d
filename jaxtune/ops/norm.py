"""Normalization over the last axis, with statistics in float32."""

import jax
import jax.numpy as jnp
from jax import lax


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, offset: float = 0.0) -> jax.Array:
  """`x / sqrt(mean(x^2) + epsilon) * (offset + scale)`.

  Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4, where the offset is 0.

  Args:
    x: `[..., D]`.
    scale: `[D]`.
    epsilon: added to the mean square.
    offset: 1 where the scale is stored as its distance from 1 (Gemma).
  """
  wide = x.astype(jnp.float32)
  wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  shape = (1,) * (x.ndim - 1) + scale.shape
  return (wide * (offset + scale.astype(jnp.float32)).reshape(shape)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
  """`(x - mean) / sqrt(var + epsilon) * scale + bias` (Ba et al. 2016, arXiv:1607.06450, eq. 4).

  Args:
    x: `[..., D]`.
    scale: `[D]`.
    bias: `[D]`, or None for none.
    epsilon: added to the variance.
  """
  wide = x.astype(jnp.float32)
  wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
  wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  shape = (1,) * (x.ndim - 1) + scale.shape
  wide = wide * scale.reshape(shape)
  return (wide if bias is None else wide + bias.reshape(shape)).astype(x.dtype)
