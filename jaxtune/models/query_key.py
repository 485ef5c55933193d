"""The largest attention logits of each head, which `optim.qk_clip` goes by."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.models import stack
from jaxtune.models.decoder import Block
from jaxtune.models.layers import RMSNorm, apply
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import Batch, InputError, Params


def query_key_maxima(model: ModelSpec, params: Params, batch: Batch) -> dict[str, jax.Array]:
  r"""$S_h = \max_{b, i, j} q_i^\top k_j / \sqrt{K}$ over the pairs that attention looks at.

  One forward pass of a built-in decoder, without its head. Padded tokens do not count, neither as
  queries nor as keys (Kimi Team, arXiv 2507.20534, section 2.1).

  Args:
    model: a decoder of `models.decoder`.
    params: its parameters; any weight may be a weight leaf.
    batch: `tokens`, and where there are such `mask`, `positions` and `segments`, as for training.

  Returns:
    float32 `[L, H]` for the path of each attention block: `{'decoder/0-11/attn': ...}`.

  Raises:
    InputError: a model of another family.
  """
  if model.family != 'decoder':
    raise InputError(
      f'query_key_maxima knows the built-in decoder, not {model.family!r}; compute the largest '
      'logit of each head in your own forward pass'
    )
  c = model.config
  tokens, mask, segments = batch['tokens'], batch.get('mask'), batch.get('segments')
  rows, length = tokens.shape
  positions = batch.get('positions')
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
  angles = ops.rope_angles(positions, c.head_width, c.rope_base)
  bias = ops.attention_bias(mask, segments, causal=True, length=length)
  real = jnp.ones((rows, length), bool) if mask is None else mask
  real = real if segments is None else real & (segments > 0)
  visible = (bias == 0) & real[:, :, None]  # type: ignore[operator]

  def layer(x: jax.Array, weights: Params) -> tuple[jax.Array, jax.Array]:
    h = apply(RMSNorm(c.epsilon), weights['attn_norm'], x)

    def heads(name: str, count: int) -> jax.Array:
      y = ops.dot(h, weights['attn'][name]).reshape(rows, length, count, c.head_width)
      return ops.rotate(y, angles)

    maxima = lax.map(_row, (heads('q', c.heads), heads('k', c.kv_heads), visible)).max(axis=0)
    return apply(Block(c), weights, x, angles, bias), maxima

  x = ops.take(params['embed']['tokens'], tokens).reshape(rows * length, c.width)
  found: dict[str, jax.Array] = {}
  for segment in stack.segments(params['decoder']):
    x, found[f'decoder/{segment}/attn'] = lax.scan(layer, x, params['decoder'][segment])
  return found


def _row(inputs: tuple[Any, Any, Any]) -> jax.Array:
  """`[H]` maxima of one text: queries `[T, H, K]`, keys `[T, G, K]`, visible pairs `[T, T]`."""
  q, k, visible = inputs
  length, heads, width = q.shape
  q = (q * width**-0.5).reshape(length, k.shape[1], heads // k.shape[1], width)
  scores = jnp.einsum('qgsk,tgk->gsqt', q, k).astype(jnp.float32)
  scores = jnp.where(visible[None, None], scores, -jnp.inf)
  return scores.max(axis=(2, 3)).reshape(heads)
