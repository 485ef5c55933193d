"""The methods and the kinds of models that the contract of methods runs over."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune import adapt, models
from jaxtune.models import ModelSpec
from jaxtune.typing import Params


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the contract.

  Attributes:
    options: of the method.
    trains: regular expression that the paths of all its trained leaves match, the head's aside.
    identity: whether the first forward pass is the base model's.
    merges: whether `adapt.merge` gives plain parameters that compute the same.
    cuts: whether it cuts the stack, so that paths are not those of the base.
    own: whether it works on a user's own module, whose weights end in `kernel`.
    decoder: whether the decoder of the contract, which has no biases, can take it.
    seq2seq: whether the encoder-decoder can.
    method: its name in `adapt.METHODS`, where the row has another: `lora_pissa` is `lora`.
    slow: leave all of it to the slow suite, as for a second row of a method.
    base: of `adapt.quantize`, through which the base goes first, embeddings and all.
  """

  options: dict[str, Any]
  trains: str
  identity: bool = True
  merges: bool = True
  cuts: bool = False
  own: bool = True
  decoder: bool = True
  seq2seq: bool = True
  method: str = ''
  slow: bool = False
  base: dict[str, Any] | None = None


# Tokens that come before the text, which built-in models know of.
VIRTUAL = {'identity': False, 'merges': False, 'own': False, 'seq2seq': False}

METHODS: dict[str, Method] = {
  'full': Method({}, ''),
  'freeze': Method({'select': r'(attn/q|0/kernel|a/kernel)$'}, r'(attn/q|kernel)$'),
  'probe': Method({}, r'(?!)', own=False, decoder=False),
  'bitfit': Method({}, r'bias$', decoder=False),
  'norms': Method({}, r'norm/(scale|bias)$', own=False),
  'lora': Method({'rank': 2}, r'/[ab]$'),
  'lora_pissa': Method(
    {'rank': 2, 'start': 'pissa', 'rslora': True}, r'/[ab]$', method='lora', slow=True
  ),
  'lora_loftq': Method(
    {'rank': 2, 'start': 'loftq', 'dropout': 0.5},
    r'/[ab]$',
    identity=False,
    method='lora',
    slow=True,
  ),
  'qlora': Method({'rank': 2}, r'/[ab]$', method='lora', slow=True, base={'block': 4}),
  'dora': Method({'rank': 2}, r'/[abm]$'),
  'qdora': Method({'rank': 2}, r'/[abm]$', method='dora', slow=True, base={'block': 4}),
  'loha': Method({'rank': 2}, r'/[ab][12]$'),
  'lokr': Method({'rank': 1, 'decompose_both': True}, r'/w[12](_[ab])?$'),
  'adalora': Method({'rank': 2}, r'/[abe]$'),
  'trainable_tokens': Method({'tokens': [3, 0]}, r'embed/tokens/rows$', own=False),
  'bottleneck': Method({'width': 2}, r'/(down|up)$', merges=False, own=False),
  'ia3': Method({}, r'/l$'),
  'vera': Method({'rank': 4}, r'/lambda_[bd]$'),
  'prompt': Method({'tokens': 2}, r'^prompt/', **VIRTUAL),
  'p_tuning': Method({'tokens': 2}, r'^prompt/', **VIRTUAL),
  'prefix': Method({'tokens': 2}, r'^prefix/', **VIRTUAL),
  'last_layers': Method(
    {'layers': 1}, r'/(1-1|5-5)/|^((encoder_|decoder_)?norm|pooler)/', own=False, cuts=True
  ),
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """A model, its inputs `(tokens, mask)` and how to call it."""

  model: ModelSpec
  inputs: tuple[Any, ...]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def apply(self, params: Params) -> jax.Array:
    return self.model.apply(params, *self.inputs, **self.options)


RNG = np.random.default_rng(0)
MASK = np.arange(4)[None] < np.array([[4], [3]])
TOKENS = np.where(MASK, RNG.integers(1, 12, MASK.shape), 0).astype(np.int32)
# Sides that eight devices divide where FSDP cuts them.
SIZES = {'vocabulary': 16, 'width': 16, 'hidden': 24, 'layers': 2, 'heads': 2}
X = np.float32(RNG.normal(size=(2, 8)))


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='head')(nn.tanh(nn.Dense(16, name='a')(x)))


def _decoder(**fields: Any) -> Kind:
  config = models.DecoderConfig(**SIZES, kv_heads=1, tied=True, **fields)
  return Kind(models.build(config), (TOKENS, MASK))


def _encoder(**fields: Any) -> Kind:
  config = models.EncoderConfig(**SIZES, positions=8, outputs=3, **fields)
  return Kind(models.build(config), (TOKENS, MASK))


def _t5() -> Kind:
  config = models.EncoderDecoderConfig(**SIZES)
  return Kind(models.build(config), (TOKENS, MASK), {'targets': TOKENS})


def _own(nnx_too: bool) -> Callable[[], Kind]:
  def make() -> Kind:
    if not nnx_too:
      return Kind(models.from_linen(Linen(), X), (X,))
    layers = [nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(16, 8, rngs=nnx.Rngs(1))]
    return Kind(models.from_nnx(nnx.Sequential(*layers))[0], (X,))

  return make


KINDS: dict[str, Callable[[], Kind]] = {
  'encoder': _encoder,
  'decoder': _decoder,
  'mixture': lambda: _decoder(experts=2, expert_hidden=8),
  'encoder_decoder': _t5,
  'linen': _own(False),
  'nnx': _own(True),
}


OWN = ('linen', 'nnx')  # a user's own modules


def takes(method: Method, kind: str) -> bool:
  if kind in OWN:
    return method.own
  if kind == 'encoder_decoder' and not method.seq2seq:
    return False
  return method.decoder or kind == 'encoder'


def params_of(kind: Kind) -> Params:
  """Random parameters, away from the zeros and ones that models start with."""

  def random(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
    rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
    return jnp.asarray(rng.normal(0.1, 0.4, shape.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(random, kind.model.shapes())


def base_of(name: str, kind_name: str, kind: Kind) -> Params:
  """The parameters before the method."""
  params, options = params_of(kind), METHODS[name].base
  if options is None:
    return params
  select = r'kernel$' if kind_name in OWN else rf'{adapt.LINEAR}|^embed/tokens$'
  return adapt.quantize(jax.random.key(7), params, select, **options)


def adapted(name: str, kind_name: str, kind: Kind) -> adapt.Adapted:
  """The parameters under a method."""
  row = METHODS[name]
  method, options = row.method or name, dict(row.options)
  known = adapt.options_of(method)
  if kind_name in OWN and 'select' in known and 'select' not in options:
    options['select'] = r'bias$' if method == 'bitfit' else r'kernel$'
  if kind_name != 'encoder' and 'also' in known:
    options['also'] = None
  return adapt.create(method, jax.random.key(7), base_of(name, kind_name, kind), **options)


def shaken(trainable: Params, size: float = 0.1) -> Params:
  """The trained leaves as training might have left them."""
  leaves, structure = jax.tree.flatten(trainable)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  moved = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(structure, moved)
