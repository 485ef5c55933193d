"""Rotary position embedding, the two-halves layout of Llama (Su et al. 2021, arXiv:2104.09864)."""

import jax
import jax.numpy as jnp


def rope_angles(positions: jax.Array, width: int, base: float) -> jax.Array:
  """Angles `position * base^(-2i/K)`, eq. 15, in radians: `[B, T] -> [B, T, K/2]`, float32."""
  frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  return positions.astype(jnp.float32)[..., None] * frequency[None, None, :]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns each pair `(x_i, x_{i+K/2})` by its angle.

  The paper pairs neighbours `(x_{2i}, x_{2i+1})`; the weights of Llama-type models as Hugging Face
  stores them pair the halves.

  Args:
    x: `[B, T, H, K]`.
    angles: `[B, T, K/2]`.
  """
  cos = jnp.cos(angles)[:, :, None, :].astype(x.dtype)
  sin = jnp.sin(angles)[:, :, None, :].astype(x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
