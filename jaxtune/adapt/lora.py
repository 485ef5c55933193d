"""LoRA: a frozen weight plus a trained product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685.
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, LINEAR, Adapted, Select, matrix_sides, wrap
from jaxtune.typing import InputError, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRA:
  """The weight `W + scale * A B`, never added up in the forward pass.

  The paper writes `W_0 + B A` for column vectors; weights here are `[in, out]`, so A is `[in, R]`.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    a: `[..., in, R]`.
    b: `[..., R, out]`.
    scale: `[...]`, alpha / rank.
  """

  base: Any
  a: jax.Array
  b: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    delta = self.scale[..., None, None] * (self.a @ self.b)
    base = ops.materialize(self.base)
    return base + delta.astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    low = (x @ self.a.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot(x, self.base) + low @ self.b.astype(x.dtype)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    low = (x @ self.b.T.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot_transposed(x, self.base) + low @ self.a.T.astype(x.dtype)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    return base + ((ops.take(self.a, ids) * self.scale) @ self.b).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'LoRA':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    base = ops.axes(self.base, names)
    return LoRA(base, (*lead, inside, None), (*lead, None, outside), lead)  # type: ignore[arg-type]


def path_key(key: Key, path: str) -> Key:
  """Each weight has its own stream, named by its path: adding a target changes no other."""
  return jax.random.fold_in(key, zlib.crc32(path.encode()))


def check_rank(rank: int, path: str, inputs: int, outputs: int, method: str = 'lora') -> None:
  """Refuses a rank that the matrix cannot have."""
  if not 1 <= rank <= min(inputs, outputs):
    raise InputError(
      f'{method}: rank is {rank}, but {path!r} is a {inputs}x{outputs} matrix: '
      f'choose a rank from 1 to {min(inputs, outputs)}'
    )


def check_alpha(alpha: float, method: str = 'lora') -> None:
  """Refuses an alpha that is no positive number."""
  if not 0 < alpha < float('inf'):
    raise InputError(f'{method}: alpha is {alpha}; it must be a positive number')


def lora(
  key: Key,
  params: Params,
  rank: int = 16,
  alpha: float = 32.0,
  *,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the chosen weights and trains their A and B.

  A is uniform in `±1/sqrt(in)`, B zero, so the first forward pass is the base model's.

  Args:
    key: for the A matrices.
    params: the parameters of the base.
    rank: R, from 1 to the smaller side of every chosen matrix.
    alpha: the product is scaled by `alpha / rank`. Held while the rank changes, it leaves the best
      learning rate nearly where it is (docs/adapt.md).
    select: which weights, all matrices of the layers by default; a rule may set rank and alpha:
      `((r'attn/', {'rank': 8}), (r'mlp/', True), (r'', False))`.
    also: regular expression over parameters to train as they are, beside the adapter: by default a
      fresh head. None for nothing, as for a language model whose untied head is pretrained.

  Raises:
    InputError: a rank that does not fit, an alpha that is not positive, nothing chosen.
  """

  def make(path: str, weight: Any, rank: int, alpha: float) -> LoRA:
    lead, inputs, outputs = matrix_sides(path, weight, 'lora')
    check_rank(rank, path, inputs, outputs)
    check_alpha(alpha)
    bound = inputs**-0.5  # PEFT's start: Kaiming uniform with a = sqrt(5)
    return LoRA(
      base=weight,
      a=jax.random.uniform(path_key(key, path), (*lead, inputs, rank), minval=-bound, maxval=bound),
      b=jnp.zeros((*lead, rank, outputs)),
      scale=jnp.full(lead, alpha / rank, jnp.float32),
    )

  return wrap(params, select, 'lora', make, '[ab]', also, rank=rank, alpha=alpha)
