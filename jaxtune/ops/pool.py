"""One vector a text from the hidden states of its tokens."""

import jax
import jax.numpy as jnp

from jaxtune.typing import InputError

POOLINGS = ('mean', 'first', 'last')


def pool(features: jax.Array, mask: jax.Array | None, pooling: str) -> jax.Array:
  """`[B, T, D] -> [B, D]`, see `models.embed`; what a model put before the mask's tokens is real.

  Raises:
    InputError: an unknown pooling.
  """
  batch, length, _ = features.shape
  if pooling == 'first':
    return features[:, 0]
  real = jnp.ones((batch, length), bool) if mask is None else mask
  real = jnp.pad(real, ((0, 0), (length - real.shape[1], 0)), constant_values=True)
  if pooling == 'last':
    last = jnp.max(jnp.where(real, jnp.arange(length)[None], 0), axis=1)
    return features[jnp.arange(batch), last]
  if pooling == 'mean':
    wide = jnp.where(real[:, :, None], features, 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return (jnp.sum(wide, axis=1) / count).astype(features.dtype)
  raise InputError(f'pooling is {pooling!r}; known: {", ".join(POOLINGS)}')


def normalize(x: jax.Array) -> jax.Array:
  """`x / |x|` along the last axis, in float32; zeros stay zeros, with a gradient of zero."""
  x = x.astype(jnp.float32)
  squared = jnp.sum(x * x, axis=-1, keepdims=True)
  # The square root of zero has no gradient: it would be NaN for all.
  norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
  return x / jnp.maximum(norm, 1e-12)
