"""Trained rows of an embedding: a few tokens learn, the others stay as they are."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, Adapted, Select, wrap
from jaxtune.typing import InputError, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainableTokens:
  """The embedding `E` with rows of its own for some tokens: `E'[ids[n]] = rows[n]`.

  The rows are absolute, as in PEFT, not a difference: whatever the base has there does not matter.
  The table is never copied. A look-up takes both and chooses, for which it searches `ids` (log N
  steps a token, against N comparisons, or a table of V numbers that is filled anew each step); of a
  tied head the N logits are written over those of the base.

  Attributes:
    base: `[V, D]`, an array or another weight leaf.
    rows: `[N, D]`.
    ids: int32 `[N]`, ascending; frozen.
  """

  base: Any
  rows: jax.Array
  ids: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    base = jnp.asarray(ops.materialize(self.base))
    return base.at[self.ids].set(self.rows.astype(base.dtype))

  def dot(self, x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    own = x[..., self.ids] @ self.rows.astype(x.dtype)
    return ops.dot(x.at[..., self.ids].set(0), self.base) + own

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    own = ops.dot_transposed(x, self.rows)
    base = ops.dot_transposed(x, self.base)
    return base.at[..., self.ids].set(own, indices_are_sorted=True, unique_indices=True)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    place = jnp.minimum(jnp.searchsorted(self.ids, ids), self.ids.shape[0] - 1)
    own = jnp.asarray(self.ids)[place] == ids
    return jnp.where(own[..., None], ops.take(self.rows, place).astype(base.dtype), base)

  def axes(self, names: tuple[str | None, ...]) -> 'TrainableTokens':
    """Logical axes of the fields; the rows are few and not cut."""
    return TrainableTokens(ops.axes(self.base, names), (None, names[-1]), (None,))  # type: ignore[arg-type]


def check_tokens(tokens: Sequence[int], vocabulary: int, where: str) -> np.ndarray:
  """The ids as int32.

  Raises:
    InputError: none, one that is no whole number or has no row, or one twice.
  """
  try:
    ids = np.array([operator.index(token) for token in tokens], np.int64)
  except TypeError:
    raise InputError(f'{where}: tokens is {tokens!r}; give a list of token ids') from None
  if not ids.size:
    raise InputError(f'{where}: tokens is empty; give the ids of the tokens to train')
  outside = ids[(ids < 0) | (ids >= vocabulary)]
  if outside.size:
    raise InputError(
      f'{where}: token {outside[0]} has no row among the {vocabulary}; add rows with models.resize'
    )
  values, counts = np.unique(ids, return_counts=True)
  if values.size < ids.size:
    raise InputError(f'{where}: token {values[counts > 1][0]} is given twice; name it once')
  return ids.astype(np.int32)


def trainable_tokens(
  key: Key,
  params: Params,
  tokens: Sequence[int],
  *,
  select: Select = r'^embed/tokens$',
  also: str | None = HEAD,
) -> Adapted:
  """Trains the embeddings of some tokens: N x D parameters where the table has V x D.

  They start as they are, so the first forward pass is the base model's. Where the head is the
  embedding, transposed, their logits are of the trained rows too; an untied head is another matrix,
  which `also` trains whole. For tokens that the model does not have call `models.resize` first. It
  goes along with any other method: apply one to the result of the other.

  PEFT's TrainableTokens does the same (it writes the rows into a copy of the table in each step).

  Args:
    key: unused.
    params: the parameters of the base.
    tokens: ids of the tokens, in any order.
    select: which embeddings; that of the tokens by default.
    also: regular expression over parameters to train as they are: by default a fresh head. None for
      nothing, as for a language model whose untied head is pretrained and knows the tokens.

  Raises:
    InputError: an id without a row or given twice, or a parameter that is no `[V, D]` table.
  """
  del key

  def make(path: str, weight: Any, tokens: Sequence[int]) -> TrainableTokens:
    if len(weight.shape) != 2:
      raise InputError(
        f'trainable_tokens needs a table [V, D], and {path!r} has the shape '
        f'{tuple(weight.shape)}; narrow what it selects'
      )
    ids = jnp.asarray(np.sort(check_tokens(tokens, weight.shape[0], f'trainable_tokens: {path}')))
    return TrainableTokens(weight, ops.take(weight, ids).astype(jnp.float32), ids)

  return wrap(params, select, 'trainable_tokens', make, 'rows', also, tokens=tokens)
