"""The names that every floor of the house shares: types, shape letters, the weight protocol.

Shape letters, used in comments and docstrings:

  B batch   T tokens   D model width   H query heads   G key-value heads   K head width
  F hidden width of the MLP   V vocabulary   L layers   R adapter rank   C classes or outputs
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Params = Any  # a nested dict whose leaves are arrays or weight leaves
Batch = Mapping[str, Any]  # arrays by name; what is no array is a part, a batch in the batch
Metrics = Mapping[str, jax.Array]
Key = jax.Array  # a typed PRNG key


class InputError(ValueError):
  """Something that the user can mend: one line with the place, the value and the remedy."""


class Weight(Protocol):
  """A leaf that stands for one matrix `[in, out]` and knows how to multiply with it.

  Its first field has the weight's own shape (packed codes aside), and every field, a scalar scale
  included, carries the weight's leading axes, so that stacks of layers scan and lanes vmap over it
  as over an array.
  """

  @property
  def shape(self) -> tuple[int, ...]: ...

  def materialize(self) -> jax.Array:
    """The dense matrix, `[..., in, out]`."""

  def dot(self, x: jax.Array) -> jax.Array:
    """`x @ W`, `[..., in] -> [..., out]`."""

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    """`x @ W^T`, `[..., out] -> [..., in]`."""

  def take(self, ids: jax.Array) -> jax.Array:
    """Rows `W[ids]`, `[...] -> [..., out]`."""


def is_weight(x: Any) -> bool:
  """Whether `x` is a weight leaf (not a plain array)."""
  return hasattr(type(x), 'materialize')
