"""LoHa: a frozen weight plus the entrywise product of two thin products.

FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098; as an adapter LyCORIS, Yeh et al. 2023,
arXiv:2309.14859.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, LINEAR, Adapted, Select, matrix_sides, wrap
from jaxtune.adapt.lora import check_alpha, check_rank, path_key
from jaxtune.adapt.lora_starts import uniform
from jaxtune.typing import Key, Params, is_weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoHa:
  r"""The weight $W + s\,(A_1 B_1) \circ (A_2 B_2)$, whose update may have the rank R².

  Written as a product of thin matrices the update would need R² columns, so the two products are
  made `[in, out]` in each layer and multiplied; in the backward pass they are made again. In
  float32 they are added to an array W, which saves two of the step's five large products. In
  bfloat16 the sum would round a small update away, and a quantized W has a product of its own.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    a1, a2: `[..., in, R]`.
    b1, b2: `[..., R, out]`.
    scale: `[...]`, alpha / rank.
  """

  base: Any
  a1: jax.Array
  b1: jax.Array
  a2: jax.Array
  b2: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    base = ops.materialize(self.base)
    delta = (self.scale[..., None, None] * self.a1 @ self.b1) * (self.a2 @ self.b2)
    return base + delta.astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    factors = (self.a1 * self.scale, self.b1, self.a2, self.b2)
    if self._adds(x):
      return _through(x, self.base, *factors)
    return ops.dot(x, self.base) + _through(x, None, *factors)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    factors = (self.b1.T, (self.a1 * self.scale).T, self.b2.T, self.a2.T)
    if self._adds(x):
      return _through(x, self.base.T, *factors)
    return ops.dot_transposed(x, self.base) + _through(x, None, *factors)

  def _adds(self, x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and not is_weight(self.base)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    first = (ops.take(self.a1, ids) * self.scale) @ self.b1
    return base + (first * (ops.take(self.a2, ids) @ self.b2)).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'LoHa':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    a, b = (*lead, inside, None), (*lead, None, outside)
    return LoHa(ops.axes(self.base, names), a, b, a, b, lead)  # type: ignore[arg-type]


@jax.checkpoint
def _through(
  x: jax.Array,
  base: jax.Array | None,
  a1: jax.Array,
  b1: jax.Array,
  a2: jax.Array,
  b2: jax.Array,
) -> jax.Array:
  """`x @ (W + (a1 b1) ∘ (a2 b2))`; no sum or product `[in, out]` is kept for the backward pass."""
  a1, b1, a2, b2 = (factor.astype(x.dtype) for factor in (a1, b1, a2, b2))
  delta = (a1 @ b1) * (a2 @ b2)
  return x @ (delta if base is None else base.astype(x.dtype) + delta)


def loha(
  key: Key,
  params: Params,
  rank: int = 8,
  alpha: float = 8.0,
  *,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  r"""Wraps the chosen weights and trains the four factors of an entrywise product.

  $A_2$ is zero, so the first forward pass is the base model's. $A_1$ is uniform in
  $\pm 1/\sqrt{in}$ and $B_1$, $B_2$ in $\pm 1/\sqrt{R}$, PEFT's start; the paper takes He's normal
  one for all four, which changes the function.

  Args:
    key: for the factors.
    params: the parameters of the base.
    rank: R; the update may have the rank R², for the parameters of a LoRA of rank 2 R.
    alpha: the product is scaled by `alpha / rank`.
    select: which weights, all matrices of the layers by default; a rule may set rank and alpha.
    also: regular expression over parameters to train as they are, beside the adapter; see `lora`.

  Raises:
    InputError: a rank that does not fit, an alpha that is not positive, nothing chosen.
  """

  def make(path: str, weight: Any, rank: int, alpha: float) -> LoHa:
    lead, inputs, outputs = matrix_sides(path, weight, 'loha')
    check_rank(rank, path, inputs, outputs, 'loha')
    check_alpha(alpha, 'loha')
    keys = jax.random.split(path_key(key, path), 3)

    return LoHa(
      base=weight,
      a1=uniform(keys[0], (*lead, inputs, rank), inputs),
      b1=uniform(keys[1], (*lead, rank, outputs), rank),
      a2=jnp.zeros((*lead, inputs, rank)),
      b2=uniform(keys[2], (*lead, rank, outputs), rank),
      scale=jnp.full(lead, alpha / rank, jnp.float32),
    )

  return wrap(params, select, 'loha', make, '[ab][12]', also, rank=rank, alpha=alpha)
