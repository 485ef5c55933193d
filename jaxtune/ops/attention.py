"""Scaled dot-product attention, grouped heads (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def attention_bias(
  mask: jax.Array | None,
  segments: jax.Array | None,
  causal: bool,
  length: int,
  window: int = 0,
) -> jax.Array | None:
  """What is added to the scores: 0 where a query may look, a large negative number elsewhere.

  Args:
    mask: `[B, T]` bool, real tokens; others are never looked at.
    segments: `[B, T]` int, tokens look only at tokens of their own segment.
    causal: whether tokens look only backwards.
    length: `T`.
    window: how far a token looks: at the `window` latest tokens, itself among them, when causal,
      else at `window` tokens on either side of it; 0 for no limit.

  Returns:
    `[B or 1, T, T]` float32 (query, key), or None when every token may look at every other.
  """
  allowed = None
  if causal:
    allowed = jnp.tril(jnp.ones((1, length, length), bool))
  if window:
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    near = distance < window if causal else jnp.abs(distance) <= window
    allowed = near[None] if allowed is None else allowed & near[None]
  if mask is not None:
    allowed = mask[:, None, :] if allowed is None else allowed & mask[:, None, :]
  if segments is not None:
    same = segments[:, :, None] == segments[:, None, :]
    allowed = same if allowed is None else allowed & same
  if allowed is None:
    return None
  return hidden(allowed)


def hidden(allowed: jax.Array) -> jax.Array:
  """0 where a query may look, a large negative number elsewhere, in float32.

  Finite, so that a row that may look nowhere (padding) is uniform instead of NaN.
  """
  return jnp.where(allowed, 0.0, -1e30).astype(jnp.float32)


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None = None,
  *,
  causal: bool = False,
  scale: float | None = None,
  cap: float = 0.0,
) -> jax.Array:
  """`softmax(capped(scale q k^T) + bias) v`, with the softmax in float32.

  The result is a 'product' to the checkpoint policy of `models.stack`.

  Args:
    q: `[B, T, H, K]`.
    k: `[B, S, G, K]`, G divides H.
    v: `[B, S, G, K]`.
    bias: `[B or 1, T or 1, S]` from `attention_bias`, or with a heads' axis `[B or 1, H, T, S]`.
    causal: whether tokens look only backwards, those of the queries being the last T of S, so that
      scores of later ones need not be computed; `bias` must hide them too.
    scale: of the scores; None for `1 / sqrt(K)`.
    cap: scores are `cap * tanh(scores / cap)` (Gemma 2, arXiv:2408.00118, section 2); 0 for as they
      are.

  Returns:
    `[B, T, H, K]`.
  """
  length = q.shape[1]
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  if not causal:
    return checkpoint_name(_attend(q, k, v, bias, scale, cap), 'product')
  if bias is None:
    bias = attention_bias(None, None, causal=True, length=length)
  assert bias is not None
  # Four blocks of queries, each beside the keys up to its own end, skip 3/8 of the work; more
  # blocks skip little more. Below 64 queries a block saves nothing.
  block = max(64, -(-length // 4))
  before = k.shape[1] - length
  blocks = [slice(start, min(start + block, length)) for start in range(0, length, block)]
  parts = [
    _attend(q[:, b], k[:, :end], v[:, :end], bias[..., b, :end], scale, cap)
    for b in blocks
    for end in [before + b.stop]
  ]
  return checkpoint_name(jnp.concatenate(parts, axis=1), 'product')


def _attend(
  q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float, cap: float
) -> jax.Array:
  """Attention of `[B, Q, H, K]` queries to `[B, S, G, K]` keys and values.

  The query heads that share a key-value head are folded into the query axis, so each group is one
  matrix product; on CPU its backward pass takes half the time of the repeated-heads form.
  """
  batch, queries, heads, width = q.shape
  length, groups = k.shape[1:3]
  share = heads // groups
  q = (q * scale).reshape(batch, queries, groups, share, width)
  q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, share * queries, width)
  scores = jnp.einsum('bgqk,btgk->bgqt', q, k).astype(jnp.float32)
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  if bias is not None:
    if bias.ndim == 4:
      bias = bias.reshape(bias.shape[0], groups, share, *bias.shape[2:])
    else:
      bias = bias[:, None, None]
    scores = scores.reshape(batch, groups, share, queries, length) + bias
    scores = scores.reshape(batch, groups, share * queries, length)
  probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('bgqt,btgk->bgqk', probabilities, v)
  out = out.reshape(batch, groups, share, queries, width).transpose(0, 3, 1, 2, 4)
  return out.reshape(batch, queries, heads, width)
