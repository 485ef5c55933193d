"""The largest attention logits of each head, which `optim.qk_clip` goes by."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.models import block, stack, virtual
from jaxtune.models.decoder import enter
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import Batch, InputError, Params


def query_key_maxima(model: ModelSpec, params: Params, batch: Batch) -> dict[str, jax.Array]:
  r"""$S_h = \max_{b, i, j} s q_i^\top k_j$ over the pairs that attention looks at.

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
  see, x = enter(c, params, tokens, mask, batch.get('positions'), segments)
  real = jnp.ones((rows, length), bool) if mask is None else mask
  real = real if segments is None else real & (segments > 0)
  real = virtual.pad(virtual.ahead(params), real, True)
  scale = c.attention_scale or c.head_width**-0.5

  def layer(x: jax.Array, xs: tuple[Params, jax.Array]) -> tuple[jax.Array, jax.Array]:
    weights, index = xs
    view = see(index)
    module = block.block(c, weights, True)
    (x, _), kept = module.apply({'params': weights}, x, rows, view, mutable=['heads'])
    q, k = (kept['heads']['attn'][name][0] for name in 'qk')
    assert isinstance(view.seen, ops.Visible)
    visible = ops.allowed(view.seen) & real[:, :, None]
    return x, lax.map(functools.partial(_row, scale), (q, k, visible)).max(axis=0)

  layers = virtual.layers(params, 'decoder')
  found: dict[str, jax.Array] = {}
  for segment in stack.segments(params['decoder']):
    numbers = jnp.arange(*stack.bounds(segment))
    x, maxima = lax.scan(layer, x, (layers[segment], numbers))
    found[f'decoder/{segment}/attn'] = maxima
  return found


def _row(scale: float, inputs: tuple[Any, Any, Any]) -> jax.Array:
  """`[H]` maxima of one text: queries `[T, H, K]`, keys `[S, G, K]`, visible pairs `[T, S]`."""
  q, k, visible = inputs
  length, heads, width = q.shape
  q = (q * scale).reshape(length, k.shape[1], heads // k.shape[1], width)
  scores = jnp.einsum('qgsk,tgk->gsqt', q, k).astype(jnp.float32)
  scores = jnp.where(visible[None, None], scores, -jnp.inf)
  return scores.max(axis=(2, 3)).reshape(heads)
