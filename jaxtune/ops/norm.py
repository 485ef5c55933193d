"""Normalization over the last axis, with statistics in float32."""

import jax
import jax.numpy as jnp
from jax import lax


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """`x / sqrt(mean(x^2) + epsilon) * scale` (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

  Args:
    x: `[..., D]`.
    scale: `[D]`.
    epsilon: added to the mean square.
  """
  wide = x.astype(jnp.float32)
  wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  shape = (1,) * (x.ndim - 1) + scale.shape
  return (wide * scale.reshape(shape)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
  """`(x - mean) / sqrt(var + epsilon) * scale + bias` (Ba et al. 2016, arXiv:1607.06450, eq. 4).

  Args:
    x: `[..., D]`.
    scale: `[D]`.
    bias: `[D]`.
    epsilon: added to the variance.
  """
  wide = x.astype(jnp.float32)
  wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
  wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  shape = (1,) * (x.ndim - 1) + scale.shape
  return (wide * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)
