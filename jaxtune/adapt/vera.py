"""VeRA: one pair of frozen random matrices for all layers, of which each trains two vectors.

Kopiczko et al. 2023, arXiv:2310.11454.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops, tree
from jaxtune.adapt.adapted import HEAD, LINEAR, Adapted, Select, matrix_sides, selected, wrap
from jaxtune.typing import InputError, Key, Params

MOST = 127  # of the codes of A and B


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VeRA:
  """The weight `W + scale * A diag(lambda_d) B diag(lambda_b)`, never added up in a forward pass.

  The paper's equation 2 in our order, `[in, out]`. A and B are the first rows and columns of one
  pair for the whole model; every layer has them to itself, so that a stack can be scanned.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    a: `[..., in, R]`, int8 codes as `vera` makes them, or floats as PEFT's files hold them.
    b: `[..., R, out]`, the same.
    lambda_d: `[..., R]`.
    lambda_b: `[..., out]`.
    scale: `[...]`, what one code of A times one of B stands for; 1 beside floats.
  """

  base: Any
  a: jax.Array
  b: jax.Array
  lambda_d: jax.Array
  lambda_b: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    d = self.scale[..., None] * self.lambda_d
    delta = (self.a * d[..., None, :]) @ (self.b * self.lambda_b[..., None, :])
    base = ops.materialize(self.base)
    return base + delta.astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    low = _times(x @ self.a.astype(x.dtype), self.scale * self.lambda_d)
    return ops.dot(x, self.base) + _times(low @ self.b.astype(x.dtype), self.lambda_b)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    low = _times(_times(x, self.lambda_b) @ self.b.T.astype(x.dtype), self.scale * self.lambda_d)
    return ops.dot_transposed(x, self.base) + low @ self.a.T.astype(x.dtype)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    low = _times(ops.take(self.a, ids).astype(base.dtype), self.scale * self.lambda_d)
    return base + _times(low @ self.b.astype(base.dtype), self.lambda_b)

  def axes(self, names: tuple[str | None, ...]) -> 'VeRA':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    pair = (*lead, inside, None), (*lead, None, outside)
    vectors = (*lead, None), (*lead, outside)
    return VeRA(ops.axes(self.base, names), *pair, *vectors, lead)  # type: ignore[arg-type]


def _times(x: jax.Array, vector: jax.Array) -> jax.Array:
  """`x * vector` along the last axis, in the type of x."""
  return x * jnp.expand_dims(vector.astype(x.dtype), range(x.ndim - 1))


def vera_leaf(
  weight: Any,
  a: jax.Array,
  b: jax.Array,
  scale: float,
  lambda_d: jax.Array,
  lambda_b: jax.Array,
) -> VeRA:
  """A leaf with its slices of the pair `a [most in, R]`, `b [R, most out]`, once for each layer."""
  *lead, inputs, outputs = weight.shape
  rank = a.shape[-1]
  return VeRA(
    base=weight,
    a=jnp.broadcast_to(a[:inputs], (*lead, inputs, rank)),
    b=jnp.broadcast_to(b[:, :outputs], (*lead, rank, outputs)),
    lambda_d=lambda_d,
    lambda_b=lambda_b,
    scale=jnp.full(lead, scale, jnp.float32),
  )


def vera(
  key: Key,
  params: Params,
  rank: int = 256,
  d_initial: float = 0.1,
  *,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the chosen weights and trains the two vectors of each, `rank + out` numbers a matrix.

  lambda_b starts at zero, so the first forward pass is the base model's.

  A and B are uniform with the variance of Kaiming's start, as in PEFT, but on a grid of 255 values:
  codes of one byte. A stack that is scanned has to have a copy of its slices for each layer,
  `rank * (in + out)` bytes a matrix; 0.7 GB on all matrices of an 8B Llama at rank 256, where
  floats would take 2.7 GB. Made afresh in every step they would take none, but 15% more time
  (measured, 8 layers of width 512), and depend on the random generator of one version of JAX.

  Args:
    key: for A and B.
    params: the parameters of the base.
    rank: R; larger than LoRA's, since so little of it trains.
    d_initial: where lambda_d starts.
    select: which weights; a rule may set d_initial, but the rank is that of the pair.
    also: see `lora`.

  Raises:
    InputError: a rank or d_initial that is not positive, nothing chosen, no matrix.
  """
  if rank < 1:
    raise InputError(f'vera: rank is {rank}; it must be at least 1')
  chosen = selected(params, select, 'vera')
  shapes = [matrix_sides(p, w, 'vera') for p, w in tree.named_weights(params) if p in chosen]
  most_in = max(inputs for _, inputs, _ in shapes)
  most_out = max(outputs for _, _, outputs in shapes)
  keys = jax.random.split(key)
  a = jax.random.randint(keys[0], (most_in, rank), -MOST, MOST + 1, jnp.int8)
  b = jax.random.randint(keys[1], (rank, most_out), -MOST, MOST + 1, jnp.int8)
  scale = 6 / (most_in * rank) ** 0.5 / MOST**2  # the bounds are sqrt(6 / in) and sqrt(6 / R)

  def make(path: str, weight: Any, d_initial: float) -> VeRA:
    lead, _, outputs = matrix_sides(path, weight, 'vera')
    if not 0 < d_initial < float('inf'):
      raise InputError(f'vera: d_initial is {d_initial}; it must be a positive number')
    lambda_d = jnp.full((*lead, rank), d_initial, jnp.float32)
    return vera_leaf(weight, a, b, scale, lambda_d, jnp.zeros((*lead, outputs)))

  return wrap(params, select, 'vera', make, 'lambda_[bd]', also, d_initial=d_initial)
