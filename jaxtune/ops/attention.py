"""Scaled dot-product attention, grouped heads (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def attention_bias(
  mask: jax.Array | None,
  segments: jax.Array | None,
  causal: bool,
  length: int,
) -> jax.Array | None:
  """What is added to the scores: 0 where a query may look, a large negative number elsewhere.

  Args:
    mask: `[B, T]` bool, real tokens; others are never looked at.
    segments: `[B, T]` int, tokens look only at tokens of their own segment.
    causal: whether tokens look only backwards.
    length: `T`.

  Returns:
    `[B or 1, T, T]` float32 (query, key), or None when every token may look at every other.
  """
  allowed = None
  if causal:
    allowed = jnp.tril(jnp.ones((1, length, length), bool))
  if mask is not None:
    allowed = mask[:, None, :] if allowed is None else allowed & mask[:, None, :]
  if segments is not None:
    same = segments[:, :, None] == segments[:, None, :]
    allowed = same if allowed is None else allowed & same
  if allowed is None:
    return None
  # Finite, so that a row that may look nowhere (padding) is uniform instead of NaN.
  return jnp.where(allowed, 0.0, -1e30).astype(jnp.float32)


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None = None,
  *,
  causal: bool = False,
) -> jax.Array:
  """`softmax(q k^T / sqrt(K) + bias) v`, with the softmax in float32.

  The result is a 'product' to the checkpoint policy of `models.stack`.

  Args:
    q: `[B, T, H, K]`.
    k: `[B, T, G, K]`, G divides H.
    v: `[B, T, G, K]`.
    bias: `[B or 1, T or 1, T]` from `attention_bias`.
    causal: whether tokens look only backwards, so that scores of later ones need not be computed;
      `bias` must hide them too.

  Returns:
    `[B, T, H, K]`.
  """
  length = q.shape[1]
  if not causal:
    return checkpoint_name(_attend(q, k, v, bias), 'product')
  if bias is None:
    bias = attention_bias(None, None, causal=True, length=length)
  assert bias is not None
  # Four blocks of queries, each beside the keys up to its own end, skip 3/8 of the work; more
  # blocks skip little more. Below 64 queries a block saves nothing.
  block = max(64, -(-length // 4))
  blocks = [slice(start, min(start + block, length)) for start in range(0, length, block)]
  parts = [_attend(q[:, b], k[:, : b.stop], v[:, : b.stop], bias[:, b, : b.stop]) for b in blocks]
  return checkpoint_name(jnp.concatenate(parts, axis=1), 'product')


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> jax.Array:
  """Attention of `[B, Q, H, K]` queries to `[B, T, G, K]` keys and values.

  The query heads that share a key-value head are folded into the query axis, so each group is one
  matrix product; on CPU its backward pass takes half the time of the repeated-heads form.
  """
  batch, queries, heads, width = q.shape
  length, groups = k.shape[1:3]
  share = heads // groups
  q = (q * width**-0.5).reshape(batch, queries, groups, share, width)
  q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, share * queries, width)
  scores = jnp.einsum('bgqk,btgk->bgqt', q, k).astype(jnp.float32)
  if bias is not None:
    scores = scores.reshape(batch, groups, share, queries, length) + bias[:, None, None]
    scores = scores.reshape(batch, groups, share * queries, length)
  probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('bgqt,btgk->bgqk', probabilities, v)
  out = out.reshape(batch, groups, share, queries, width).transpose(0, 3, 1, 2, 4)
  return out.reshape(batch, queries, heads, width)
