"""LoKr: a frozen weight plus a Kronecker product of two small matrices.

KronA, Edalati et al. 2022, arXiv:2212.10650; with the second factor of low rank LyCORIS, Yeh et al.
2023, arXiv:2309.14859.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, LINEAR, Adapted, Select, matrix_sides, wrap
from jaxtune.adapt.lora import check_alpha, path_key
from jaxtune.adapt.lora_starts import uniform
from jaxtune.typing import InputError, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoKr:
  r"""The weight $W + s\,W_1 \otimes W_2$; each factor is held whole or as two thin ones.

  Row $(i, k)$ and column $(j, l)$ of the product hold $W_1[i, j]\,W_2[k, l]$, so that it is applied
  to activations `[in1, in2]` from both sides and never made.

  Attributes:
    base: `[..., in1 * in2, out1 * out2]`, an array or another weight leaf.
    scale: `[...]`, alpha / rank.
    w1: `[..., in1, out1]`, or None and
    w1_a, w1_b: `[..., in1, R]`, `[..., R, out1]`, its factors; None beside w1.
    w2: `[..., in2, out2]`, or None and
    w2_a, w2_b: `[..., in2, R]`, `[..., R, out2]`, its factors; None beside w2.
  """

  base: Any
  scale: jax.Array
  w1: jax.Array | None = None
  w1_a: jax.Array | None = None
  w1_b: jax.Array | None = None
  w2: jax.Array | None = None
  w2_a: jax.Array | None = None
  w2_b: jax.Array | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def left(self) -> jax.Array:
    """W1, `[..., in1, out1]`."""
    return self.w1_a @ self.w1_b if self.w1 is None else self.w1  # type: ignore[operator]

  def right(self) -> jax.Array:
    """W2, `[..., in2, out2]`."""
    return self.w2_a @ self.w2_b if self.w2 is None else self.w2  # type: ignore[operator]

  def materialize(self) -> jax.Array:
    base = ops.materialize(self.base)
    left = self.scale[..., None, None] * self.left()
    delta = jnp.einsum('...ij,...kl->...ikjl', left, self.right()).reshape(self.shape)
    return base + delta.astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    chain = (self.w2_a, self.w2_b) if self.w2 is None else (self.w2,)
    return ops.dot(x, self.base) + _through(x, self.left() * self.scale, chain)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    chain = (self.w2_b.T, self.w2_a.T) if self.w2 is None else (self.w2.T,)  # type: ignore[union-attr]
    return ops.dot_transposed(x, self.base) + _through(x, (self.left() * self.scale).T, chain)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    left, right = self.left() * self.scale, self.right()
    rows = left[ids // len(right)], right[ids % len(right)]
    return base + jnp.einsum('...j,...l->...jl', *rows).reshape(base.shape).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'LoKr':
    """Logical axes of the fields: small, so none but the leading ones are cut."""
    lead = names[:-2]
    own = {
      field.name: None if getattr(self, field.name) is None else (*lead, None, None)
      for field in dataclasses.fields(self)
      if field.name.startswith('w')
    }
    return LoKr(ops.axes(self.base, names), lead, **own)  # type: ignore[arg-type]


def _through(x: jax.Array, left: jax.Array, chain: Sequence[jax.Array | None]) -> jax.Array:
  """`x @ (W1 ⊗ W2)`, W2 the product of `chain`, with W1 applied where the activations are least.

  `[..., in1 * in2] -> [..., out1 * out2]`; a chain of two goes through `[in1, R]`, which makes the
  cost a row `R (in + in1 out1 + out)`, about that of a LoRA.
  """
  right = [factor.astype(x.dtype) for factor in chain if factor is not None]
  inside, outside = left.shape
  widths = [len(factor) for factor in right] + [right[-1].shape[1]]

  def cost(place: int) -> int:
    """Products a row when W1 comes before the factor of this number."""
    sides = [inside if n < place else outside for n in range(len(right))]
    others = sum(s * math.prod(f.shape) for s, f in zip(sides, right, strict=True))
    return others + inside * outside * widths[place]

  place = min(range(len(right) + 1), key=cost)
  # Rows [N * in1, in2]: matrices of two axes have no slow transposes in the backward pass.
  y = x.reshape(-1, widths[0])
  for factor in right[:place]:
    y = y @ factor
  y = jnp.einsum('nik,ij->njk', y.reshape(-1, inside, widths[place]), left.astype(x.dtype))
  y = y.reshape(-1, widths[place])
  for factor in right[place:]:
    y = y @ factor
  return y.reshape(*x.shape[:-1], outside * widths[-1])


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
  """The side of a matrix as a product of two: PEFT's rule, which its files rely on.

  `factor` and the rest where it divides the size; else the largest divisor that is neither above
  `factor` (-1 for no bound) nor above the square root, and the rest.
  """
  if factor > 0 and size % factor == 0:
    return factor, size // factor
  most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
  small = next((n for n in range(most, 0, -1) if size % n == 0), 1)
  return small, size // small


def lokr(
  key: Key,
  params: Params,
  rank: int = 8,
  alpha: float = 8.0,
  decompose_both: bool = False,
  decompose_factor: int = -1,
  *,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  r"""Wraps the chosen weights and trains the factors of a Kronecker product.

  $W_1$ is zero (its $B$, where it has two factors), so the first forward pass is the base model's;
  the others are uniform in $\pm 1/\sqrt{n}$ with n `in1`, `in2` or the rank, PEFT's start.

  Args:
    key: for the factors.
    params: the parameters of the base.
    rank: R of the thin factors. From half of `max(in2, out2)` on W2 is held whole.
    alpha: the product is scaled by `alpha / rank`, whether or not a factor is thin.
    decompose_both: W1 has thin factors too, if R is below half of `max(in1, out1)`.
    decompose_factor: the size of `in1` and `out1`, see `factorization`; -1 takes the divisor
      nearest the square root, which makes the fewest parameters.
    select: which weights, all matrices of the layers by default; a rule may set the options.
    also: regular expression over parameters to train as they are, beside the adapter; see `lora`.

  Raises:
    InputError: a rank or factor below 1, an alpha that is not positive, nothing chosen.
  """

  def make(
    path: str, weight: Any, rank: int, alpha: float, decompose_both: bool, decompose_factor: int
  ) -> LoKr:
    lead, inputs, outputs = matrix_sides(path, weight, 'lokr')
    check_alpha(alpha, 'lokr')
    if rank < 1:
      raise InputError(f'lokr: rank is {rank} for {path!r}; it must be at least 1')
    if decompose_factor < 1 and decompose_factor != -1:
      raise InputError(
        f'lokr: decompose_factor is {decompose_factor} for {path!r}; give a size of at least 1, or '
        '-1 for the divisor nearest the square root'
      )
    in1, in2 = factorization(inputs, decompose_factor)
    out1, out2 = factorization(outputs, decompose_factor)
    keys = jax.random.split(path_key(key, path), 3)

    fields: dict[str, jax.Array] = {}
    if decompose_both and rank < max(in1, out1) / 2:
      fields['w1_a'] = uniform(keys[0], (*lead, in1, rank), in1)
      fields['w1_b'] = jnp.zeros((*lead, rank, out1))
    else:
      fields['w1'] = jnp.zeros((*lead, in1, out1))
    if rank < max(in2, out2) / 2:
      fields['w2_a'] = uniform(keys[1], (*lead, in2, rank), in2)
      fields['w2_b'] = uniform(keys[2], (*lead, rank, out2), rank)
    else:
      fields['w2'] = uniform(keys[1], (*lead, in2, out2), in2)
    return LoKr(weight, jnp.full(lead, alpha / rank, jnp.float32), **fields)

  return wrap(
    params,
    select,
    'lokr',
    make,
    'w[12](_[ab])?',
    also,
    rank=rank,
    alpha=alpha,
    decompose_both=decompose_both,
    decompose_factor=decompose_factor,
  )
