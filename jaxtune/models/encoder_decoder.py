"""An encoder and a causal decoder that attends to it: T5 (Raffel et al. 2019, arXiv:1910.10683)."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops, shard
from jaxtune.models import block, stack
from jaxtune.models.block import MLP, Attention, BlockConfig, Memory, View
from jaxtune.models.layers import apply, dropout
from jaxtune.models.spec import ModelSpec, gathered, init_head, no_head
from jaxtune.typing import InputError, Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(BlockConfig):
  """Everything that fixes the shapes and the arithmetic of an encoder and its decoder.

  Attributes:
    layers: of the encoder.
    decoder_layers: of the decoder; 0 for an encoder alone.
    vocabulary: rows of the embedding, which both share, and logits.
    tied: whether the head is the embedding, transposed.
    scaled: whether the head takes the decoder's states times `1 / sqrt(width)`.
    buckets: rows of a table of relative positions, see `relative_bias`.
    distance: from which on all positions share a bucket.
    start: the token that the decoder reads first, see `shift_right`.
  """

  model_type: str = 't5'
  hidden: int = 2048
  layers: int = 6
  head_width: int = 64
  epsilon: float = 1e-6
  activation: str = 'relu'
  gated: bool = False
  attention_scale: float = 1.0
  decoder_layers: int = 6
  vocabulary: int = 32128
  tied: bool = True
  scaled: bool = True
  buckets: int = 32
  distance: int = 128
  start: int = 0


AXES = (
  *block.AXES,
  (r'cross/q$', ('embed', 'heads')),
  (r'cross/[kv]$', ('embed', 'kv_heads')),
  (r'cross/o$', ('heads', 'embed')),
  (r'coder_bias$', (None, 'heads')),
  (r'embed/tokens$', ('vocab', 'embed')),
  (r'head/dense$', ('embed', 'vocab')),
)


class DecoderBlock(nn.Module):
  """A layer that attends to its own tokens, then to the encoder's states `[B*S, D]`."""

  config: EncoderDecoderConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    batch: int,
    own: View,
    source: jax.Array,
    other: View,
    key: Key | None = None,
    memory: Memory | None = None,
  ) -> tuple[jax.Array, Memory | None]:
    c = self.config
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    y = block.norm(c, 'attn_norm')(x)
    y, memory = Attention(c, True, name='attn')(y, batch, own, memory)
    x = x + dropout(y, c.dropout, keys[0])
    y = block.norm(c, 'cross_norm')(x)
    y, _ = Attention(c, False, name='cross')(y, batch, other, source=source)
    x = x + dropout(y, c.dropout, keys[1])
    y = MLP(c, name='mlp')(block.norm(c, 'mlp_norm')(x))
    return x + dropout(y, c.dropout, keys[2]), memory


def shift_right(config: EncoderDecoderConfig, tokens: jax.Array) -> jax.Array:
  """What the decoder reads in order to say `tokens` `[B, T]`: the start, then all but the last."""
  start = jnp.full((tokens.shape[0], 1), config.start, tokens.dtype)
  return jnp.concatenate([start, tokens[:, :-1]], axis=1)


def relative_bias(table: jax.Array, length: int, distance: int, causal: bool) -> jax.Array:
  """What is added to the scores for the distance from query to key (arXiv:1910.10683, section 2.1).

  Near distances have a row of the table each, farther ones share rows whose widths grow as the
  logarithm, up to `distance`. Without causality each direction has half of the rows.

  Args:
    table: `[rows, H]`.
    length: `T`.
    distance: from which on all share the last row.
    causal: whether tokens look only backwards.

  Returns:
    `[1, H, T, T]` float32 (query, key).
  """
  # Rows for the distances 0 .. T-1 and (behind one that is not used) -(T-1) .. -1: entry (i, j) is
  # then the (j - i)-th modulo 2T, and rows that are one entry short of the period shift by one.
  ahead = np.concatenate([np.arange(length), [0], np.arange(1 - length, 0)])
  bucket = jnp.asarray(_bucket(ahead, table.shape[0], distance, causal))
  rows = ops.take(table, bucket).astype(jnp.float32).T
  rows = jnp.broadcast_to(rows[:, None], (rows.shape[0], length, 2 * length))
  rows = rows.reshape(-1, 2 * length * length)[:, : length * (2 * length - 1)]
  return rows.reshape(1, -1, length, 2 * length - 1)[..., :length]


def _bucket(ahead: np.ndarray, rows: int, distance: int, causal: bool) -> np.ndarray:
  first, far = np.zeros_like(ahead), np.maximum(-ahead, 0)
  if not causal:
    rows //= 2
    first, far = np.where(ahead > 0, rows, 0), np.abs(ahead)
  near = rows // 2
  # In float32 as T5 was trained: at the borders of rows rounding decides.
  log = np.log(np.maximum(far, near).astype(np.float32) / near) / math.log(distance / near)
  shared = near + (log * (rows - near)).astype(np.int32)
  return first + np.where(far < near, far, np.minimum(shared, rows - 1))


