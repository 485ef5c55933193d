"""Softmax cross-entropy over the tag of every tagged token."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtune.losses import metrics
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import measured
from jaxtune.losses.metrics import IGNORED
from jaxtune.losses.options import check_fraction
from jaxtune.ops import cross_entropy
from jaxtune.typing import Batch, Key, Params


def token_classification(
  model: Any, names: Sequence[str] | None = None, label_smoothing: float = 0.0
) -> Objective:
  """`sum over tagged t of -log softmax(outputs_t)[tag_t]` in nats; weight: their number.

  Batch: `tokens` int32 `[B, T]`, `tags` int32 `[B, T]`, -100 where nothing is learned; `mask` bool,
  `segments`, `positions` int32 `[B, T]` and `weight` `[B]` if present.
  Metrics: `accuracy`, the count of tagged tokens whose largest output is the tag's. Of a whole
  split, when `names` are BIO tags, `entity_precision`, `entity_recall` and `entity_f1`, see
  `losses.metrics.entity_f1`: of the tokens that have a tag, as a text's words in their order.

  Args:
    model: a `ModelSpec` whose outputs are `[B, T, C]`.
    names: of the tags, by their numbers.
    label_smoothing: see `ops.cross_entropy`.

  Raises:
    InputError: a smoothing that is no fraction.
  """
  check_fraction('token_classification', label_smoothing=label_smoothing)

  def apply(params: Params, batch: Batch, key: Key | None = None) -> jax.Array:
    packed = {name: batch[name] for name in ('positions', 'segments') if name in batch}
    return model.apply(params, batch['tokens'], batch.get('mask'), key=key, **packed)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    logits = apply(params, batch, key)
    weights = _tagged(batch) * row_weights(batch)[:, None]
    found = cross_entropy(
      logits.reshape(-1, logits.shape[-1]),
      jnp.maximum(batch['tags'], 0).reshape(-1),
      weights.reshape(-1),
      label_smoothing=label_smoothing,
    )
    return Loss(found.loss, weights.sum(), {'accuracy': found.correct})

  def outputs(params: Params, batch: Batch) -> dict[str, jax.Array]:
    tagged = _tagged(batch)
    return {
      'predicted': jnp.argmax(apply(params, batch), axis=-1),
      'tags': batch['tags'],
      'first': _first(tagged, batch.get('segments')),
      'weight': tagged * row_weights(batch)[:, None],
    }

  def measure(tokens: Mapping[str, np.ndarray]) -> dict[str, float]:
    assert names is not None
    named, borders = np.array(list(names), object), np.flatnonzero(tokens['first'])[1:]
    true, said = (np.split(named[tokens[side]], borders) for side in ('tags', 'predicted'))
    return metrics.entity_f1(true, said)

  if names is None or not metrics.is_bio(names):
    return objective
  return measured(objective, outputs, measure)


def _tagged(batch: Batch) -> jax.Array:
  """The tokens that have a tag, bool `[B, T]`; padding has none, whatever fills it."""
  tagged = batch['tags'] != IGNORED
  return tagged & batch['mask'] if 'mask' in batch else tagged


def _first(tagged: jax.Array, segments: jax.Array | None) -> jax.Array:
  """The first tagged token of each row, and of each document in it, bool `[B, T]`."""
  places = jnp.where(tagged, jnp.arange(tagged.shape[1])[None], -1)
  before = jnp.pad(lax.cummax(places, axis=1), ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  first = before < 0
  if segments is not None:
    first = first | (jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1) != segments)
  return tagged & first
