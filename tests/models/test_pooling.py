"""One vector a text: what of its states it is made of, and what padding must not change."""

import jax
import numpy as np
import pytest

from jaxtune import models
from jaxtune.typing import InputError

MODEL = models.encoder(
  models.EncoderConfig(vocabulary=20, width=8, hidden=12, layers=1, heads=2, positions=8)
)
TOKENS = np.random.default_rng(0).integers(0, 20, (3, 6))
MASK = np.arange(6)[None] < np.array([[6], [3], [1]])


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), MODEL.shapes())


@pytest.fixture(scope='module')
def states(params):
  return np.float64(MODEL.features(params, TOKENS, MASK))


def test_poolings_are_the_oracle(params, states):
  want = {
    'mean': np.stack([x[m].mean(0) for x, m in zip(states, MASK, strict=True)]),
    'first': states[:, 0],
    'last': states[[0, 1, 2], [5, 2, 0]],
  }
  for pooling, vectors in want.items():
    got = models.embed(MODEL, params, TOKENS, MASK, pooling, normalize=False)
    np.testing.assert_allclose(got, vectors, atol=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(models.embed(MODEL, params, TOKENS, MASK, pooling), unit, atol=1e-5)


def test_no_mask_is_a_mask_of_ones(params):
  for pooling in ('mean', 'last'):
    whole = models.embed(MODEL, params, TOKENS, np.ones_like(MASK), pooling)
    np.testing.assert_allclose(models.embed(MODEL, params, TOKENS, None, pooling), whole, atol=1e-6)


def test_half_precision_is_summed_in_float32(params):
  low = jax.tree.map(lambda x: x.astype('bfloat16'), params)
  got = models.embed(MODEL, low, TOKENS, MASK)
  assert got.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
  np.testing.assert_allclose(got, models.embed(MODEL, params, TOKENS, MASK), atol=0.05)


def test_options_reach_the_model(params):
  types = np.ones_like(TOKENS)
  got = models.embed(MODEL, params, TOKENS, MASK, 'first', False, types=types)
  want = MODEL.features(params, TOKENS, MASK, types=types)[:, 0]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_an_unknown_pooling_is_refused(params):
  with pytest.raises(InputError, match="pooling is 'max'; known: mean, first, last"):
    models.embed(MODEL, params, TOKENS, MASK, 'max')
