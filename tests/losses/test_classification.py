"""Classification of texts and tokens, and regression: weighted sums beside float64."""

import functools

import jax
import numpy as np
import pytest

from jaxtune import losses, models
from jaxtune.losses.loss import row_weights
from jaxtune.typing import InputError

RNG = np.random.default_rng(0)
B, T, C = 6, 5, 3
TOKENS = RNG.integers(0, 20, (B, T)).astype(np.int32)
MASK = np.arange(T)[None] < RNG.integers(1, T + 1, (B, 1))
WEIGHT = np.array([1, 1, 0.5, 1, 1, 0], np.float32)
NUMBERS = {'label': RNG.normal(size=B).astype(np.float32)}
BATCHES = {
  'classification': {'label': RNG.integers(0, C, B).astype(np.int32)},
  'multi_label': {'label': np.float32(RNG.random((B, C)) < 0.5)},
  'token_classification': {'tags': RNG.choice([-100, 0, 1, 2], (B, T)).astype(np.int32)},
  'mean_squared_error': NUMBERS,
  'huber': NUMBERS,
}
OPTIONS = {
  'classification': {'label_smoothing': 0.1, 'class_weights': (1, 2, 0.5)},
  'token_classification': {'label_smoothing': 0.1},
  'huber': {'delta': 0.4},
}


@functools.cache
def built(name):
  """The model, random parameters, and (loss, gradient) of a batch, compiled."""
  model = models.encoder(
    models.EncoderConfig(
      vocabulary=20,
      width=8,
      hidden=12,
      layers=1,
      heads=2,
      positions=8,
      activation='relu',
      outputs=1 if BATCHES[name] is NUMBERS else C,
      each_token=name == 'token_classification',
    )
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), model.shapes())
  objective = getattr(losses, name)(model, **OPTIONS.get(name, {}))

  def total(params, batch):
    loss = objective(params, batch)
    return loss.total, loss

  return model, params, jax.jit(jax.grad(total, has_aux=True))


def batch_of(name):
  return {'tokens': TOKENS, 'mask': MASK, 'weight': WEIGHT, **BATCHES[name]}


names = pytest.mark.parametrize('name', BATCHES)


def oracle(name, outputs, batch):
  """`(sums of loss, weight, metric)` in float64."""
  label = batch.get('label')
  if name in ('classification', 'token_classification'):
    weights = np.float64(WEIGHT)
    own = np.array(OPTIONS[name].get('class_weights', np.ones(C)))
    if name == 'token_classification':
      known = MASK & (batch['tags'] >= 0)
      outputs, label = outputs[known], batch['tags'][known]
      weights = np.broadcast_to(weights[:, None], known.shape)[known]
    log_p = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    q = 0.9 * np.eye(C)[label] + 0.1 / C
    hits = outputs.argmax(1) == label
    return weights @ -(q * log_p @ own), weights @ own[label], (weights * own[label]) @ hits
  if name == 'multi_label':
    p = 1 / (1 + np.exp(-outputs))
    rows = -np.where(label > 0, np.log(p), np.log(1 - p)).mean(1)
    return WEIGHT @ rows, WEIGHT.sum(), WEIGHT @ ((outputs > 0) == (label > 0)).all(1)
  size = np.abs(outputs[:, 0] - label)
  rows = size**2 if name == 'mean_squared_error' else np.where(
    size < 0.4, size**2 / 2, 0.4 * (size - 0.2))  # fmt: skip
  return WEIGHT @ rows, WEIGHT.sum(), WEIGHT @ size


@names
def test_the_loss_is_the_oracle(name):
  model, params, run = built(name)
  batch = batch_of(name)
  outputs = np.float64(jax.jit(model.apply)(params, TOKENS, MASK))
  loss = run(params, batch)[1]
  (metric,) = loss.metrics.values()
  assert set(loss.metrics) == {'absolute_error' if BATCHES[name] is NUMBERS else 'accuracy'}
  np.testing.assert_allclose(
    (loss.total, loss.weight, metric), oracle(name, outputs, batch), rtol=1e-5
  )


def test_bad_options():
  model = built('classification')[0]
  for smoothing in (-0.1, 1, float('nan')):
    with pytest.raises(InputError, match=f'label_smoothing is {smoothing}; .* below 1'):
      losses.classification(model, label_smoothing=smoothing)
  with pytest.raises(InputError, match='class_weights has 2 numbers, but there are 3 classes'):
    losses.classification(model, class_weights=[1, 2])
  with pytest.raises(InputError, match=r'class_weights is \[1.0, 0.0, 2.0\]; give positive'):
    losses.classification(model, class_weights=[1, 0, 2])
  with pytest.raises(InputError, match='delta is 0; it must be a positive'):
    losses.huber(model, delta=0)


def test_without_weights_every_row_counts_once():
  for batch in ({'tokens': TOKENS}, {'label': np.zeros(B)}):
    ones = row_weights(batch)
    assert ones.dtype == np.float32
    np.testing.assert_array_equal(ones, np.ones(B))


@names
def test_the_parts_of_a_batch_add_up(name):
  _, params, run = built(name)
  batch = batch_of(name)
  first = np.arange(B) < 3
  parts = [run(params, {**batch, 'weight': WEIGHT * rows}) for rows in (first, ~first)]
  close(jax.tree.map(lambda a, b: a + b, *parts), run(params, batch))


@names
def test_rows_without_weight_contribute_nothing(name):
  _, params, run = built(name)
  batch = batch_of(name)
  other = {key: x.copy() for key, x in batch.items()}
  other['tokens'][5] = (TOKENS[5] + 1) % 20
  own = other['label' if 'label' in other else 'tags']
  own[5] = 2
  if 'tags' in other:
    own[~MASK] = 1  # padding, too
  close(run(params, other), run(params, batch))


def close(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
