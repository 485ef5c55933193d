"""Cross-entropy in nats, whole or in chunks that never hold all logits."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class CrossEntropy(NamedTuple):
  """Weighted sums over the rows; divide by the sum of the weights for means."""

  nats: jax.Array
  correct: jax.Array


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> CrossEntropy:
  """`sum_n w_n (logsumexp(logits_n) - logits_n[target_n])`, in float32.

  Args:
    logits: `[N, V]`.
    targets: `[N]` int.
    weights: `[N]`.
  """
  logits = logits.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  nats = jax.nn.logsumexp(logits, axis=-1) - picked
  # Not argmax, which XLA reduces slowly. A tie counts as its share: all-equal logits get 1/V.
  largest = jnp.max(logits, axis=-1)
  correct = (picked >= largest) / jnp.sum(logits >= largest[:, None], axis=-1)
  return CrossEntropy(jnp.sum(nats * weights), jnp.sum(correct * weights))


def chunked_cross_entropy(
  features: jax.Array,
  head: Callable[[jax.Array], jax.Array],
  targets: jax.Array,
  weights: jax.Array,
  chunk: int,
) -> CrossEntropy:
  """`cross_entropy(head(features), ...)` with at most `[chunk, V]` logits alive at a time.

  The backward pass computes each chunk's logits again instead of keeping them.

  Args:
    features: `[N, D]`.
    head: `[n, D] -> [n, V]`.
    targets: `[N]` int.
    weights: `[N]`.
    chunk: rows at a time; the last chunk is padded with rows of weight zero.
  """
  rows = features.shape[0]
  if rows <= chunk:
    return cross_entropy(head(features), targets, weights)
  chunks = -(-rows // chunk)
  fill = chunks * chunk - rows

  def cut(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, chunk, *x.shape[1:])

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(total: CrossEntropy, xs: tuple[jax.Array, ...]) -> tuple[CrossEntropy, None]:
    part = cross_entropy(head(xs[0]), xs[1], xs[2])
    return CrossEntropy(total.nats + part.nats, total.correct + part.correct), None

  zero = CrossEntropy(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
  return lax.scan(one, zero, (cut(features), cut(targets), cut(weights)))[0]
