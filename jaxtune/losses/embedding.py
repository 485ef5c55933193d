"""What objectives on embeddings share: one forward of all texts, truncation, retrieval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops
from jaxtune.losses import metrics
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import Measure, measured
from jaxtune.typing import Batch, InputError, Key, Params

PARTS = ('anchor', 'positive', 'negative')

Embeddings = Mapping[str, jax.Array]  # by part, float32 [B, D]
# (embeddings, batch, weight of the rows [B]) -> total and metrics, weighted sums over the rows.
Formula = Callable[[Embeddings, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def embed_parts(
  model: Any,
  params: Params,
  batch: Batch,
  pooling: str = 'mean',
  normalize: bool = True,
  key: Key | None = None,
) -> dict[str, jax.Array]:
  """The embeddings of the parts of a batch, `models.embed` of each: float32 `[B, D]`.

  One forward takes all of them; the texts of a row lie side by side, so that rows which are spread
  over devices stay where they are.

  Args:
    model: a `ModelSpec`; its head is not used.
    params: its parameters.
    batch: `anchor`, and what else it has of `PARTS`, each with `tokens` int32 `[B, T]`, and `mask`
      `[B, T]` if present.
    pooling: 'mean' of the real tokens, the 'first' token, or the 'last' real one.
    normalize: whether to divide by the Euclidean norm.
    key: switches dropout on, another for every part.
  """
  names = [name for name in PARTS if name in batch]
  length = max(batch[name]['tokens'].shape[1] for name in names)
  tokens, masks = [], []
  for name in names:
    part = batch[name]
    short = ((0, 0), (0, length - part['tokens'].shape[1]))
    tokens.append(jnp.pad(part['tokens'], short))
    masks.append(jnp.pad(part.get('mask', jnp.ones(part['tokens'].shape, bool)), short))

  def together(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(parts, axis=1).reshape(-1, length)

  mask = together(masks)
  features = model.features(params, together(tokens), mask, key=key)[:, -length:]
  pooled = ops.pool(features, mask, pooling).astype(jnp.float32)
  pooled = ops.normalize(pooled) if normalize else pooled
  pooled = pooled.reshape(-1, len(names), pooled.shape[-1])
  return {name: pooled[:, i] for i, name in enumerate(names)}


def embedding_objective(
  model: Any,
  formula: Formula,
  parts: Sequence[str],
  measure: Measure,
  *,
  pooling: str,
  normalize: bool,
  dimensions: Sequence[int] = (),
  dimension_weights: Sequence[float] = (),
) -> Objective:
  """An objective of a formula over embeddings, measured on the embeddings of whole splits.

  Args:
    model: a `ModelSpec`.
    formula: of the loss.
    parts: that a batch must have; what it has beside them is embedded as well.
    measure: on `anchor` and `positive` `[N, D]`, and `label` `[N]` or `text` `[N, T]`, the tokens
      of the positive with -1 for padding.
    pooling, normalize: see `embed_parts`.
    dimensions, dimension_weights: of `matryoshka`; none for the whole embedding alone.
  """
  if pooling not in ops.POOLINGS:
    raise InputError(f'pooling is {pooling!r}; known: {", ".join(ops.POOLINGS)}')
  if dimensions:
    formula = matryoshka(formula, dimensions, dimension_weights)
  elif dimension_weights:
    raise InputError('dimension_weights without dimensions; set both or neither')

  def embed(params: Params, batch: Batch, key: Key | None) -> dict[str, jax.Array]:
    for name in parts:
      if name not in batch:
        raise InputError(f'the batch has no {name!r}; this objective needs {", ".join(parts)}')
    return embed_parts(model, params, batch, pooling, normalize, key)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    weights = row_weights(batch)
    total, sums = formula(embed(params, batch, key), batch, weights)
    return Loss(total, weights.sum(), sums)

  def outputs(params: Params, batch: Batch) -> dict[str, jax.Array]:
    # All parts as in the objective, so that their forward is one.
    found = embed(params, batch, None)
    said = {name: found[name] for name in ('anchor', 'positive')}
    extra = {'label': batch['label']} if 'label' in parts else {'text': text(batch['positive'])}
    return {**said, **extra, 'weight': row_weights(batch)}

  return measured(objective, outputs, _at_each(measure, dimensions))


def text(part: Batch) -> jax.Array:
  """The tokens of a part with -1 for padding, int32 `[B, T]`: equal rows are equal texts."""
  return jnp.where(part['mask'], part['tokens'], -1) if 'mask' in part else part['tokens']


def matryoshka(
  formula: Formula, dimensions: Sequence[int], weights: Sequence[float] = ()
) -> Formula:
  """`sum_d c_d formula(first d entries of the embeddings, normalized again)`.

  Matryoshka representations, Kusupati et al. 2022, arXiv:2205.13147, equation 1: the beginning of
  an embedding is one too, so that it can be cut to the size that an index has room for. Metrics are
  those of the most dimensions. The sum, and not the mean, is that of the paper and of
  sentence-transformers.

  Args:
    formula: of the loss.
    dimensions: of the embeddings; the whole width should be one of them.
    weights: one each, c_d; 1 by default.

  Raises:
    InputError: no dimensions, one below 1 or (when called) beyond the width, or not as many
      weights.
  """
  sizes = [int(size) for size in dimensions]
  factors = [float(weight) for weight in weights] or [1.0] * len(sizes)
  if not sizes or min(sizes) < 1:
    raise InputError(f'dimensions are {sizes}; each must be at least 1, and there must be one')
  if len(factors) != len(sizes):
    raise InputError(f'{len(factors)} dimension_weights for {len(sizes)} dimensions; give one each')

  def summed(
    embeddings: Embeddings, batch: Batch, rows: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    width = next(iter(embeddings.values())).shape[-1]
    if max(sizes) > width:
      raise InputError(f'dimensions are {sizes}, but embeddings have {width}; take at most that')
    total, kept = jnp.zeros(()), dict[str, jax.Array]()
    for size, factor in sorted(zip(sizes, factors, strict=True)):
      short = {name: ops.normalize(x[:, :size]) for name, x in embeddings.items()}
      part, kept = formula(short, batch, rows)
      total += factor * part
    return total, kept

  return summed


def _at_each(measure: Measure, dimensions: Sequence[int]) -> Measure:
  """What is measured on the whole embeddings, and on each that is cut, as `recall_at_1_64`."""

  def measure_all(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    width = found['anchor'].shape[1]
    said = measure(found)
    for size in dimensions:
      if size < width:
        short = {name: found[name][:, :size] for name in ('anchor', 'positive')}
        said |= {f'{name}_{size}': value for name, value in measure({**found, **short}).items()}
    return said

  return measure_all


def retrieval(found: Mapping[str, np.ndarray]) -> dict[str, float]:
  """`recall_at_1`, `_5`, `_10` and `mrr` (mean reciprocal rank) of each row's own positive.

  Searched are the positives of all rows, by the cosine; the same text counts once.

  Args:
    found: `anchor` and `positive` `[N, D]`, `text` `[N, T]`.
  """
  _, first, own = np.unique(found['text'], axis=0, return_index=True, return_inverse=True)
  anchors, documents = unit(found['anchor']), unit(found['positive'][first])
  ranks = metrics.ranks(anchors, documents, own.reshape(-1))
  recalls = {f'recall_at_{k}': float(np.mean(ranks <= k)) for k in (1, 5, 10)}
  return {**recalls, 'mrr': float(np.mean(1 / ranks))}


def correlation(found: Mapping[str, np.ndarray]) -> dict[str, float]:
  """`pearson` and `spearman` of the cosines of anchor and positive `[N, D]` with `label` `[N]`."""
  cosines = np.sum(unit(found['anchor']) * unit(found['positive']), axis=1)
  return {
    'pearson': metrics.pearson(found['label'], cosines),
    'spearman': metrics.spearman(found['label'], cosines),
  }


def unit(x: np.ndarray) -> np.ndarray:
  """Rows of length one, in float64."""
  x = np.asarray(x, np.float64)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
