"""Triplets: a text is to be nearer to one than to another, by a margin."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.losses.embedding import Embeddings, embedding_objective, retrieval
from jaxtune.losses.loss import Objective
from jaxtune.typing import Batch, InputError

DISTANCES = ('cosine', 'euclidean')


def triplet(
  model: Any,
  pooling: str = 'mean',
  normalize: bool = True,
  distance: str = 'cosine',
  margin: float = 0.2,
  dimensions: Sequence[int] = (),
  dimension_weights: Sequence[float] = (),
) -> Objective:
  """`sum_b w_b triplet_loss_b`, weight `sum_b w_b`; no row depends on another.

  Batch: `anchor`, `positive` and `negative`, each with `tokens` int32 `[B, T]` and `mask`
  `[B, T]`; `weight` `[B]` if present.
  Metrics: `accuracy`, the rows whose positive is the nearer; of a whole split `recall_at_1`,
  `recall_at_5`, `recall_at_10` and `mrr`, as of `info_nce`.

  Args:
    model: a `ModelSpec`; its head is not used.
    pooling, normalize, dimensions, dimension_weights: as of `info_nce`.
    distance: see `triplet_loss`.
    margin: by which the negative is to be further away. sentence-transformers has 5 by default, for
      Euclidean distances of embeddings that are not normalized.

  Raises:
    InputError: an option that cannot be, or, when called, a batch without such parts.
  """
  if distance not in DISTANCES:
    raise InputError(f'triplet: distance is {distance!r}; known: {", ".join(DISTANCES)}')

  def formula(
    embeddings: Embeddings, batch: Batch, weights: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    anchor, positive, negative = (embeddings[name] for name in ('anchor', 'positive', 'negative'))
    loss = triplet_loss(anchor, positive, negative, distance, margin)
    nearer = _distance(anchor, positive, distance) < _distance(anchor, negative, distance)
    return jnp.sum(weights * loss), {'accuracy': jnp.sum(weights * nearer)}

  return embedding_objective(
    model,
    formula,
    ('anchor', 'positive', 'negative'),
    retrieval,
    pooling=pooling,
    normalize=normalize,
    dimensions=dimensions,
    dimension_weights=dimension_weights,
  )


def triplet_loss(
  anchors: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  distance: str = 'cosine',
  margin: float = 0.2,
) -> jax.Array:
  """`max(0, d(a, p) - d(a, n) + margin)` of each row, float32 `[B]`.

  Schroff et al. 2015, arXiv:1503.03832, equation 3, where d is the squared Euclidean distance on
  the sphere: twice the cosine distance.

  Args:
    anchors, positives, negatives: `[B, D]`.
    distance: 'cosine', `1 - cos`, or 'euclidean', `|x - y|`.
    margin: in units of the distance.
  """
  near, far = (_distance(anchors, other, distance) for other in (positives, negatives))
  return jax.nn.relu(near - far + margin)


def _distance(x: jax.Array, y: jax.Array, distance: str) -> jax.Array:
  if distance == 'cosine':
    return 1.0 - jnp.sum(ops.normalize(x) * ops.normalize(y), axis=-1)
  squared = jnp.sum(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)), axis=-1)
  # At zero the square root has no gradient, which would be NaN for the whole batch.
  return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
