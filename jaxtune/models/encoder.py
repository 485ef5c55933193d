"""An encoder of the BERT family (Devlin et al. 2018, arXiv:1810.04805)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.models import stack
from jaxtune.models.layers import LayerNorm, activation, add_bias, apply, dropout
from jaxtune.models.spec import ModelSpec, init_head
from jaxtune.typing import InputError, Key, Params


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Everything that fixes an encoder's shapes and arithmetic."""

  vocabulary: int = 30522
  width: int = 384
  hidden: int = 1536
  layers: int = 6
  heads: int = 12
  positions: int = 512
  types: int = 2
  epsilon: float = 1e-12
  activation: str = 'gelu'
  dropout: float = 0.0
  remat: bool = False
  outputs: int = 0  # of the classifier; 0 for a bare encoder
  init_scale: float = 0.02


AXES = (
  (r'embed/tokens$', ('vocab', 'embed')),
  (r'embed/(positions|types)$', (None, 'embed')),
  (r'attn/[qkv]$', ('embed', 'heads')),
  (r'attn/[qkv]_bias$', ('heads',)),
  (r'attn/o$', ('heads', 'embed')),
  (r'mlp/up$', ('embed', 'mlp')),
  (r'mlp/up_bias$', ('mlp',)),
  (r'mlp/down$', ('mlp', 'embed')),
  (r'(norm/(scale|bias)|(o|down)_bias)$', ('embed',)),
  (r'pooler/dense$', ('embed', None)),
  (r'head/dense$', ('embed', None)),
  (r'(pooler|head)/dense_bias$', (None,)),
)


def _matrix(config: EncoderConfig):
  return nn.initializers.normal(config.init_scale)


class Embed(nn.Module):
  """Token, position and type embeddings, summed and normalized: `[B, T] -> [B*T, D]`."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, tokens: jax.Array, positions: jax.Array | None) -> jax.Array:
    c = self.config
    token = self.param('tokens', _matrix(c), (c.vocabulary, c.width))
    position = self.param('positions', _matrix(c), (c.positions, c.width))
    kind = self.param('types', _matrix(c), (c.types, c.width))
    batch, length = tokens.shape
    if positions is None:
      if length > c.positions:
        raise InputError(
          f'{length} tokens a row, but the model has {c.positions} positions; cut the texts'
        )
      positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    # All tokens are of type 0: sentence pairs are not an input of this model.
    x = ops.take(token, tokens) + ops.take(position, positions)
    x = x + ops.take(kind, jnp.zeros((1, 1), jnp.int32))
    return LayerNorm(c.epsilon, name='norm')(x.reshape(batch * length, c.width))


class Attention(nn.Module):
  """Multi-head self-attention with biases, `[B*T, D] -> [B*T, D]`."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, x: jax.Array, bias: jax.Array | None, batch: int) -> jax.Array:
    c = self.config

    def dense(name: str, y: jax.Array) -> jax.Array:
      weight = self.param(name, _matrix(c), (c.width, c.width))
      return add_bias(
        ops.dot(y, weight), self.param(f'{name}_bias', nn.initializers.zeros, (c.width,))
      )

    split = (batch, -1, c.heads, c.width // c.heads)
    q, k, v = (dense(name, x).reshape(split) for name in 'qkv')
    return dense('o', ops.attention(q, k, v, bias).reshape(x.shape))


class MLP(nn.Module):
  """`activation(x W_up + b_up) W_down + b_down`, `[B*T, D] -> [B*T, D]`."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    zeros = nn.initializers.zeros
    up = self.param('up', _matrix(c), (c.width, c.hidden))
    down = self.param('down', _matrix(c), (c.hidden, c.width))
    x = activation(c.activation)(
      add_bias(ops.dot(x, up), self.param('up_bias', zeros, (c.hidden,)))
    )
    return add_bias(ops.dot(x, down), self.param('down_bias', zeros, (c.width,)))


class Block(nn.Module):
  """One layer: attention and MLP, each followed by residual and LayerNorm (post-norm)."""

  config: EncoderConfig

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array | None, batch: int, key: Key | None
  ) -> jax.Array:
    c = self.config
    keys = (None, None) if key is None else jax.random.split(key)
    y = Attention(c, name='attn')(x, bias, batch)
    x = LayerNorm(c.epsilon, name='attn_norm')(x + dropout(y, c.dropout, keys[0]))
    y = MLP(c, name='mlp')(x)
    return LayerNorm(c.epsilon, name='mlp_norm')(x + dropout(y, c.dropout, keys[1]))


def _init(config: EncoderConfig, key: Key) -> Params:
  embed_key, stack_key, pooler_key, head_key = jax.random.split(key, 4)
  tokens = jnp.zeros((1, 1), jnp.int32)
  x = jnp.zeros((1, config.width))

  def layer(key: Key) -> Params:
    return Block(config).init(key, x, None, 1, None)['params']

  params = {
    'embed': Embed(config).init(embed_key, tokens, None)['params'],
    'encoder': stack.init_stack(layer, stack_key, config.layers),
    'pooler': {
      'dense': init_head(pooler_key, config.width, config.width, config.init_scale),
      'dense_bias': jnp.zeros((config.width,)),
    },
  }
  if config.outputs:
    params['head'] = {
      'dense': init_head(head_key, config.width, config.outputs, config.init_scale),
      'dense_bias': jnp.zeros((config.outputs,)),
    }
  return params


def _features(
  config: EncoderConfig,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  *,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  key: Key | None = None,
) -> jax.Array:
  batch, length = tokens.shape
  bias = ops.attention_bias(mask, segments, causal=False, length=length)
  x = apply(Embed(config), params['embed'], tokens, positions)
  if key is not None:
    key, embed_key = jax.random.split(key)
    x = dropout(x, config.dropout, embed_key)

  def layer(params: Params, x: jax.Array, key: Key | None) -> jax.Array:
    return apply(Block(config), params, x, bias, batch, key)

  x = stack.scan_stack(layer, params['encoder'], x, key, config.remat)
  return x.reshape(batch, length, config.width)


def _classify(params: Params, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """BERT's own head: the first token through the pooler (dense, tanh) and one matrix."""
  del mask  # the first token is always real
  pooler, head = params['pooler'], params['head']
  pooled = jnp.tanh(add_bias(ops.dot(features[:, 0], pooler['dense']), pooler['dense_bias']))
  return add_bias(ops.dot(pooled, head['dense']), head['dense_bias'])


def encoder(config: EncoderConfig) -> ModelSpec:
  """The model for a configuration: hidden states, or with `outputs` one row a text."""
  return ModelSpec(
    family='encoder',
    config=config,
    task='classification' if config.outputs else 'features',
    init=functools.partial(_init, config),
    features=functools.partial(_features, config),
    head=_classify if config.outputs else lambda params, features, mask=None: features,
    axis_rules=AXES,
  )
