"""One layer of a transformer, for every family: a decoder's, an encoder's, an image tower's.

What differs between families is data in a `BlockConfig`; what differs between the layers of one
model is read from the layer's parameters (experts, a first norm) or scanned beside them (windows,
rotation).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtune import ops, shard
from jaxtune.models import stack, virtual
from jaxtune.models.experts import Experts, Router
from jaxtune.models.layers import LayerNorm, RMSNorm, activation, apply, dropout, matrix
from jaxtune.models.spec import gathered
from jaxtune.typing import InputError, Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
  """Everything that fixes a layer's shapes and arithmetic.

  Attributes:
    model_type: Hugging Face's word for the family in whose files the model is written.
    kv_heads: of keys and values, which divide `heads`; 0 for as many.
    head_width: 0 for `width / heads`.
    norm: 'rms' or 'layer'.
    norm_bias: whether norms have a bias ('layer' only).
    norm_offset: added to a norm's stored scale ('rms' only): 1 for Gemma.
    order: where norms and residuals go. 'pre': `x + f(norm(x))`; 'post': `norm(x + f(x))`;
      'sandwich': `x + norm(f(norm(x)))`; 'parallel': `x + attention(norm(x)) + mlp(norm'(x))`.
    first_norm: whether the first layer has a norm before its attention ('pre').
    gated: whether the MLP is `(activation(x W_gate) * x W_up) W_down`, else without the gate.
    qk_norm: an RMS norm over each head of queries and keys, before they are rotated.
    attention_scale: of the scores; 0 for `1 / sqrt(head_width)`.
    attention_cap: see `ops.attention`; 0 for none.
    rope: rotary positions; None for none.
    local_rope: of the layers with a window; None for the same.
    rotated: which layers rotate; empty for all.
    window: how far a token looks, see `ops.visible`; 0 for no limit.
    local: which layers have the window; empty for all.
    experts: of a mixture in place of the MLP; 0 for none.
    experts_per_token: that a token is sent to.
    expert_hidden: width of one expert.
    normalize_gates: whether the weights of a token's experts sum to one.
    sparse: which layers have experts; empty for all.
    dropout: of each sublayer's output and of the embeddings, where a key is given.
    remat: what of a layer the backward pass computes again, a name of `stack.REMAT`: 'none',
      'products' (what lies between products) or 'full'.
    outputs: of a classifier in place of the model's own outputs.
    each_token: whether the classifier labels every token instead of the text.
    init_scale: standard deviation of fresh matrices.
  """

  model_type: str = 'llama'
  width: int = 512
  hidden: int = 1408
  layers: int = 12
  heads: int = 8
  kv_heads: int = 0
  head_width: int = 0
  epsilon: float = 1e-5
  norm: str = 'rms'
  norm_bias: bool = False
  norm_offset: float = 0.0
  order: str = 'pre'
  first_norm: bool = True
  activation: str = 'silu'
  gated: bool = True
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  attention_scale: float = 0.0
  attention_cap: float = 0.0
  rope: ops.Rope | None = None
  local_rope: ops.Rope | None = None
  rotated: tuple[bool, ...] = ()
  window: int = 0
  local: tuple[bool, ...] = ()
  experts: int = 0
  experts_per_token: int = 2
  expert_hidden: int = 0
  normalize_gates: bool = True
  sparse: tuple[bool, ...] = ()
  dropout: float = 0.0
  remat: str = 'products'
  outputs: int = 0
  each_token: bool = False
  init_scale: float = 0.02

  def __post_init__(self):
    object.__setattr__(self, 'kv_heads', self.kv_heads or self.heads)
    object.__setattr__(self, 'head_width', self.head_width or self.width // self.heads)
    if self.remat not in stack.REMAT:
      raise InputError(f'remat is {self.remat!r}; choose one of {", ".join(stack.REMAT)}')


AXES = (
  (r'attn/prefix/(keys|values)$', (None, 'kv_heads')),
  (r'attn/[qkv]_norm/scale$', (None,)),
  (r'attn/q$', ('embed', 'heads')),
  (r'attn/q_bias$', ('heads',)),
  (r'attn/[kv]$', ('embed', 'kv_heads')),
  (r'attn/[kv]_bias$', ('kv_heads',)),
  (r'attn/o$', ('heads', 'embed')),
  (r'router/dense$', ('embed', None)),
  (r'experts/(gate|up)$', ('experts', 'embed', 'mlp')),
  (r'experts/down$', ('experts', 'mlp', 'embed')),
  (r'mlp/(gate|up)$', ('embed', 'mlp')),
  (r'mlp/(gate|up)_bias$', ('mlp',)),
  (r'mlp/down$', ('mlp', 'embed')),
  (r'(norm/(scale|bias)|(o|down)_bias)$', ('embed',)),
)


Seen = ops.Visible | jax.Array | None


class View(NamedTuple):
  """What the tokens of a layer see.

  table: how queries and keys are rotated; None for not at all.
  seen: see `ops.attention`; None when every token sees every other.
  """

  table: ops.Table | None
  seen: Seen


class Memory(NamedTuple):
  """Keys and values of earlier tokens, of all layers of a stack.

  keys, values: `[L, B, S, G, K]`.
  layer: which of the layers is meant, int32.
  start: the slot of the first new token, int32.
  """

  keys: jax.Array
  values: jax.Array
  layer: jax.Array
  start: jax.Array


def views(
  config: BlockConfig, positions: jax.Array, visible: Callable[[int], ops.Visible | None]
) -> Callable[[jax.Array], View]:
  """What a layer sees, by its number; `visible` is a function of the window."""

  def one(rope: ops.Rope | None, window: int) -> View:
    table = None if rope is None else ops.rope_table(positions, config.head_width, rope)
    return View(table, visible(window))

  far = one(config.rope, 0)
  near = one(config.local_rope or config.rope, config.window) if config.window else far
  return lambda index: _view(config, index, far, near)


def _view(config: BlockConfig, index: jax.Array, far: View, near: View) -> View:
  """`near` where the layer has the window, `far` where not."""
  if config.window and not config.local:
    far = near
  if config.window and config.local and any(config.local):
    local = jnp.asarray(config.local)[index]
    far = jax.tree.map(lambda a, b: jnp.where(local, a, b), near, far)
  if config.rotated and far.table is not None:
    turned = jnp.asarray(config.rotated)[index]
    far = far._replace(
      table=ops.Table(jnp.where(turned, far.table.cos, 1.0), jnp.where(turned, far.table.sin, 0.0))
    )
  return far


def layer_kinds(config: BlockConfig) -> list[tuple[bool, bool]]:
  """Of each layer whether it has a norm before attention, and experts."""
  sparse = config.sparse or (config.experts > 0,) * config.layers
  return [(config.first_norm or i > 0, sparse[i]) for i in range(config.layers)]


def run(
  config: BlockConfig,
  layers: Params,
  x: jax.Array,
  batch: int,
  see: Callable[[jax.Array], View],
  key: Key | None,
  causal: bool,
) -> jax.Array:
  """Embeddings, see `lay`, through a stack of layers; with a key there is dropout, of them too."""
  if key is not None:
    key, own = jax.random.split(key)
    x = dropout(x, config.dropout, own)

  def layer(params: Params, x: jax.Array, index: jax.Array, key: Key | None) -> jax.Array:
    params = gathered(AXES, params)
    return cut(apply(block(config, params, causal), params, x, batch, see(index), key)[0])

  return stack.scan_stack(layer, layers, cut(x), key, config.remat)


def lay(x: jax.Array) -> jax.Array:
  """Activations `[B, T, D]` as layers take them: `[B*T, D]`, unless tokens are spread over devices.

  With three axes XLA's CPU backward pass transposes wide gradients in slow elementwise loops; with
  two the compiler no longer sees along what the tokens were cut.
  """
  return x if shard.size('sequence') > 1 else x.reshape(-1, x.shape[-1])


def cut(x: jax.Array, last: str | None = None) -> jax.Array:
  """Activations of `lay` on their devices, `last` being the name of the last axis."""
  return shard.constrain(x, *('rows', 'length')[: x.ndim - 1], last)


def block(config: BlockConfig, params: Params, causal: bool) -> 'Block':
  """The module of a layer with these parameters."""
  return Block(config, causal, 'attn_norm' in params, 'experts' in params)


def _dense(module: Any, name: str, x: jax.Array, size: int, biased: bool) -> jax.Array:
  """`x W`, plus a bias, with the module's own parameters."""
  weight = matrix(module, name, module.config.init_scale, x.shape[-1], size)
  bias = module.param(f'{name}_bias', nn.initializers.zeros, (size,)) if biased else None
  return ops.affine(x, weight, bias)


