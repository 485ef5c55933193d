"""Noise on embeddings: uniform, of the paper's size whatever the padding, and in training alone."""

import functools

import jax
import numpy as np
import pytest

from jaxtune import adapt, losses, models, tree
from jaxtune.models.neftune import NoisyRows, _lengths
from jaxtune.typing import InputError

RNG = np.random.default_rng(0)
V, D, T = 30, 8, 10
DECODER = models.decoder(
  models.DecoderConfig(
    vocabulary=V, width=D, hidden=12, layers=1, heads=2, kv_heads=1, head_width=4
  )
)
ENCODER = models.encoder(
  models.EncoderConfig(vocabulary=V, width=D, hidden=12, layers=1, heads=2, positions=T)
)
TOKENS = RNG.integers(0, V, (3, T)).astype(np.int32)
MASK = np.arange(T)[None] < np.array([[10], [4], [0]])
KEY = jax.random.key(3)


def params_of(model):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.5, x.shape)), model.shapes())


def test_noise_is_uniform_up_to_its_scale():
  table = np.zeros((V, 64), np.float32)
  scale = np.array([[0.5, 2.0]], np.float32).repeat(200, 0)
  noise = np.asarray(NoisyRows(table, scale, KEY).take(np.zeros((200, 2), np.int32)))
  for column, size in ((0, 0.5), (1, 2.0)):
    own = noise[:, column]
    assert 0.99 * size < own.max() <= size and -size <= own.min() < -0.99 * size
    np.testing.assert_allclose(own.std(), size / np.sqrt(3), rtol=0.02)
    assert abs(own.mean()) < 4 * size / np.sqrt(3 * own.size)


def test_the_length_is_of_real_tokens_of_the_own_document():
  np.testing.assert_array_equal(_lengths(TOKENS, MASK, None)[:, 0], [10, 4, 1])
  np.testing.assert_array_equal(_lengths(TOKENS, None, None), np.full((3, T), 10))
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]] * 3)
  want = [3] * 3 + [5] * 5 + [1] * 2
  np.testing.assert_array_equal(_lengths(TOKENS, segments > 0, segments)[0], want)


@pytest.mark.parametrize('model', [DECODER, ENCODER], ids=lambda model: model.family)
def test_noise_is_there_with_a_key_alone(model):
  params, noisy = params_of(model), models.neftune(model, alpha=5.0)
  run = jax.jit(functools.partial(noisy.features, params))
  plain = jax.jit(model.features)(params, TOKENS, MASK)
  np.testing.assert_allclose(run(TOKENS, MASK), plain, atol=1e-6)
  one, other = (run(TOKENS, MASK, key=jax.random.key(n)) for n in range(2))
  assert np.abs(one - other).max() > 0.01 < np.abs(one - plain).max()
  assert models.neftune(model, alpha=0.0) is model


def test_adapters_and_tied_heads_stay_what_they_are():
  """Of the loss's gradient: the noise is no parameter, and the head sees the embedding itself."""
  params = adapt.lora(KEY, params_of(DECODER), 2, select=r'^embed/tokens$')
  objective = losses.causal_lm(models.neftune(DECODER))
  batch = {'tokens': TOKENS, 'mask': MASK}
  trainable, frozen = adapt.trainable(params)

  @functools.partial(jax.jit, static_argnums=0)
  def run(objective, trainable, key):
    def total(trainable):
      return objective(tree.combine(trainable, frozen), batch, key).total

    return jax.value_and_grad(total)(trainable)

  value, gradient = run(objective, trainable, KEY)
  assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  plain = run(losses.causal_lm(DECODER), trainable, KEY)[0]
  assert value != plain == run(objective, trainable, None)[0]


def test_what_has_no_tokens_is_refused():
  image = models.vision(models.VisionConfig(width=4, hidden=4, layers=1, heads=1))
  with pytest.raises(InputError, match='built-in decoder or encoder, not of vision'):
    models.neftune(image)
  for alpha in (-1, float('inf'), float('nan')):
    with pytest.raises(InputError, match='alpha is .*; give a number from 0'):
      models.neftune(DECODER, alpha=alpha)
