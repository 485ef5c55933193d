"""What an objective returns: sums and weights, never means, so that accumulation is exact."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtune.typing import Batch, Key, Params


class Loss(NamedTuple):
  """The mean over any set of batches is the sum of `total` over the sum of `weight`.

  Attributes:
    total: weighted sum of the loss over rows or tokens, float32.
    weight: the sum of the weights, float32: rows, or supervised tokens.
    metrics: further weighted sums under the same weight (`correct`, ...).
  """

  total: jax.Array
  weight: jax.Array
  metrics: dict[str, jax.Array]


# An objective in evaluation gets no key, so that dropout is off.
Objective = Callable[[Params, Batch, Key | None], Loss]


def row_weights(batch: Batch) -> jax.Array:
  """The batch's `weight`, `[B]` float32; ones where it has none."""
  weight = batch.get('weight')
  if weight is not None:
    return weight.astype(jnp.float32)
  rows = len(jax.tree.leaves(dict(batch))[0])  # the first axis of every array in it
  return jnp.ones((rows,), jnp.float32)
