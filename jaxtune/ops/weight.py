"""A weight is a leaf: an array, or a type that brings its own product with activations.

Layers call these functions and never ask which of the two they hold.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxtune.typing import is_weight

_FEW = 8  # rows of activations, beside which a copy of the matrix is what takes time


def dot(x: jax.Array, w: Any) -> jax.Array:
  """`x @ W`: `[..., in] -> [..., out]`; a 'product' to the checkpoint policy of `models.stack`."""
  return checkpoint_name(w.dot(x) if is_weight(w) else x @ w.astype(x.dtype), 'product')


def affine(x: jax.Array, w: Any, bias: jax.Array | None = None) -> jax.Array:
  """`x @ W + bias`: `[N, in] -> [N, out]`; what a leaf that acts on both brings as `affine`."""
  if hasattr(w, 'affine'):
    return checkpoint_name(w.affine(x, bias), 'product')
  y = dot(x, w)
  return y if bias is None else y + bias.astype(y.dtype)[None]


def dot_transposed(x: jax.Array, w: Any) -> jax.Array:
  """`x @ W^T`: `[..., out] -> [..., in]`; the head of a model whose embeddings are tied."""
  if is_weight(w):
    return w.dot_transposed(x)
  w = w.astype(x.dtype)
  *lead, width = x.shape
  if math.prod(lead) > _FEW:
    return x @ w.T
  # A few rows, as in decoding: the other way round XLA's CPU would copy the matrix transposed.
  return (w @ x.reshape(-1, width).T).T.reshape(*lead, w.shape[0])


def take(w: Any, ids: jax.Array) -> jax.Array:
  """Rows `W[ids]`: `[...] -> [..., out]`."""
  return w.take(ids) if is_weight(w) else jnp.asarray(w)[ids]


def materialize(w: Any) -> jax.Array:
  """The dense matrix."""
  return w.materialize() if is_weight(w) else w


def materialize_all(tree: Any) -> Any:
  """A tree with every weight leaf made dense."""
  return jax.tree.map(materialize, tree, is_leaf=is_weight)


def axes(w: Any, names: tuple[str | None, ...]) -> Any:
  """The logical axes of a weight: its names, or of a leaf those of its fields."""
  return w.axes(names) if hasattr(w, 'axes') else names
