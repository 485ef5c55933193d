"""Scaled dot-product attention, grouped heads (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxtune.ops import attention_kernels, chunked_attention
from jaxtune.ops.visible import Visible, allowed, hidden, reach


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visible | jax.Array | None = None,
  *,
  causal: bool = False,
  scale: float | None = None,
  cap: float = 0.0,
) -> jax.Array:
  """`softmax(capped(scale q k^T) + bias) v`, with the softmax in float32.

  The result is a 'product' to the checkpoint policies of `models.stack`. Which kernel computes it
  `attention_kernel` decides; memory is linear in the tokens of long rows, unless a bias is given as
  an array.

  Args:
    q: `[B, T, H, K]`.
    k: `[B, S, G, K]`, G divides H.
    v: `[B, S, G, K]`.
    seen: which keys each query looks at (`visible`), or the bias itself, `[B or 1, T or 1, S]`, or
      with an axis of heads `[B or 1, H, T, S]`; None for all keys.
    causal: whether tokens look only backwards, those of the queries being the last T of S, so that
      scores of later ones need not be computed; `seen` must hide them too.
    scale: of the scores; None for `1 / sqrt(K)`.
    cap: scores are `cap * tanh(scores / cap)` (Gemma 2, arXiv:2408.00118, section 2); 0 for as they
      are.

  Returns:
    `[B, T, H, K]`.
  """
  before = k.shape[1] - q.shape[1]
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  kernel = attention_kernels.attention_kernel(q, k, seen, causal, cap)
  if seen is None and (causal or kernel == 'blocks'):
    places = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
    seen = Visible(places[:, before:], places, None, None, *reach(causal))
  with jax.named_scope(attention_kernels.SCOPES[kernel]):
    if kernel == 'scores':
      y = _all_scores(q, k, v, seen, causal, scale, cap)
    else:
      assert not isinstance(seen, jax.Array)
      if kernel == 'splash':
        return attention_kernels.splash(q, k, v, seen, scale, cap)
      if kernel == 'blocks':
        assert seen is not None
        return chunked_attention.attend(q, k, v, seen, scale, cap)
      y = attention_kernels.cudnn(q, k, v, seen, scale)
    return checkpoint_name(y, 'product')


def _all_scores(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: Visible | jax.Array | None,
  causal: bool,
  scale: float,
  cap: float,
) -> jax.Array:
  bias = hidden(allowed(seen)) if isinstance(seen, Visible) else seen
  if not causal:
    return _attend(q, k, v, bias, scale, cap)
  assert bias is not None
  length, before = q.shape[1], k.shape[1] - q.shape[1]
  # Four blocks of queries, each beside the keys up to its own end, skip 3/8 of the work; more
  # blocks skip little more. Below 64 queries a block saves nothing.
  block = max(64, -(-length // 4))
  blocks = [slice(start, min(start + block, length)) for start in range(0, length, block)]
  parts = [
    _attend(q[:, b], k[:, :end], v[:, :end], bias[..., b, :end], scale, cap)
    for b in blocks
    for end in [before + b.stop]
  ]
  return jnp.concatenate(parts, axis=1)


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
