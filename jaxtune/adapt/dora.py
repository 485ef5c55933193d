"""DoRA: LoRA that moves the direction of every column, and the columns' lengths of their own.

Liu et al. 2024, arXiv:2402.09353.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, LINEAR, Adapted, Select, matrix_sides, wrap
from jaxtune.adapt.lora import check_alpha, check_rank, path_key
from jaxtune.adapt.lora_starts import begin
from jaxtune.typing import Key, Params, is_weight

_LEAST = 1e-6  # of the base's squared norm: what rounding leaves where an adapter cancels a column


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoRA:
  """The weight `m V / |V|` with `V = W + scale * A B`, where `|V|` `[out]` is each column's length.

  Eq. (5) of the paper; a column is what one output is made of. In the products `|V|` comes from
  `|V|^2 = |W|^2 + 2 scale sum_r (A^T W) * B + scale^2 sum_r B * (A^T A B)`, without the sum `V`,
  and is a constant to the gradient as in section 4.3 (and in PEFT).

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    a: `[..., in, R]`.
    b: `[..., R, out]`.
    scale: `[...]`, alpha / rank.
    m: `[..., out]`, the lengths; |W| at first.
    norm2: `[..., out]`, `|W|^2`, which does not change.
  """

  base: Any
  a: jax.Array
  b: jax.Array
  scale: jax.Array
  m: jax.Array
  norm2: jax.Array
  recomputes: ClassVar[bool] = True  # the gradient of m needs `x V`: keep `x W` alone (`ops.dot`)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def _stretched(self, y: jax.Array) -> jax.Array:
    """`y * m / |V|`: `[..., out]`."""
    base, a, b, scale, norm2 = lax.stop_gradient(
      (self.base, self.a, self.b, self.scale, self.norm2)
    )
    # In the dtype of the activations, as the product with them: no second copy of the base.
    cross = ops.dot(a.T.astype(y.dtype), base).astype(b.dtype)  # [R, out]
    square = norm2 + scale * (b * (2 * cross + scale * ((a.T @ a) @ b))).sum(0)
    square = jnp.maximum(square, _LEAST * norm2 + jnp.finfo(norm2.dtype).tiny)
    stretch = (self.m * lax.rsqrt(square)).astype(y.dtype)
    return y * jnp.expand_dims(stretch, range(y.ndim - 1))

  def dot(self, x: jax.Array) -> jax.Array:
    low = ops.matmul(x, self.a.astype(x.dtype)) * self.scale.astype(x.dtype)
    return self._stretched(ops.dot(x, self.base) + ops.matmul(low, self.b.astype(x.dtype)))

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    x = self._stretched(x)
    low = (x @ self.b.T.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot_transposed(x, self.base) + low @ self.a.T.astype(x.dtype)

  def take(self, ids: jax.Array) -> jax.Array:
    rows = ops.take(self.base, ids)
    low = (ops.take(self.a, ids) * self.scale) @ self.b
    return self._stretched(rows + low).astype(rows.dtype)

  def materialize(self) -> jax.Array:
    base = ops.materialize(self.base)
    v = base.astype(self.a.dtype) + self.scale[..., None, None] * (self.a @ self.b)
    length = jnp.sqrt(jnp.square(v).sum(-2, keepdims=True))
    length = jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    return (v * (self.m[..., None, :] / length)).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'DoRA':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    a, b, column = (*lead, inside, None), (*lead, None, outside), (*lead, outside)
    return DoRA(ops.axes(self.base, names), a, b, lead, column, column)  # type: ignore[arg-type]


@jax.jit
def column_norm2(weight: Any) -> jax.Array:
  """Squared length of each column, in float32: `[..., in, out] -> [..., out]`."""
  if len(weight.shape) > 2:  # one matrix at a time: a quantized stack is never dense as a whole
    return lax.map(column_norm2, weight)
  dense = weight.materialize() if is_weight(weight) else jnp.asarray(weight)
  return jnp.square(dense.astype(jnp.float32)).sum(-2)


def dora_leaf(base: Any, a: jax.Array, b: jax.Array, scale: jax.Array, m: Any = None) -> DoRA:
  """The leaf around a weight; without `m` it starts as that weight."""
  norm2 = column_norm2(base)
  return DoRA(base, a, b, scale, jnp.sqrt(norm2) if m is None else m, norm2)


def dora(
  key: Key,
  params: Params,
  rank: int = 16,
  alpha: float = 32.0,
  *,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the chosen weights and trains their A, B and the lengths of their columns.

  A is uniform in `±1/sqrt(in)`, B zero and m the length of W's columns, so the first forward pass
  is the base model's.

  Args:
    key: for the A matrices.
    params: the parameters of the base.
    rank: R, from 1 to the smaller side of every chosen matrix.
    alpha: the product is scaled by `alpha / rank`.
    select: as for `lora`.
    also: as for `lora`.

  Raises:
    InputError: a rank that does not fit, an alpha that is not positive, nothing chosen.
  """

  def make(path: str, weight: Any, rank: int, alpha: float) -> DoRA:
    lead, inputs, outputs = matrix_sides(path, weight, 'dora')
    check_rank(rank, path, inputs, outputs, 'dora')
    check_alpha(alpha, 'dora')
    begun = begin('kaiming', path_key(key, path), weight, rank, alpha / rank, None)
    return dora_leaf(*begun, jnp.full(lead, alpha / rank, jnp.float32))

  return wrap(params, select, 'dora', make, '[abm]', also, rank=rank, alpha=alpha)
