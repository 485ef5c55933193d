"""Bottleneck adapters: a small network behind a sublayer, `y + f(y W_down) W_up`.

Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, Adapted, Select, matrix_sides, wrap
from jaxtune.adapt.lora import path_key
from jaxtune.adapt.lora_starts import uniform
from jaxtune.typing import InputError, Key, Params

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': jax.nn.gelu,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """A weight whose output goes through an adapter: `y = x W + bias`, then `y + f(y D) U`.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    down: D, `[..., out, R]`.
    up: U, `[..., R, out]`.
    activation: f, by its name in `ACTIVATIONS`.
  """

  base: Any
  down: jax.Array
  up: jax.Array
  activation: str = dataclasses.field(default='relu', metadata={'static': True})

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def _adapted(self, y: jax.Array) -> jax.Array:
    low = ACTIVATIONS[self.activation](ops.matmul(y, self.down.astype(y.dtype)))
    return y + ops.matmul(low, self.up.astype(y.dtype))

  def affine(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
    return self._adapted(ops.affine(x, self.base, bias))

  def dot(self, x: jax.Array) -> jax.Array:
    return self._adapted(ops.dot(x, self.base))

  def take(self, ids: jax.Array) -> jax.Array:
    return self._adapted(ops.take(self.base, ids))

  def materialize(self) -> NoReturn:
    raise InputError(
      'bottleneck adapters are no function of the weights: they need a built-in model and cannot '
      'be merged; keep the checkpoint, or train lora instead'
    )

  def dot_transposed(self, x: jax.Array) -> NoReturn:
    raise InputError(
      'bottleneck adapters have no transpose, which a tied head needs; leave the embedding out of '
      'what select chooses'
    )

  def axes(self, names: tuple[str | None, ...]) -> 'Bottleneck':
    """Logical axes of the fields from those of the weight; the axis of width R has none."""
    *lead, _, outside = names
    down, up = (*lead, outside, None), (*lead, None, outside)
    return Bottleneck(ops.axes(self.base, names), down, up, self.activation)  # type: ignore[arg-type]


def bottleneck(
  key: Key,
  params: Params,
  width: int = 16,
  activation: str = 'relu',
  *,
  select: Select = r'(attn/o|(mlp|experts)/down)$',
  also: str | None = HEAD,
) -> Adapted:
  """Puts an adapter behind the chosen matrices and trains its two.

  D is uniform in `±1/sqrt(out)`, U zero, so the first forward pass is the base model's.

  The default is Houlsby's placement: behind attention and behind the MLP, before the residual is
  added and the norm taken. Pfeiffer's has the second alone: `select=r'mlp/down$'`. As in He et al.
  2021 (arXiv:2110.04366) the adapter has no biases, and starts as LoRA does (Houlsby: biases, and
  normal entries of 0.01). Their parallel form, which reads the input of the whole sublayer, is not
  here: a leaf sees what goes into its own matrix. In a mixture each expert has its own adapter.

  It costs `4 R out` FLOPs a token and stays in the model for good: no matrix does what it does, so
  `merge`, `save_hf` and PEFT's files cannot hold it. It needs a built-in model.

  Args:
    key: for the D matrices.
    params: the parameters of the base.
    width: R, at least 1.
    activation: 'relu', 'gelu' or 'silu'.
    select: which weights; a rule may set width and activation, as in
      `((r'attn/o$', {'width': 8}), (r'mlp/down$', True), (r'', False))`.
    also: regular expression over parameters to train as they are, beside the adapters: by default a
      fresh head. None for nothing.

  Raises:
    InputError: a width below 1, an unknown activation, nothing chosen.
  """

  def make(path: str, weight: Any, width: int, activation: str) -> Bottleneck:
    lead, _, outputs = matrix_sides(path, weight, 'bottleneck')
    if not width >= 1:
      raise InputError(f'bottleneck: width is {width} for {path!r}; it must be at least 1')
    if activation not in ACTIVATIONS:
      raise InputError(
        f'bottleneck: activation is {activation!r}; choose one of {", ".join(ACTIVATIONS)}'
      )
    down = uniform(path_key(key, path), (*lead, outputs, width), outputs)
    return Bottleneck(weight, down, jnp.zeros((*lead, width, outputs)), activation)

  return wrap(
    params, select, 'bottleneck', make, 'down|up', also, width=width, activation=activation
  )
