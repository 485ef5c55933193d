"""A weight is a leaf: an array, or a type that brings its own product with activations.

Layers call these functions and never ask which of the two they hold.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxtune import tree
from jaxtune.ops.matmul import matmul
from jaxtune.typing import Params, is_weight

_KERNEL = re.compile(r'(^|/)kernel$')
_FEW = 8  # rows of activations, beside which a copy of the matrix is what takes time


def dot(x: jax.Array, w: Any) -> jax.Array:
  """`x @ W`: `[..., in] -> [..., out]`; a 'product' to the checkpoint policy of `models.stack`.

  Of a leaf whose `recomputes` is true the products inside are that and what it makes of them is
  not: for leaves whose backward pass needs them anyway, which would keep two arrays otherwise.
  """
  if getattr(w, 'recomputes', False):
    return w.dot(x)
  return checkpoint_name(w.dot(x) if is_weight(w) else matmul(x, w.astype(x.dtype)), 'product')


def affine(x: jax.Array, w: Any, bias: jax.Array | None = None) -> jax.Array:
  """`x @ W + bias`: `[..., in] -> [..., out]`; what a leaf that acts on both brings as `affine`."""
  if hasattr(w, 'affine'):
    return checkpoint_name(w.affine(x, bias), 'product')
  y = dot(x, w)
  if bias is None:
    return y
  return y + jnp.expand_dims(scaled_bias(w, bias).astype(y.dtype), range(y.ndim - 1))


def scaled_bias(w: Any, bias: jax.Array) -> jax.Array:
  """The bias beside a weight, `[..., out]`, as the leaf scales it, or one under the leaf."""
  if hasattr(w, 'scale_bias'):
    return w.scale_bias(bias)
  return scaled_bias(w.base, bias) if is_weight(w) and hasattr(w, 'base') else bias


def bias_path(path: str) -> str:
  """The bias of a weight: `attn/q_bias` of ours, `bias` beside Flax's `kernel`."""
  return re.sub(r'(^|/)kernel$', r'\1bias', path) if _KERNEL.search(path) else f'{path}_bias'


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


def scaled_biases(params: Params) -> Params:
  """The parameters with every bias as the leaf beside it scales it: of weights made dense after."""
  leaves = {bias_path(path): w for path, w in tree.named_weights(params) if is_weight(w)}
  return tree.map_weights(
    lambda path, x: scaled_bias(leaves[path], x) if path in leaves else x, params
  )


def materialize_all(params: Params) -> Params:
  """The parameters with every weight leaf made dense, and their biases scaled."""
  return jax.tree.map(materialize, scaled_biases(params), is_leaf=is_weight)


def axes(w: Any, names: tuple[str | None, ...]) -> Any:
  """The logical axes of a weight: its names, or of a leaf those of its fields."""
  return w.axes(names) if hasattr(w, 'axes') else names
