"""An encoder: BERT, RoBERTa, DistilBERT, ModernBERT.

Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692; Sanh et al. 2019,
arXiv:1910.01108; Warner et al. 2024, arXiv:2412.13663.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import ops, shard
from jaxtune.models import block, stack, virtual
from jaxtune.models.block import BlockConfig, View
from jaxtune.models.layers import activation, add_bias, apply, dense, matrix
from jaxtune.models.spec import ModelSpec, Task, gathered, init_head
from jaxtune.models.virtual import Ahead
from jaxtune.typing import InputError, Key, Params


class Head(NamedTuple):
  """How a head makes outputs of hidden states: `norm(activation(x W_hidden)) W`.

  Attributes:
    activation: '' for `x W` alone.
    bias: whether the hidden layer has a bias.
    norm: whether there is a norm, as the layers have it.
    output_bias: whether the outputs have a bias.
  """

  activation: str = ''
  bias: bool = True
  norm: bool = False
  output_bias: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(BlockConfig):
  """Everything that fixes an encoder's shapes and arithmetic.

  Attributes:
    vocabulary: rows of the embedding.
    positions: the most tokens of a text.
    types: kinds of tokens (first and second text of a pair); 0 for no such embedding.
    learned_positions: an embedding of each position is added to the token's.
    first_position: row of that embedding for a text's first token. Where it is not 0, padding is
      not counted, and the row before it is that of padding, whose token has the same number.
    pooler: whether the body ends in a pooler, `tanh(x W)` of the first token. A classifier of texts
      goes through it, unless its head has a hidden layer of its own.
    pooling: what a classifier of texts looks at, see `models.embed`.
    masked_lm: whether the outputs are logits of the masked tokens.
    tied: whether the matrix of those is the embedding, transposed.
    text_head, token_head, masked_head: of the classifiers and of the masked tokens.
  """

  model_type: str = 'bert'
  width: int = 384
  hidden: int = 1536
  layers: int = 6
  heads: int = 12
  epsilon: float = 1e-12
  norm: str = 'layer'
  norm_bias: bool = True
  order: str = 'post'
  activation: str = 'gelu'
  gated: bool = False
  qkv_bias: bool = True
  o_bias: bool = True
  mlp_bias: bool = True
  vocabulary: int = 30522
  positions: int = 512
  types: int = 2
  learned_positions: bool = True
  first_position: int = 0
  pooler: bool = True
  pooling: str = 'first'
  masked_lm: bool = False
  tied: bool = True
  text_head: Head = Head()
  token_head: Head = Head()
  masked_head: Head = Head('gelu', norm=True)


AXES = (
  *virtual.AXES,
  *block.AXES,
  (r'embed/tokens$', ('vocab', 'embed')),
  (r'embed/(positions|types)$', (None, 'embed')),
  (r'(pooler/dense|head/hidden)$', ('embed', None)),
  (r'(pooler/dense|head/hidden)_bias$', (None,)),
)
_CLASSES = ((r'head/dense$', ('embed', None)), (r'head/dense_bias$', (None,)))
_WORDS = ((r'head/dense$', ('embed', 'vocab')), (r'head/dense_bias$', ('vocab',)))


def _task(config: EncoderConfig) -> Task:
  if config.outputs:
    return 'token_classification' if config.each_token else 'classification'
  return 'masked_lm' if config.masked_lm else 'features'


def _head(config: EncoderConfig) -> Head:
  heads = {'classification': config.text_head, 'token_classification': config.token_head}
  return heads.get(_task(config), config.masked_head)


def _pools(config: EncoderConfig) -> bool:
  """Whether the outputs go through the pooler."""
  return _task(config) == 'classification' and config.pooler and not config.text_head.activation


class Embed(nn.Module):
  """Token, position and type embeddings, summed and normalized: `[B, T, D]`, see `block.lay`.

  A prompt `[P, D]` comes before the tokens' own embeddings: `[B, P+T, D]`, with P+T positions.
  """

  config: EncoderConfig

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    types: jax.Array | None = None,
    prompt: jax.Array | None = None,
  ) -> jax.Array:
    c = self.config

    def table(name: str, rows: int) -> jax.Array:
      return matrix(self, name, c.init_scale, rows, c.width)

    x = virtual.prepend(ops.take(table('tokens', c.vocabulary), tokens), prompt)
    if c.learned_positions:
      x = x + ops.take(table('positions', c.first_position + c.positions), positions)
    if c.types:
      kinds = jnp.zeros((1, 1), jnp.int32) if types is None else types
      x = x + ops.take(table('types', c.types), kinds)
    return block.norm(c, 'norm')(block.lay(shard.constrain(x, 'rows', 'length', None)))


def _init(config: EncoderConfig, key: Key) -> Params:
  embed_key, stack_key, hidden_key, head_key = jax.random.split(key, 4)
  tokens = jnp.zeros((1, 1), jnp.int32)
  x = jnp.zeros((1, config.width))
  see = _views(config, Ahead(), tokens, None, None)

  def layer(key: Key, kind: tuple[bool, bool]) -> Params:
    return block.Block(config, False, *kind).init(key, x, 1, see(tokens[0, 0]))['params']

  def fresh(key: Key, name: str, outputs: int, biased: bool) -> Params:
    made = {name: init_head(key, config.width, outputs, config.init_scale)}
    return made | ({f'{name}_bias': jnp.zeros((outputs,))} if biased else {})

  params = {
    'embed': Embed(config).init(embed_key, tokens, tokens)['params'],
    'encoder': stack.init_stack(layer, stack_key, block.layer_kinds(config)),
  }
  if config.order == 'pre':
    params['norm'] = block.norm(config).init(key, x)['params']
  task, kind = _task(config), _head(config)
  if _pools(config) or (config.pooler and task == 'features'):
    params['pooler'] = fresh(hidden_key, 'dense', config.width, True)
  if task == 'features':
    return params
  head = fresh(head_key, 'dense', config.outputs or config.vocabulary, kind.output_bias)
  if task == 'masked_lm' and config.tied:
    del head['dense']
  if kind.activation:
    head |= fresh(hidden_key, 'hidden', config.width, kind.bias)
  if kind.norm:
    head['norm'] = block.norm(config).init(key, x)['params']
  return params | {'head': head}


def _positions(
  config: EncoderConfig,
  before: Ahead,
  tokens: jax.Array,
  mask: jax.Array | None,
  positions: jax.Array | None,
) -> jax.Array:
  """Where each token stands in its text, `[B, P+T]`, counted from `first_position`."""
  batch, length = tokens.shape
  first = config.first_position
  if positions is None:
    if config.learned_positions:
      virtual.check_room(before, length, config.positions)
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    if first:
      real = tokens != first - 1
      real = real if mask is None else real & mask
      # Whatever stands before the text, padding keeps the row of its own.
      positions = jnp.where(real, jnp.cumsum(real, axis=1) - 1, -1 - sum(before))
  return virtual.positions(before, positions) + first


def _views(
  config: EncoderConfig,
  before: Ahead,
  positions: jax.Array,
  mask: jax.Array | None,
  segments: jax.Array | None,
) -> Callable[[jax.Array], View]:
  """What a layer sees, by its number."""
  length = positions.shape[1] - before.prompt
  if config.window and mask is None:
    mask = jnp.ones(
      (positions.shape[0], length), bool
    )  # both kinds of layers then say what they see
  return block.views(
    config,
    positions,
    lambda window: virtual.visible(before, mask, segments, False, length, window),
  )


def _features(
  config: EncoderConfig,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array | None = None,
  *,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  types: jax.Array | None = None,
  key: Key | None = None,
) -> jax.Array:
  params = gathered(AXES, params, 'embed')
  before, batch = virtual.ahead(params), len(tokens)
  if types is not None and not config.types:
    raise InputError(f'{config.model_type} has no types of tokens; leave `types` out')
  if before.prompt and segments is not None:
    raise InputError(
      'texts packed into one row would change each other through the prompt of an encoder; '
      'leave packing out'
    )
  positions = _positions(config, before, tokens, mask, positions)
  see = _views(config, before, positions, mask, segments)
  types = None if types is None else virtual.pad(before, types, 0)
  x = apply(Embed(config), params['embed'], tokens, positions, types, virtual.prompt(params))
  x = block.run(config, virtual.layers(params, 'encoder'), x, batch, see, key, causal=False)
  if config.order == 'pre':
    x = apply(block.norm(config), params['norm'], x)
  x = x.reshape(batch, -1, config.width)
  # A text's first token, which many classifiers look at, is then the prompt's.
  return x if _task(config) == 'classification' else x[:, before.prompt :]


def _outputs(
  config: EncoderConfig, params: Params, features: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """`[B, T, D]` (or `[N, D]` of tokens) to one row of outputs a text or a token."""
  task, kind = _task(config), _head(config)
  if task == 'features':
    return features
  if task == 'classification':
    features = ops.pool(features, mask, config.pooling)
  head, x = params['head'], features.reshape(-1, config.width)
  if _pools(config):
    x = jnp.tanh(dense(params['pooler'], 'dense', x))
  if kind.activation:
    x = activation(kind.activation)(dense(head, 'hidden', x))
  if kind.norm:
    x = apply(block.norm(config), head['norm'], x)
  if task == 'masked_lm' and config.tied:
    x = ops.dot_transposed(x, params['embed']['tokens'])
    x = add_bias(x, head['dense_bias']) if kind.output_bias else x
  else:
    x = dense(head, 'dense', x)
  return x.reshape(*features.shape[:-1], -1)


def encoder(config: EncoderConfig) -> ModelSpec:
  """The model for a configuration: hidden states, or with a head what that makes of them.

  `features` takes `types` besides, int32 `[B, T]`: the kind of each token, 0 by default. Under a
  classifier of texts it returns `[B, P+T, D]`: pooling sees the P tokens of a prompt, as in PEFT.
  """
  return ModelSpec(
    family='encoder',
    config=config,
    task=_task(config),
    init=functools.partial(_init, config),
    features=functools.partial(_features, config),
    head=functools.partial(_outputs, config),
    axis_rules=(*AXES, *(_CLASSES if config.outputs else _WORDS)),
  )
