"""One factor for the rows of a matrix and one for its columns: what SOAP, Shampoo and PSGD share.

Leaves are `[..., rows, columns]`; leading axes are a batch of matrices (the layers of a stack).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtune.optim.matrix_shape import require_matrices

# Accelerators would round the factors of a float32 product to 8 or 11 bits: too few for a basis.
matmul = functools.partial(jnp.matmul, precision='highest')


class Sides(NamedTuple):
  """What belongs to the rows and what to the columns of a matrix; None where a side has none."""

  rows: Any
  columns: Any


def each_side(make: Callable[[jax.Array, int], Any], params: Any) -> Any:
  """A tree of `Sides`: `make(leaf, n)` for the n rows and for the n columns of each leaf.

  Raises:
    InputError: a leaf with fewer than two axes.
  """
  require_matrices(params)
  return jax.tree.map(lambda x: Sides(make(x, x.shape[-2]), make(x, x.shape[-1])), params)


def identity(x: jax.Array, n: int) -> jax.Array:
  """`[..., n, n]` unit matrices, one for each matrix in the leaf."""
  return jnp.broadcast_to(jnp.eye(n, dtype=x.dtype), (*x.shape[:-2], n, n))


def grams(x: jax.Array, sides: Sides) -> Sides:
  r"""$X X^\top$ and $X^\top X$ for those sides that are not None."""
  return Sides(
    None if sides.rows is None else matmul(x, x.mT),
    None if sides.columns is None else matmul(x.mT, x),
  )


def multiply(x: jax.Array, sides: Sides) -> jax.Array:
  r"""$A X B^\top$ for the sides $(A, B)$; a side that is None is the unit matrix."""
  if sides.rows is not None:
    x = matmul(sides.rows, x)
  return x if sides.columns is None else matmul(x, sides.columns.mT)


def where_seen(x: jax.Array, factors: Sides) -> jax.Array:
  """Zero in rows and columns that no gradient has reached: sums of squares tell, not rounding.

  Decompositions mix the zeros of padding with rounding errors, which a rule that divides by their
  own size would turn into whole steps.
  """
  if factors.rows is not None:
    x = jnp.where(jnp.diagonal(factors.rows, 0, -2, -1)[..., :, None] > 0, x, 0)
  if factors.columns is not None:
    x = jnp.where(jnp.diagonal(factors.columns, 0, -2, -1)[..., None, :] > 0, x, 0)
  return x
