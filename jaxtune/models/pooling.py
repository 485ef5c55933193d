"""One vector a text from a model's hidden states."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import Params


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
  pooled = ops.pool(features, mask, pooling).astype(jnp.float32)
  return ops.normalize(pooled) if normalize else pooled
