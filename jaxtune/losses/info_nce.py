"""Contrast of each text with its partner against all others of the batch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.losses.embedding import Embeddings, embedding_objective, retrieval, text
from jaxtune.losses.loss import Objective
from jaxtune.losses.options import check_positive
from jaxtune.typing import Batch


def info_nce(
  model: Any,
  pooling: str = 'mean',
  normalize: bool = True,
  temperature: float = 0.05,
  symmetric: bool = False,
  dimensions: Sequence[int] = (),
  dimension_weights: Sequence[float] = (),
) -> Objective:
  """`sum_b w_b info_nce_loss_b` in nats, weight `sum_b w_b`: anchors find their positives.

  The candidates of every anchor are the positives of the batch, and its `negative` texts where it
  has them: multiple-negatives ranking. No negative of a row is the same text as its positive, a
  positive of the same anchor, or a row of weight 0, which only fills a batch.

  **What a batch is.** The loss of a row depends on the others. Devices change nothing: a batch that
  is spread over them is contrasted as a whole. But micro-batches (`accumulate`) are contrasted
  apart, with fewer negatives, which is another and easier loss; more negatives need a larger
  micro-batch. The last rows of an evaluation likewise have fewer; what does not depend on the batch
  is measured on the whole split.

  Batch: `anchor`, `positive` and possibly `negative`, each with `tokens` int32 `[B, T]` and `mask`
  `[B, T]`; `weight` `[B]` if present.
  Metrics: `accuracy`, the rows whose positive is the first of the batch's candidates; of a whole
  split `recall_at_1`, `recall_at_5`, `recall_at_10` and `mrr`, where the positives of all rows are
  searched.

  Args:
    model: a `ModelSpec`; its head is not used.
    pooling: of hidden states, see `models.embed`; `interop.load_pooling` reads a folder's.
    normalize: whether texts are compared by the cosine, else by the product as it is.
    temperature: what similarities are divided by; sentence-transformers' `scale` is its inverse.
    symmetric: whether positives find their anchors too; the mean of both.
    dimensions: sizes to which embeddings can be cut, see `losses.matryoshka`; none by default.
    dimension_weights: one a size.

  Raises:
    InputError: an option that cannot be, or, when called, a batch without such parts.
  """
  check_positive('info_nce', temperature=temperature)

  def formula(
    embeddings: Embeddings, batch: Batch, weights: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    candidates = jnp.concatenate([x for name, x in embeddings.items() if name != 'anchor'])
    excluded = _excluded(batch, weights)
    nats = info_nce_loss(embeddings['anchor'], candidates, temperature, excluded, symmetric)
    scores = jnp.where(excluded, -jnp.inf, _products(embeddings['anchor'], candidates))
    first = jnp.diagonal(scores) >= scores.max(axis=1)
    return jnp.sum(weights * nats), {'accuracy': jnp.sum(weights * first)}

  return embedding_objective(
    model,
    formula,
    ('anchor', 'positive'),
    retrieval,
    pooling=pooling,
    normalize=normalize,
    dimensions=dimensions,
    dimension_weights=dimension_weights,
  )


def info_nce_loss(
  anchors: jax.Array,
  candidates: jax.Array,
  temperature: float,
  excluded: jax.Array | None = None,
  symmetric: bool = False,
) -> jax.Array:
  """`-log(exp(a_i c_i / t) / sum_j exp(a_i c_j / t))` of each anchor, nats, float32 `[B]`.

  InfoNCE: van den Oord et al. 2018, arXiv:1807.03748, equation 4; with the other rows' positives as
  negatives Henderson et al. 2017, arXiv:1705.00652, section 4.4.

  Args:
    anchors: `[B, D]`; normalize both sides for the cosine.
    candidates: `[N, D]`, of which the first B are the anchors' own, the positives.
    temperature: t.
    excluded: bool `[B, N]`, true where a candidate is no negative of an anchor.
    symmetric: the mean of this and of the same with the sides changed, where each positive has the
      anchors as candidates (CLIP, arXiv:2103.00020).
  """
  rows = anchors.shape[0]
  logits = _products(anchors, candidates) / temperature
  if excluded is not None:
    logits = jnp.where(excluded, -jnp.inf, logits)
  own = jnp.diagonal(logits)
  nats = jax.nn.logsumexp(logits, axis=1) - own
  if not symmetric:
    return nats
  return (nats + jax.nn.logsumexp(logits[:, :rows], axis=0) - own) / 2


def _products(anchors: jax.Array, candidates: jax.Array) -> jax.Array:
  # A temperature of 0.05 makes 0.1 of the 0.005 that accelerators lose in a product of their own.
  return jnp.matmul(anchors, candidates.T, precision='highest').astype(jnp.float32)


def _excluded(batch: Batch, weights: jax.Array) -> jax.Array:
  """Candidates that are no negatives, bool `[B, N]`; of no row its own positive."""
  rows = weights.shape[0]
  anchor, positive = text(batch['anchor']), text(batch['positive'])
  unreal = weights == 0
  excluded = _same(positive, positive) | _same(anchor, anchor)
  excluded |= unreal[None] | unreal[:, None]  # a symmetric loss has anchors as candidates, too
  excluded &= ~jnp.eye(rows, dtype=bool)
  if 'negative' in batch:
    own = _same(positive, text(batch['negative'])) | unreal[None]
    excluded = jnp.concatenate([excluded, own], axis=1)
  return excluded


def _same(a: jax.Array, b: jax.Array) -> jax.Array:
  """Which texts `[B, T]` of one side are one of the other, bool `[B, N]`."""
  length = max(a.shape[1], b.shape[1])
  a, b = (jnp.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=-1) for x in (a, b))
  return jnp.all(a[:, None] == b[None], axis=-1)
