"""One vector a text from a model's hidden states."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Params

POOLINGS = ('mean', 'first', 'last')


def embed(
  model: ModelSpec,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  pooling: str = 'mean',
  normalize: bool = True,
  **options: Any,
) -> jax.Array:
  """The embedding of each text: its hidden states pooled, float32 `[B, D]`.

  The mean of the real tokens, normalized, is that of Sentence-BERT (Reimers & Gurevych 2019,
  arXiv:1908.10084, section 3); the product of two embeddings is then the cosine of their angle.
  `interop.load_pooling` reads how a sentence-transformers folder does it.

  Args:
    model: any encoder or decoder; its head is not used.
    params: its parameters; any weight may be a weight leaf.
    tokens: int32 `[B, T]`.
    mask: bool `[B, T]`, true for real tokens; None when all are.
    pooling: 'mean' of the real tokens; the 'first' of the row, for which texts are padded on the
      right; or the 'last' real one, which alone has seen all of a text in a decoder.
    normalize: whether to divide by the Euclidean norm.
    **options: of `model.features`.

  Raises:
    InputError: an unknown pooling.
  """
  features = model.features(params, tokens, mask, **options)
  features = features[:, -tokens.shape[1] :]  # a classifier's have those of a prompt, too
  pooled = pool(features, mask, pooling).astype(jnp.float32)
  if not normalize:
    return pooled
  norm = jnp.sqrt(jnp.sum(pooled * pooled, axis=-1, keepdims=True))
  return pooled / jnp.maximum(norm, 1e-12)


def pool(features: jax.Array, mask: jax.Array | None, pooling: str) -> jax.Array:
  """`[B, T, D] -> [B, D]`, see `embed`; what a model put before the tokens of the mask is real.

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
