"""Cross-entropy in nats, whole or in chunks that never hold all logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class CrossEntropy(NamedTuple):
  """Weighted sums over the rows; divide by the sum of the weights for means.

  Attributes:
    nats: of `-log p(target)`.
    correct: of the rows whose target has the largest logit.
    loss: of what is minimized: the nats unless an option changes it.
  """

  nats: jax.Array
  correct: jax.Array
  loss: jax.Array


def cross_entropy(
  logits: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  dft: bool = False,
) -> CrossEntropy:
  """`sum_n w_n (log Z_n - logits_n[target_n])` with `log Z = logsumexp(logits)`, in float32.

  The options change `loss` alone, of each row, in this order:

  - label smoothing: `(1 - e) (-log p[target]) + e/V sum_v (-log p[v])` (Szegedy et al. 2015,
    arXiv:1512.00567, section 7), as torch has it;
  - DFT: times p[target], which is not differentiated (Wu et al. 2025, arXiv:2508.05629, eq. 8):
    tokens that the model finds improbable no longer have the largest gradients;
  - z-loss: plus `z_loss (log Z)^2`, which holds logits near zero (PaLM, arXiv:2204.02311,
    section 5, with 1e-4).

  Args:
    logits: `[N, V]`.
    targets: `[N]` int.
    weights: `[N]`.
    label_smoothing: e, from 0 to below 1.
    z_loss: factor of `(log Z)^2`.
    dft: whether each row is weighted by its probability.
  """
  logits = logits.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nats = log_z - picked
  loss = nats
  if label_smoothing:
    loss = loss + label_smoothing * (picked - jnp.mean(logits, axis=-1))
  if dft:
    loss = loss * lax.stop_gradient(jnp.exp(-nats))
  if z_loss:
    loss = loss + z_loss * log_z * log_z
  # Not argmax, which XLA reduces slowly. A tie counts as its share: all-equal logits get 1/V.
  largest = jnp.max(logits, axis=-1)
  correct = (picked >= largest) / jnp.sum(logits >= largest[:, None], axis=-1)
  return CrossEntropy(jnp.sum(nats * weights), jnp.sum(correct * weights), jnp.sum(loss * weights))


def chunked_cross_entropy(
  features: jax.Array,
  head: Callable[[jax.Array], jax.Array],
  targets: jax.Array,
  weights: jax.Array,
  chunk: int,
  **options: Any,
) -> CrossEntropy:
  """`cross_entropy(head(features), ...)` with at most `[chunk, V]` logits alive at a time.

  The backward pass computes each chunk's logits again instead of keeping them. A chunk without any
  weight, as of padding, costs nothing.

  Args:
    features: `[N, D]`.
    head: `[n, D] -> [n, V]`.
    targets: `[N]` int.
    weights: `[N]`.
    chunk: rows at a time; the last chunk is padded with rows of weight zero.
    **options: of `cross_entropy`.
  """
  rows = features.shape[0]
  if rows <= chunk:
    return cross_entropy(head(features), targets, weights, **options)
  chunks = -(-rows // chunk)
  fill = chunks * chunk - rows

  def cut(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, chunk, *x.shape[1:])

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(total: CrossEntropy, xs: tuple[jax.Array, ...]) -> tuple[CrossEntropy, None]:
    def add(total: CrossEntropy) -> CrossEntropy:
      part = cross_entropy(head(xs[0]), xs[1], xs[2], **options)
      return jax.tree.map(jnp.add, total, part)

    return lax.cond(jnp.any(xs[2] != 0), add, lambda total: total, total), None

  zero = CrossEntropy(*[jnp.zeros((), jnp.float32)] * 3)
  return lax.scan(one, zero, (cut(features), cut(targets), cut(weights)))[0]