def _init(config: EncoderDecoderConfig, key: Key) -> Params:
  keys = jax.random.split(key, 6)
  x, nothing = jnp.zeros((1, config.width)), View(None, None)

  def encoder_layer(key: Key, kind: tuple[bool, bool]) -> Params:
    return block.Block(config, False, *kind).init(key, x, 1, nothing)['params']

  def decoder_layer(key: Key, kind: None) -> Params:
    return DecoderBlock(config).init(key, x, 1, nothing, x, nothing)['params']

  def matrix(key: Key, rows: int, columns: int) -> jax.Array:
    return init_head(key, rows, columns, config.init_scale)

  params = {
    'embed': {'tokens': matrix(keys[0], config.vocabulary, config.width)},
    'encoder': stack.init_stack(encoder_layer, keys[1], block.layer_kinds(config)),
    'encoder_bias': matrix(keys[2], config.buckets, config.heads),
    'encoder_norm': block.norm(config).init(key, x)['params'],
  }
  if not config.decoder_layers:
    return params
  params |= {
    'decoder': stack.init_stack(decoder_layer, keys[3], [None] * config.decoder_layers),
    'decoder_bias': matrix(keys[4], config.buckets, config.heads),
    'decoder_norm': block.norm(config).init(key, x)['params'],
  }
  if not config.tied:
    params['head'] = {'dense': matrix(keys[5], config.width, config.vocabulary)}
  return params


def _embed(params: Params, tokens: jax.Array) -> jax.Array:
  """`[B, T] -> [B, T, D]`, see `block.lay`."""
  table = gathered(AXES, params, 'embed')['embed']['tokens']
  return block.lay(shard.constrain(ops.take(table, tokens), 'rows', 'length', None))


def encode(
  config: EncoderDecoderConfig,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  key: Key | None = None,
) -> jax.Array:
  """The encoder's states, `[B, S] -> [B, S, D]`."""
  batch, length = tokens.shape
  bias = relative_bias(params['encoder_bias'], length, config.distance, causal=False)
  if mask is not None:
    bias = bias + ops.hidden(mask)[:, None, None]
  view = View(None, bias)
  x = _embed(params, tokens)
  x = block.run(config, params['encoder'], x, batch, lambda index: view, key, causal=False)
  return apply(block.norm(config), params['encoder_norm'], x).reshape(batch, length, config.width)


def decode(
  config: EncoderDecoderConfig,
  params: Params,
  states: jax.Array,
  mask: jax.Array | None,
  targets: jax.Array,
  target_mask: jax.Array | None = None,
  key: Key | None = None,
) -> jax.Array:
  """The decoder's states for the tokens that it reads, `[B, T] -> [B, T, D]`.

  Args:
    config: the configuration.
    params: the parameters.
    states: of the encoder, `[B, S, D]`.
    mask: bool `[B, S]`, the encoder's real tokens; None when all are.
    targets: int32 `[B, T]`.
    target_mask: bool `[B, T]`, the real tokens among them; None when all are.
    key: switches dropout on.
  """
  batch, length = targets.shape
  visible = ops.visible(target_mask, None, causal=True, length=length)
  assert visible is not None
  bias = relative_bias(params['decoder_bias'], length, config.distance, causal=True)
  bias = bias + ops.hidden(ops.allowed(visible))[:, None]
  own = View(None, bias)
  other = View(None, None if mask is None else ops.hidden(mask)[:, None])
  source = block.lay(states)
  x = _embed(params, targets)
  if key is not None:
    key, embed_key = jax.random.split(key)
    x = dropout(x, config.dropout, embed_key)

  def layer(params: Params, x: jax.Array, index: jax.Array, key: Key | None) -> jax.Array:
    params = gathered(AXES, params)
    return block.cut(apply(DecoderBlock(config), params, x, batch, own, source, other, key)[0])

  x = stack.scan_stack(layer, params['decoder'], x, key, config.remat)
  return apply(block.norm(config), params['decoder_norm'], x).reshape(batch, length, config.width)


def _features(
  config: EncoderDecoderConfig,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  *,
  targets: jax.Array | None = None,
  target_mask: jax.Array | None = None,
  key: Key | None = None,
) -> jax.Array:
  keys = (None, None) if key is None else jax.random.split(key)
  states = encode(config, params, tokens, mask, keys[0])
  if not config.decoder_layers:
    return states
  if targets is None:
    raise InputError(
      'the decoder has nothing to read: give `targets`, the answer behind the start token '
      '(models.shift_right)'
    )
  return decode(config, params, states, mask, targets, target_mask, keys[1])


def _logits(
  config: EncoderDecoderConfig, params: Params, features: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  del mask
  if config.scaled:
    features = features * jnp.asarray(config.width**-0.5, features.dtype)
  if config.tied:
    return ops.dot_transposed(features, params['embed']['tokens'])
  return ops.dot(features, params['head']['dense'])


def encoder_decoder(config: EncoderDecoderConfig) -> ModelSpec:
  """The model for a configuration: logits of the decoder's next tokens.

  `features` takes `tokens` and `mask` for the encoder, and `targets` `[B, T]` and `target_mask` for
  the decoder. An encoder alone returns its hidden states.

  Raises:
    InputError: outputs of a classifier, which this model has none of.
  """
  if config.outputs:
    raise InputError(f'{config.model_type} has no classifier in jaxtune; let it write the label')
  alone = not config.decoder_layers
  return ModelSpec(
    family='encoder_decoder',
    config=config,
    task='features' if alone else 'seq2seq',
    init=functools.partial(_init, config),
    features=functools.partial(_features, config),
    head=no_head if alone else functools.partial(_logits, config),
    axis_rules=AXES,
  )
