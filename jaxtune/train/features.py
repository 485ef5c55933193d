"""A frozen body runs once for each text, and not in every step: training a head on its features."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import adapt, data, ops, shard, tree
from jaxtune.data.by_length import by_length
from jaxtune.data.encode import Example
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

# What a model does to its hidden states; `features` reads none of it.
_HEAD = r'^(head|pooler|projection)/'


def trains_head_alone(model: ModelSpec, params: Params) -> bool:
  """Whether features are all that training needs: nothing trains but the head of a classifier."""
  trained = tree.paths(adapt.trainable(params)[0])
  return _classifies_texts(model) and all(re.search(_HEAD, path) for path in trained)


def _classifies_texts(model: ModelSpec) -> bool:
  return model.family in ('encoder', 'decoder') and model.task in (
    'classification',
    'token_classification',
  )


def head_only(model: ModelSpec) -> ModelSpec:
  """The model whose tokens are features already, as `cache_features` makes them.

  `[B, 1, D]` for a classifier of texts, `[B, T, D]` for one of tokens. The parameters are the
  model's own, and so are the outputs.

  Raises:
    InputError: the model is no built-in classifier of texts or tokens.
  """
  if not _classifies_texts(model):
    raise InputError(
      f'features are cached for classifiers of texts, and this is a {model.family} for {model.task}'
    )

  def features(params: Params, tokens: jax.Array, mask: Any = None, **options: Any) -> jax.Array:
    del params, mask, options
    return tokens

  def head(params: Params, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    # The one vector of a text is pooled already, whatever the mask says of its tokens.
    return model.head(params, features, mask if model.task == 'token_classification' else None)

  return dataclasses.replace(model, features=features, head=head)


def cache_features(
  model: ModelSpec,
  params: Params,
  examples: Sequence[Example],
  batch_size: int,
  *,
  max_length: int,
  place: Callable[[Any], Any] = lambda batch: batch,
) -> np.ndarray:
  """The features of every example, without dropout.

  Texts go through the body by length, so that little of it is padding.

  Args:
    model: a built-in classifier.
    params: its parameters; any weight may be a weight leaf.
    examples: with `tokens`.
    batch_size: examples at a time.
    max_length: tokens of the longest.
    place: puts a batch on the devices.

  Returns:
    `[N, 1, D]`, pooled as the classifier does it, or `[N, max_length, D]` of a classifier of
    tokens, in the type that the body computes in.

  Raises:
    InputError: no examples.
  """
  each_token = model.task == 'token_classification'
  pooling = 'last' if model.family == 'decoder' else model.config.pooling

  @jax.jit
  def compute(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    features = model.features(params, tokens, mask)
    if each_token:
      return features
    before = features.shape[1] - tokens.shape[1]  # a prompt, which the classifier sees as well
    mask = jnp.pad(mask, ((0, 0), (before, 0)), constant_values=True)
    return ops.pool(features, mask, pooling)[:, None]

  table = None
  for places, batch in by_length(examples, batch_size, limit=max_length):
    placed = place({'tokens': batch['tokens'], 'mask': batch['mask']})
    computed = shard.gather(compute(params, placed['tokens'], placed['mask']))
    found = np.asarray(computed)[: len(places)]
    if table is None:
      length = max_length if each_token else 1
      table = np.zeros((len(examples), length, found.shape[-1]), found.dtype)
    table[places, : found.shape[1]] = found
  if table is None:
    raise InputError('there are no examples to cache features of')
  return table


class FeatureBatches:
  """The endless iterator of `feature_batches`; its place is that of the batches under it."""

  def __init__(self, batches: data.Batches, features: np.ndarray):
    self._batches = batches
    self._features = features

  def __iter__(self) -> 'FeatureBatches':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return _filled(next(self._batches), self._features)

  def get_state(self) -> dict[str, Any]:
    return self._batches.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self._batches.set_state(state)


def feature_batches(
  examples: Sequence[Example], features: np.ndarray, batch_size: int, **options: Any
) -> FeatureBatches:
  """`data.batches` of the same examples in the same order, with features in place of `tokens`.

  A saved place does not depend on the features, which other devices compute to other last bits.

  Args:
    examples: those that the features are of.
    features: from `cache_features`.
    batch_size: rows of a batch.
    **options: of `data.batches`.
  """
  return FeatureBatches(data.batches(_numbered(examples), batch_size, **options), features)


def feature_eval_batches(
  examples: Sequence[Example], features: np.ndarray, batch_size: int, **options: Any
) -> list[dict[str, np.ndarray]]:
  """`data.eval_batches` of the same examples, with features in place of `tokens`."""
  batches = data.eval_batches(_numbered(examples), batch_size, **options)
  return [_filled(batch, features) for batch in batches]


def _numbered(examples: Sequence[Example]) -> list[Example]:
  return [{**example, 'row': np.asarray(row, np.int32)} for row, example in enumerate(examples)]


def _filled(batch: dict[str, np.ndarray], features: np.ndarray) -> dict[str, np.ndarray]:
  rest = {name: value for name, value in batch.items() if name != 'row'}
  return rest | {'tokens': features[batch['row']]}