def norm(config: BlockConfig, name: str | None = None) -> nn.Module:
  """The norm of the configuration."""
  if config.norm == 'rms':
    return RMSNorm(config.epsilon, config.norm_offset, name=name)
  return LayerNorm(config.epsilon, config.norm_bias, name=name)


class Attention(nn.Module):
  """Attention with grouped heads, `[..., D] -> [..., D]` as of `lay`; of `source` where given.

  With a memory the new keys and values are written into it and all of it is attended to; the second
  result is the memory. The keys and values of a prefix come before the tokens' own.
  """

  config: BlockConfig
  causal: bool

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    batch: int,
    view: View,
    memory: Memory | None = None,
    source: jax.Array | None = None,
  ) -> tuple[jax.Array, Memory | None]:
    c = self.config
    source = x if source is None else source

    def heads(name: str, y: jax.Array, count: int) -> jax.Array:
      y = _dense(self, name, y, count * c.head_width, c.qkv_bias)
      y = y.reshape(batch, -1, count, c.head_width)
      if name == 'v':
        return y
      if c.qk_norm:
        y = RMSNorm(c.epsilon, c.norm_offset, name=f'{name}_norm')(y)
      return y if view.table is None else ops.rotate(y, view.table)

    q = heads('q', x, c.heads)
    k = heads('k', source, c.kv_heads)
    v = heads('v', source, c.kv_heads)
    if self.has_variable('params', 'prefix'):
      k, v = virtual.join_prefix(self.get_variable('params', 'prefix'), k, v)
    self.sow('heads', 'q', q)  # for who asks for them: `query_key_maxima`
    self.sow('heads', 'k', k)
    if memory is not None:
      at = (memory.layer, 0, memory.start, 0, 0)
      keys = lax.dynamic_update_slice(memory.keys, k.astype(memory.keys.dtype)[None], at)
      values = lax.dynamic_update_slice(memory.values, v.astype(memory.values.dtype)[None], at)
      memory = memory._replace(keys=keys, values=values)
      k, v = keys[memory.layer].astype(k.dtype), values[memory.layer].astype(v.dtype)
    y = _attend(c, q, k, v, view.seen, self.causal and memory is None)
    y = y.reshape(*x.shape[:-1], c.heads * c.head_width)
    return _dense(self, 'o', y, c.width, c.o_bias), memory


