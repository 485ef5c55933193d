"""Small Flax modules that the model families share."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.typing import InputError, Key, Params, is_weight

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_fast': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu_new': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'tanh': jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The activation function of that name in `config.json`."""
  if name not in ACTIVATIONS:
    raise InputError(f'unknown activation {name!r}; known: {", ".join(sorted(ACTIVATIONS))}')
  return ACTIVATIONS[name]


def apply(module: nn.Module, params: Params, *inputs: Any) -> Any:
  """The module's output under these parameters; any of them may be a weight leaf."""
  return module.apply({'params': params}, *inputs)


def matrix(module: nn.Module, name: str, std: float, *shape: int) -> Any:
  """A matrix of the module's own: an array, fresh from a normal distribution, or a weight leaf."""
  if module.has_variable('params', name):
    held: Any = module.get_variable('params', name)
    # Of a leaf Flax would compare the first field's shape, and codes may be packed.
    if is_weight(held) and held.shape == shape:
      return held
  return module.param(name, nn.initializers.normal(std), shape)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """`[N, D] + [D]`."""
  return x + bias.astype(x.dtype)[None, :]


def dense(params: Params, name: str, x: jax.Array) -> jax.Array:
  """`[N, in] -> [N, out]` with the matrix of that name, and with its bias where there is one."""
  return ops.affine(x, params[name], params.get(f'{name}_bias'))


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
  """Zeroes entries with probability `rate` and scales the rest by `1 / (1 - rate)`, given a key."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


class LayerNorm(nn.Module):
  """`ops.layer_norm` with its scale and, if it has one, its bias."""

  epsilon: float
  biased: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],)) if self.biased else None
    return ops.layer_norm(x, scale, bias, self.epsilon)


class RMSNorm(nn.Module):
  """`ops.rms_norm` with its scale, which is stored less `offset`."""

  epsilon: float
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.constant(1.0 - self.offset), (x.shape[-1],))
    return ops.rms_norm(x, scale, self.epsilon, self.offset)
