"""Scored pairs: the cosine of two texts is to be, or to be ordered as, a number."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.losses.embedding import Embeddings, correlation, embedding_objective
from jaxtune.losses.loss import Objective
from jaxtune.losses.options import check_positive
from jaxtune.typing import Batch


def cosine_similarity(
  model: Any,
  pooling: str = 'mean',
  dimensions: Sequence[int] = (),
  dimension_weights: Sequence[float] = (),
) -> Objective:
  """`sum_b w_b (cos(anchor_b, positive_b) - label_b)^2`, weight `sum_b w_b`.

  Reimers & Gurevych 2019, arXiv:1908.10084, section 3 (regression). Labels are cosines: scale
  scores of 0 to 5 to 0 to 1 first.

  Batch: `anchor` and `positive`, each with `tokens` int32 `[B, T]` and `mask` `[B, T]`; `label`
  float32 `[B]`; `weight` `[B]` if present.
  Metrics: `absolute_error`, the weighted sum of `|cos - label|`; of a whole split `pearson` and
  `spearman` of cosines and labels.

  Args:
    model: a `ModelSpec`; its head is not used.
    pooling, dimensions, dimension_weights: as of `info_nce`.

  Raises:
    InputError: an option that cannot be, or, when called, a batch without such parts.
  """

  def formula(
    embeddings: Embeddings, batch: Batch, weights: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    error = cosines(embeddings['anchor'], embeddings['positive']) - batch['label']
    metrics = {'absolute_error': jnp.sum(weights * jnp.abs(error))}
    return jnp.sum(weights * error * error), metrics

  return _scored(model, formula, pooling, dimensions, dimension_weights)


def cosent(
  model: Any,
  pooling: str = 'mean',
  temperature: float = 0.05,
  dimensions: Sequence[int] = (),
  dimension_weights: Sequence[float] = (),
) -> Objective:
  """`(sum_b w_b) cosent_loss` in nats, weight `sum_b w_b`: pairs in the order of their labels.

  Only the order of labels counts, so any scale will do. The loss compares the rows of a batch: what
  `info_nce` says of batches holds here too. Rows of weight 0 are not compared.

  Batch: as of `cosine_similarity`. Metrics: of a whole split `pearson` and `spearman`.

  Args:
    model: a `ModelSpec`; its head is not used.
    pooling, dimensions, dimension_weights: as of `info_nce`.
    temperature: what cosines are divided by.

  Raises:
    InputError: an option that cannot be, or, when called, a batch without such parts.
  """
  check_positive('cosent', temperature=temperature)

  def formula(
    embeddings: Embeddings, batch: Batch, weights: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    similarity = cosines(embeddings['anchor'], embeddings['positive'])
    return weights.sum() * cosent_loss(similarity, batch['label'], temperature, weights > 0), {}

  return _scored(model, formula, pooling, dimensions, dimension_weights)


def cosines(x: jax.Array, y: jax.Array) -> jax.Array:
  """Of each row `[B, D]` of both, float32 `[B]`."""
  return jnp.sum(ops.normalize(x) * ops.normalize(y), axis=-1)


def cosent_loss(
  similarity: jax.Array, labels: jax.Array, temperature: float, real: jax.Array | None = None
) -> jax.Array:
  """`log(1 + sum over label_i > label_j of exp((s_j - s_i) / t))` in nats, a float32 scalar.

  Su 2022 (CoSENT), as sentence-transformers' `CoSENTLoss`, whose `scale` is 1 / t.

  Args:
    similarity: s `[B]`.
    labels: `[B]`.
    temperature: t.
    real: bool `[B]`, the rows that are compared; all by default.
  """
  scores = similarity.astype(jnp.float32) / temperature
  compared = labels[:, None] > labels[None]
  if real is not None:
    compared &= real[:, None] & real[None]
  wrong = jnp.where(compared, scores[None] - scores[:, None], -jnp.inf)
  return jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), wrong.reshape(-1)]))


def _scored(
  model: Any,
  formula: Any,
  pooling: str,
  dimensions: Sequence[int],
  dimension_weights: Sequence[float],
) -> Objective:
  return embedding_objective(
    model,
    formula,
    ('anchor', 'positive', 'label'),
    correlation,
    pooling=pooling,
    normalize=False,  # cosines are
    dimensions=dimensions,
    dimension_weights=dimension_weights,
  )
