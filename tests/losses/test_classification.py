"""Classification and regression: weighted sums over rows."""

import functools

import jax
import numpy as np
import pytest

from jaxtune import losses, models
from jaxtune.losses.loss import row_weights

RNG = np.random.default_rng(0)
B, T, C = 6, 5, 3
TOKENS = RNG.integers(0, 20, (B, T)).astype(np.int32)
MASK = np.arange(T)[None] < RNG.integers(1, T + 1, (B, 1))
WEIGHT = np.array([1, 1, 0.5, 1, 1, 0], np.float32)
BATCHES = {
  'classification': {'label': RNG.integers(0, C, B).astype(np.int32)},
  'mean_squared_error': {'label': RNG.normal(size=B).astype(np.float32)},
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
      outputs=C if name == 'classification' else 1,
    )
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), model.shapes())
  objective = getattr(losses, name)(model)

  def total(params, batch):
    loss = objective(params, batch)
    return loss.total, loss

  return model, params, jax.jit(jax.grad(total, has_aux=True))


def batch_of(name):
  return {'tokens': TOKENS, 'mask': MASK, 'weight': WEIGHT, **BATCHES[name]}


names = pytest.mark.parametrize('name', BATCHES)


@names
def test_the_loss_is_the_oracle(name):
  model, params, run = built(name)
  batch = batch_of(name)
  outputs = np.float64(jax.jit(model.apply)(params, TOKENS, MASK))
  loss = run(params, batch)[1]
  if name == 'classification':
    rows = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(B), batch['label']]
    hits = WEIGHT @ (outputs.argmax(1) == batch['label'])
    np.testing.assert_allclose(loss.metrics['accuracy'], hits, rtol=1e-6)
    assert set(loss.metrics) == {'accuracy'}
  else:
    error = outputs[:, 0] - batch['label']
    rows = error**2
    np.testing.assert_allclose(loss.metrics['absolute_error'], WEIGHT @ np.abs(error), rtol=1e-5)
    assert set(loss.metrics) == {'absolute_error'}
  np.testing.assert_allclose(loss.total, WEIGHT @ rows, rtol=1e-5)
  assert loss.weight == WEIGHT.sum()


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
  other['label'][5] = 2
  close(run(params, other), run(params, batch))


def close(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