def _attend(
  c: BlockConfig, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, causal: bool
) -> jax.Array:
  """`ops.attention`, each device with its own queries and heads, and the keys of all tokens."""
  attend = functools.partial(ops.attention, scale=c.attention_scale or None, cap=c.attention_cap)
  whole = c.heads % shard.size('tensor') > 0  # which `mesh.replicate` has allowed
  if not whole and c.kv_heads % shard.size('tensor'):
    # Fewer heads of keys than devices: each gets copies of those that its queries look at.
    k, v = (jnp.repeat(x, c.heads // c.kv_heads, axis=2) for x in (k, v))
  spread = shard.size('sequence') > 1
  if causal and spread and seen is None:
    seen = ops.visible(None, None, True, q.shape[1])

  fixed: dict[str, Any] = {}
  if isinstance(seen, ops.Visible):
    limits = {'behind': seen.behind, 'ahead': seen.ahead}
    fixed = {name: x for name, x in limits.items() if isinstance(x, np.generic)}

  def own(q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen) -> jax.Array:
    k, v = (shard.all_gather(x, 1, 'sequence') for x in (k, v))
    if isinstance(seen, ops.Visible):
      seen = dataclasses.replace(seen, **fixed)  # numbers still, by which a kernel is chosen
    return attend(q, k, v, seen, causal=causal and not spread)

  names = ('rows', 'length', None if whole else 'heads', None)
  given = (names, names, names, _names(seen))
  return shard.locally(own, (q, k, v, seen), given, names, kernels=True)


def _names(seen: Seen) -> Any:
  """The axes of what is seen: rows and queries are spread over devices, keys are not."""

  def one(x: Any, *names: str | None) -> tuple[str | None, ...]:
    return tuple(name if n > 1 else None for name, n in zip(names, np.shape(x), strict=True))

  if seen is None:
    return None
  if not isinstance(seen, ops.Visible):
    return one(seen, 'rows', *[None] * (seen.ndim - 3), 'length', None)
  fields: dict[str, Any] = {}
  for field in dataclasses.fields(seen):
    value = getattr(seen, field.name)
    if isinstance(value, jax.Array | np.ndarray):
      last = 'length' if field.name.startswith('quer') else None
      value = one(value, *('rows', last)[: value.ndim])
    fields[field.name] = () if isinstance(value, np.generic) else value
  return ops.Visible(**fields)


class MLP(nn.Module):
  """`(activation(x W_gate) * x W_up) W_down` (arXiv:2002.05202) or `activation(x W_up) W_down`."""

  config: BlockConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config

    act = activation(c.activation)
    if c.gated:
      y = act(_dense(self, 'gate', x, c.hidden, c.mlp_bias))
      y = y * _dense(self, 'up', x, c.hidden, c.mlp_bias)
    else:
      y = act(_dense(self, 'up', x, c.hidden, c.mlp_bias))
    return _dense(self, 'down', cut(y, 'mlp'), c.width, c.mlp_bias)


class Block(nn.Module):
  """One layer: attention and MLP or experts, with norms and residuals in the family's order."""

  config: BlockConfig
  causal: bool
  normed: bool = True
  mixture: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    batch: int,
    view: View,
    key: Key | None = None,
    memory: Memory | None = None,
  ) -> tuple[jax.Array, Memory | None]:
    c = self.config
    keys = (None, None) if key is None else jax.random.split(key)
    named = functools.partial(norm, c)

    def attend(y: jax.Array) -> tuple[jax.Array, Memory | None]:
      y, filled = Attention(c, self.causal, name='attn')(y, batch, view, memory)
      return dropout(y, c.dropout, keys[0]), filled

    def feed(y: jax.Array) -> jax.Array:
      if self.mixture:
        y = Experts(c, name='experts')(y, *Router(c, name='router')(y))
      else:
        y = MLP(c, name='mlp')(y)
      return dropout(y, c.dropout, keys[1])

    if c.order == 'post':
      y, memory = attend(x)
      x = named(name='attn_norm')(x + y)
      return named(name='mlp_norm')(x + feed(x)), memory
    y, memory = attend(named(name='attn_norm')(x) if self.normed else x)
    if c.order == 'parallel':
      return x + y + feed(named(name='mlp_norm')(x)), memory
    x = x + (named(name='attn_post_norm')(y) if c.order == 'sandwich' else y)
    y = feed(named(name='mlp_norm')(x))
    return x + (named(name='mlp_post_norm')(y) if c.order == 'sandwich' else y), memory
