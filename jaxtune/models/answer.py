"""The answer of an encoder-decoder to a text, token by token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.models import block, stack
from jaxtune.models.block import Memory, View
from jaxtune.models.encoder_decoder import (
  DecoderBlock,
  EncoderDecoderConfig,
  encode,
  relative_bias,
)
from jaxtune.models.layers import apply
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Params


def answer(
  model: ModelSpec,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  *,
  max_tokens: int = 64,
  eos: int = 1,
) -> jax.Array:
  """The most probable token after each other, int32 `[B, max_tokens]`; `eos` behind the first.

  The texts are encoded once, and keys and values of the answer's tokens are kept. It stops where
  every row has ended.

  Args:
    model: a built-in encoder-decoder.
    params: its parameters; any weight may be a weight leaf.
    tokens: int32 `[B, S]`.
    mask: bool `[B, S]`, true for real tokens; None when all are.
    max_tokens: of an answer.
    eos: the token that ends one.

  Raises:
    InputError: a model without a decoder that attends to an encoder, or no tokens.
  """
  if not isinstance(model.config, EncoderDecoderConfig) or model.task != 'seq2seq':
    raise InputError(
      f'a model of the family {model.family} for {model.task} has no decoder that answers; '
      'take an encoder-decoder, or models.generate for a decoder'
    )
  if max_tokens < 1:
    raise InputError(f'max_tokens is {max_tokens}; it must be at least 1')
  return _answer(model, params, tokens, mask, max_tokens, eos)


@functools.partial(jax.jit, static_argnames=('model', 'max_tokens'))
def _answer(
  model: ModelSpec,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None,
  max_tokens: int,
  eos: int,
) -> jax.Array:
  config = model.config
  batch = tokens.shape[0]
  states = encode(config, params, tokens, mask)
  source, dtype = states.reshape(-1, config.width), states.dtype
  other = View(None, None if mask is None else ops.hidden(mask)[:, None])
  bias = relative_bias(params['decoder_bias'], max_tokens, config.distance, causal=True)
  bias = bias + ops.hidden(jnp.tril(jnp.ones((1, 1, max_tokens, max_tokens), bool)))

  def going(state: Any) -> jax.Array:
    number, *_, ended = state
    return (number < max_tokens) & ~jnp.all(ended)

  def step(state: Any) -> Any:
    number, last, written, keys, values, ended = state
    own = View(None, lax.dynamic_slice_in_dim(bias, number, 1, axis=2))

    def layer(params: Params, carry: Any, index: jax.Array, key: Any) -> Any:
      x, keys, values = carry
      memory = Memory(keys, values, index, number)
      module = DecoderBlock(config)
      x, memory = apply(module, params, x, batch, own, source, other, None, memory)
      return x, memory.keys, memory.values

    x = ops.take(params['embed']['tokens'], last)
    x, keys, values = stack.scan_stack(layer, params['decoder'], (x, keys, values), None, 'none')
    x = apply(block.norm(config), params['decoder_norm'], x)
    new = jnp.argmax(model.head(params, x), axis=-1).astype(jnp.int32)
    new = jnp.where(ended, eos, new)
    written = lax.dynamic_update_slice(written, new[:, None], (0, number))
    return number + 1, new, written, keys, values, ended | (new == eos)

  kept = jnp.zeros((config.decoder_layers, batch, max_tokens, config.kv_heads, config.head_width))
  start = jnp.full((batch,), config.start, jnp.int32)
  written = jnp.full((batch, max_tokens), eos, jnp.int32)
  state = (0, start, written, kept.astype(dtype), kept.astype(dtype), jnp.zeros((batch,), bool))
  return lax.while_loop(going, step, state)[2]
