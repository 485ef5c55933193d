"""A decoder of the Llama family.

Touvron et al. 2023, arXiv:2302.13971; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.models import stack
from jaxtune.models.layers import RMSNorm, activation, apply
from jaxtune.models.spec import ModelSpec, init_head
from jaxtune.typing import Key, Params


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Everything that fixes a decoder's shapes and arithmetic."""

  vocabulary: int = 32000
  width: int = 512
  hidden: int = 1408
  layers: int = 12
  heads: int = 8
  kv_heads: int = 8
  head_width: int = 64
  positions: int = 2048
  rope_base: float = 10000.0
  epsilon: float = 1e-5
  activation: str = 'silu'
  tied: bool = True
  remat: bool = False
  outputs: int = 0  # of a classifier on the last token; 0 for a language model
  init_scale: float = 0.02


AXES = (
  (r'embed/tokens$', ('vocab', 'embed')),
  (r'attn/q$', ('embed', 'heads')),
  (r'attn/[kv]$', ('embed', 'kv_heads')),
  (r'attn/o$', ('heads', 'embed')),
  (r'mlp/(gate|up)$', ('embed', 'mlp')),
  (r'mlp/down$', ('mlp', 'embed')),
  (r'norm/scale$', ('embed',)),
  (r'head/dense$', ('embed', 'vocab')),
)


class Attention(nn.Module):
  """Causal self-attention with rotary positions and grouped heads, `[B*T, D] -> [B*T, D]`."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: jax.Array, angles: jax.Array, bias: jax.Array | None) -> jax.Array:
    c = self.config
    init = nn.initializers.normal(c.init_scale)
    batch, length = angles.shape[:2]

    def heads(name: str, count: int) -> jax.Array:
      weight = self.param(name, init, (c.width, count * c.head_width))
      return ops.dot(x, weight).reshape(batch, length, count, c.head_width)

    q = ops.rotate(heads('q', c.heads), angles)
    k = ops.rotate(heads('k', c.kv_heads), angles)
    y = ops.attention(q, k, heads('v', c.kv_heads), bias, causal=True)
    o = self.param('o', init, (c.heads * c.head_width, c.width))
    return ops.dot(y.reshape(batch * length, c.heads * c.head_width), o)


class MLP(nn.Module):
  """`(activation(x W_gate) * x W_up) W_down` (SwiGLU, arXiv:2002.05202), `[B*T, D] -> [B*T, D]`."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    init = nn.initializers.normal(c.init_scale)
    gate = ops.dot(x, self.param('gate', init, (c.width, c.hidden)))
    up = ops.dot(x, self.param('up', init, (c.width, c.hidden)))
    down = self.param('down', init, (c.hidden, c.width))
    return ops.dot(activation(c.activation)(gate) * up, down)


class Block(nn.Module):
  """One layer: RMSNorm before attention and before the MLP, each with a residual (pre-norm)."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: jax.Array, angles: jax.Array, bias: jax.Array | None) -> jax.Array:
    c = self.config
    x = x + Attention(c, name='attn')(RMSNorm(c.epsilon, name='attn_norm')(x), angles, bias)
    return x + MLP(c, name='mlp')(RMSNorm(c.epsilon, name='mlp_norm')(x))


def _init(config: DecoderConfig, key: Key) -> Params:
  embed_key, stack_key, head_key = jax.random.split(key, 3)
  x, angles = jnp.zeros((1, config.width)), jnp.zeros((1, 1, config.head_width // 2))

  def layer(key: Key) -> Params:
    return Block(config).init(key, x, angles, None)['params']

  params = {
    'embed': {'tokens': init_head(embed_key, config.vocabulary, config.width, config.init_scale)},
    'decoder': stack.init_stack(layer, stack_key, config.layers),
    'norm': {'scale': jnp.ones((config.width,))},
  }
  if config.outputs or not config.tied:
    outputs = config.outputs or config.vocabulary
    params['head'] = {'dense': init_head(head_key, config.width, outputs, config.init_scale)}
  return params


def _features(
  config: DecoderConfig,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  *,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  key: Key | None = None,
) -> jax.Array:
  del key  # models of this family have no dropout
  batch, length = tokens.shape
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
  angles = ops.rope_angles(positions, config.head_width, config.rope_base)
  bias = ops.attention_bias(mask, segments, causal=True, length=length)
  x = ops.take(params['embed']['tokens'], tokens).reshape(batch * length, config.width)

  def layer(params: Params, x: jax.Array, key: Key | None) -> jax.Array:
    del key
    return apply(Block(config), params, x, angles, bias)

  x = stack.scan_stack(layer, params['decoder'], x, None, config.remat)
  x = apply(RMSNorm(config.epsilon), params['norm'], x)
  return x.reshape(batch, length, config.width)


def _logits(
  config: DecoderConfig, params: Params, features: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  del mask
  if config.tied:
    return ops.dot_transposed(features, params['embed']['tokens'])
  return ops.dot(features, params['head']['dense'])


def _classify(params: Params, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """One matrix on the last real token, the only one that has seen the whole text."""
  batch, length = features.shape[:2]
  if mask is None:
    last = jnp.full((batch,), length - 1)
  else:
    last = jnp.max(jnp.where(mask, jnp.arange(length)[None], 0), axis=1)
  return ops.dot(features[jnp.arange(batch), last], params['head']['dense'])


def decoder(config: DecoderConfig) -> ModelSpec:
  """The model for a configuration: next-token logits, or with `outputs` one row a text."""
  return ModelSpec(
    family='decoder',
    config=config,
    task='classification' if config.outputs else 'causal_lm',
    init=functools.partial(_init, config),
    features=functools.partial(_features, config),
    head=_classify if config.outputs else functools.partial(_logits, config),
    axis_rules=AXES,
  )
