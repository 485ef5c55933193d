"""A causal decoder: Llama and what came of it, GPT-2, GPT-NeoX, mixtures of experts.

Touvron et al. 2023, arXiv:2302.13971; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops, shard
from jaxtune.models import block, stack, virtual
from jaxtune.models.block import BlockConfig, Memory, View
from jaxtune.models.layers import apply, dense
from jaxtune.models.spec import ModelSpec, Task, gathered, init_head
from jaxtune.typing import Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(BlockConfig):
  """Everything that fixes a decoder's shapes and arithmetic.

  Attributes:
    vocabulary: rows of the embedding, and logits.
    positions: the context: the most tokens that the model was made for.
    tied: whether the head is the embedding, transposed.
    learned_positions: an embedding of each position is added to the token's (GPT-2).
    embed_scale: factor of the embeddings (Gemma: sqrt(width)).
    logits_cap: logits are `cap * tanh(logits / cap)`; 0 for as they are.
  """

  rope: ops.Rope | None = ops.Rope()
  vocabulary: int = 32000
  positions: int = 2048
  tied: bool = True
  learned_positions: bool = False
  embed_scale: float = 1.0
  logits_cap: float = 0.0


AXES = (
  *virtual.AXES,
  *block.AXES,
  (r'embed/tokens$', ('vocab', 'embed')),
  (r'embed/positions$', (None, 'embed')),
  (r'head/dense$', ('embed', 'vocab')),
  (r'head/dense_bias$', ('vocab',)),
)


class Cache(NamedTuple):
  """What a decoder remembers of the tokens that it has seen, `S` slots a row, virtual ones first.

  keys, values: `[L, B, S, G, K]`, rotated.
  mask: bool `[B, S]`: the slots that hold a real token.
  length: slots that are filled, int32, the same in all rows.
  positions: the next position of each row, int32 `[B]`.
  """

  keys: jax.Array
  values: jax.Array
  mask: jax.Array
  length: jax.Array
  positions: jax.Array


def _init(config: DecoderConfig, key: Key) -> Params:
  embed_key, stack_key, head_key, position_key = jax.random.split(key, 4)
  x, origin = jnp.zeros((1, config.width)), jnp.zeros((1, 1), jnp.int32)
  see = block.views(config, origin, lambda window: None)

  def layer(key: Key, kind: tuple[bool, bool]) -> Params:
    return block.Block(config, True, *kind).init(key, x, 1, see(origin[0, 0]))['params']

  def matrix(key: Key, rows: int, columns: int) -> jax.Array:
    return init_head(key, rows, columns, config.init_scale)

  params = {
    'embed': {'tokens': matrix(embed_key, config.vocabulary, config.width)},
    'decoder': stack.init_stack(layer, stack_key, block.layer_kinds(config)),
    'norm': block.norm(config).init(key, x)['params'],
  }
  if config.learned_positions:
    params['embed']['positions'] = matrix(position_key, config.positions, config.width)
  if config.outputs or not config.tied:
    params['head'] = {'dense': matrix(head_key, config.width, config.outputs or config.vocabulary)}
  if config.each_token:
    params['head']['dense_bias'] = jnp.zeros((config.outputs,))
  return params


def _embed(config: DecoderConfig, params: Params, x: jax.Array, positions: jax.Array) -> jax.Array:
  """What goes into the first layer for rows of the embedding, `[B, T, D]`, see `block.lay`."""
  x = x * jnp.asarray(config.embed_scale, x.dtype)
  if config.learned_positions:
    x = x + ops.take(params['embed']['positions'], positions)
  return block.lay(shard.constrain(x, 'rows', 'length', None))


def enter(
  config: DecoderConfig,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None,
  positions: jax.Array | None,
  segments: jax.Array | None,
) -> tuple[Callable[[jax.Array], View], jax.Array]:
  """What each layer sees, by its number, and what goes into the first, see `block.lay`.

  With a prompt T counts its tokens too, which come first.
  """
  batch, length = tokens.shape
  before = virtual.ahead(params)
  if positions is None:
    if config.learned_positions:
      virtual.check_room(before, length, config.positions)
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
  positions = virtual.positions(before, positions)

  def visible(window: int) -> ops.Visible | None:
    return virtual.visible(before, mask, segments, True, length, window)

  x = virtual.prepend(ops.take(params['embed']['tokens'], tokens), virtual.prompt(params))
  return block.views(config, positions, visible), _embed(config, params, x, positions)


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
  batch, length = tokens.shape
  params = gathered(AXES, params, 'embed')
  see, x = enter(config, params, tokens, mask, positions, segments)
  x = block.run(config, virtual.layers(params, 'decoder'), x, batch, see, key, causal=True)
  x = x.reshape(batch, -1, config.width)[:, virtual.ahead(params).prompt :]
  x = apply(block.norm(config), params['norm'], block.lay(x))
  return x.reshape(batch, length, config.width)


def _start_cache(
  config: DecoderConfig, params: Params, rows: int, size: int, dtype: Any = jnp.float32
) -> Cache:
  before = virtual.ahead(params)
  slots = sum(before) + size
  shape = (config.layers, 1, slots, config.kv_heads, config.head_width)
  keys, values = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
  if before.prefix:
    part = (config.layers, 1, before.prefix, config.kv_heads, config.head_width)
    own = {kind: ops.materialize(x).reshape(part) for kind, x in params['prefix'].items()}
    keys = keys.at[:, :, : before.prefix].set(own['keys'].astype(dtype))
    values = values.at[:, :, : before.prefix].set(own['values'].astype(dtype))
  filled = jnp.int32(before.prefix)
  cache = Cache(keys, values, jnp.arange(slots)[None] < filled, filled, filled[None])
  if before.prompt:  # which no later token changes, so it is computed once
    x = ops.take(params['embed']['tokens'], jnp.zeros((1, 0), jnp.int32))
    cache = _go_on(config, params, virtual.prepend(x, virtual.prompt(params)), cache, None)[1]
  return cache._replace(
    keys=jnp.repeat(cache.keys, rows, axis=1),
    values=jnp.repeat(cache.values, rows, axis=1),
    mask=jnp.repeat(cache.mask, rows, axis=0),
    positions=jnp.repeat(cache.positions, rows, axis=0),
  )


def _extend(
  config: DecoderConfig,
  params: Params,
  tokens: jax.Array,
  cache: Cache,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  return _go_on(config, params, ops.take(params['embed']['tokens'], tokens), cache, mask)


def _go_on(
  config: DecoderConfig, params: Params, x: jax.Array, cache: Cache, mask: jax.Array | None
) -> tuple[jax.Array, Cache]:
  """`_extend` by rows of the embedding, `[B, T, D]`."""
  batch, length, _ = x.shape
  real = jnp.ones((batch, length), bool) if mask is None else mask
  held = lax.dynamic_update_slice(cache.mask, real, (jnp.int32(0), cache.length))
  positions = cache.positions[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32)
  # Real tokens are counted, not slots: padding may lie between a row and what it goes on from.
  places = jnp.cumsum(held, axis=1, dtype=jnp.int32)

  def visible(window: int) -> ops.Visible:
    owner = jnp.where(held, 0, ops.NOBODY)
    reach = ops.reach(True, window)
    return ops.Visible(positions, places, jnp.zeros_like(positions), owner, *reach)

  earlier = jnp.maximum(positions - 1, 0)
  see = block.views(config, earlier, visible)

  def layer(params: Params, state: Any, index: jax.Array, key: Key | None) -> Any:
    x, keys, values = state
    memory = Memory(keys, values, index, cache.length)
    module = block.block(config, params, True)
    x, memory = apply(module, params, x, batch, see(index), key, memory)
    return x, memory.keys, memory.values

  state = (_embed(config, params, x, earlier), cache.keys, cache.values)
  x, keys, values = stack.scan_stack(layer, params['decoder'], state, None, 'none')
  x = apply(block.norm(config), params['norm'], x).reshape(batch, length, config.width)
  return x, Cache(keys, values, held, cache.length + length, positions[:, -1])


def _logits(
  config: DecoderConfig, params: Params, features: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  del mask
  if config.tied:
    logits = ops.dot_transposed(features, params['embed']['tokens'])
  else:
    logits = ops.dot(features, params['head']['dense'])
  cap = config.logits_cap
  return cap * jnp.tanh(logits / cap) if cap else logits


def _classify(
  config: DecoderConfig, params: Params, features: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """One matrix on every token, or on the last real one: only it has seen the whole text."""
  if config.each_token:
    return dense(params['head'], 'dense', features)
  return ops.dot(ops.pool(features, mask, 'last'), params['head']['dense'])


def decoder(config: DecoderConfig) -> ModelSpec:
  """The model for a configuration: next-token logits, or with `outputs` a classifier's."""
  classifies: Task = 'token_classification' if config.each_token else 'classification'
  return ModelSpec(
    family='decoder',
    config=config,
    task=classifies if config.outputs else 'causal_lm',
    init=functools.partial(_init, config),
    features=functools.partial(_features, config),
    head=functools.partial(_classify if config.outputs else _logits, config),
    axis_rules=AXES,
    start_cache=functools.partial(_start_cache, config),
    extend=functools.partial(_extend, config),
  )
