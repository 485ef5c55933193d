"""A fresh head on a pretrained body."""

import functools

import jax
import numpy as np
import pytest

from jaxtune import models
from jaxtune.typing import InputError

ENCODER = models.encoder(
  models.EncoderConfig(vocabulary=20, width=8, hidden=12, layers=2, heads=2, positions=8)
)
DECODER = models.decoder(
  models.DecoderConfig(
    vocabulary=20, width=8, hidden=12, layers=2, heads=2, kv_heads=1, head_width=4
  )
)
TOKENS = np.random.default_rng(0).integers(0, 20, (3, 6))
MASK = np.arange(6)[None] < np.array([[6], [3], [1]])


@functools.cache
def built(spec):
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), spec.shapes())
  return params, *models.classifier(jax.random.key(1), spec, params, 4)


@functools.cache
def apply(spec):
  return jax.jit(built(spec)[1].apply)


def test_encoder_head_is_pooler_and_matrix_on_the_first_token():
  base, model, params = built(ENCODER)
  assert model.task == 'classification' and model.config.outputs == 4
  features = np.float64(jax.jit(ENCODER.features)(base, TOKENS, MASK))[:, 0]
  pooler = jax.tree.map(np.float64, params['pooler'])
  head = jax.tree.map(np.float64, params['head'])
  pooled = np.tanh(features @ pooler['dense'] + pooler['dense_bias'])
  want = pooled @ head['dense'] + head['dense_bias']
  np.testing.assert_allclose(apply(ENCODER)(params, TOKENS, MASK), want, atol=1e-5)
  assert not head['dense_bias'].any()


def test_decoder_head_is_a_matrix_on_the_last_real_token():
  base, _, params = built(DECODER)
  features = np.float64(jax.jit(DECODER.features)(base, TOKENS, MASK))
  head = np.float64(params['head']['dense'])
  want = features[[0, 1, 2], [5, 2, 0]] @ head
  np.testing.assert_allclose(apply(DECODER)(params, TOKENS, MASK), want, atol=1e-5)
  whole = apply(DECODER)(params, TOKENS, np.ones_like(MASK))
  np.testing.assert_allclose(apply(DECODER)(params, TOKENS), whole, atol=1e-5)


@pytest.mark.parametrize('spec', [ENCODER, DECODER], ids=['encoder', 'decoder'])
def test_what_stands_in_the_padding_changes_no_output(spec):
  _, _, params = built(spec)
  other = np.where(MASK, TOKENS, (TOKENS + 1) % 20)
  assert (other != TOKENS).any()
  got = apply(spec)(params, other, MASK)
  np.testing.assert_array_equal(got, apply(spec)(params, TOKENS, MASK))


@pytest.mark.parametrize('spec', [ENCODER, DECODER], ids=['encoder', 'decoder'])
def test_the_body_is_kept_and_the_head_is_fresh(spec):
  base, model, params = built(spec)
  body = {name: leaf for name, leaf in params.items() if name != 'head'}
  assert jax.tree.structure(body) == jax.tree.structure(base)
  kept = zip(jax.tree.leaves(body), jax.tree.leaves(base), strict=True)
  assert all(a is b for a, b in kept)
  assert params['head']['dense'].shape == (8, 4)
  again = models.classifier(jax.random.key(1), spec, base, 4)[1]
  np.testing.assert_array_equal(again['head']['dense'], params['head']['dense'])
  other = models.classifier(jax.random.key(2), spec, base, 4)[1]
  assert not np.array_equal(other['head']['dense'], params['head']['dense'])
  replaced = models.classifier(jax.random.key(1), model, params, 2)[1]
  assert replaced['head']['dense'].shape == (8, 2)


def test_a_body_without_a_pooler_gets_one():
  base = {name: leaf for name, leaf in built(ENCODER)[0].items() if name != 'pooler'}
  model, params = models.classifier(jax.random.key(1), ENCODER, base, 2)
  assert params['pooler']['dense'].shape == (8, 8)
  shapes = jax.eval_shape(model.apply, params, TOKENS, MASK)
  assert shapes.shape == (3, 2)


def test_what_cannot_be_a_classifier_is_refused():
  base = ENCODER.shapes()
  with pytest.raises(InputError, match='at least one output, not 0'):
    models.classifier(jax.random.key(0), ENCODER, base, 0)
  own = models.ModelSpec('Mine', None, 'features', lambda key: {}, lambda *_: None, lambda *_: None)
  with pytest.raises(InputError, match='Mine is a module of your own'):
    models.classifier(jax.random.key(0), own, {}, 2)
