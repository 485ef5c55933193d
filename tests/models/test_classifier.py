"""A fresh head on a pretrained body."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxtune import adapt, models
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


@pytest.mark.parametrize('spec', [ENCODER, DECODER], ids=['encoder', 'decoder'])
def test_each_token_has_a_row_of_its_own(spec):
  base, *_ = built(spec)
  model, params = models.classifier(jax.random.key(1), spec, base, 4, each_token=True)
  assert model.task == 'token_classification' and 'pooler' not in params
  got = jax.jit(model.apply)(params, TOKENS, MASK)
  features = np.float64(jax.jit(spec.features)(base, TOKENS, MASK))
  np.testing.assert_allclose(got, features @ np.float64(params['head']['dense']), atol=1e-5)


def test_a_head_with_a_hidden_layer_is_fresh_and_trained_as_a_whole():
  """RoBERTa's: it takes the place of the pooler, which is for other uses."""
  config = dataclasses.replace(ENCODER.config, text_head=models.Head('tanh'))
  model, params = models.classifier(jax.random.key(1), models.encoder(config), built(ENCODER)[0], 3)
  assert 'pooler' not in params and set(params['head']) == {
    *('hidden', 'hidden_bias', 'dense', 'dense_bias')
  }
  first = np.float64(jax.jit(model.features)(params, TOKENS, MASK))[:, 0]
  head = jax.tree.map(np.float64, params['head'])
  assert head['hidden'].any() and not head['hidden_bias'].any()
  want = np.tanh(first @ head['hidden']) @ head['dense']
  np.testing.assert_allclose(jax.jit(model.apply)(params, TOKENS, MASK), want, atol=1e-5)
  trained, _ = adapt.trainable(adapt.probe(None, params))
  assert len(jax.tree.leaves(trained)) == 4


def test_a_classifier_of_a_model_for_masked_tokens():
  """It loses the head that it had, keeps the pooler, and knows where it came from."""
  config = dataclasses.replace(ENCODER.config, masked_lm=True)
  masked = dataclasses.replace(models.encoder(config), source='somewhere')
  pooler = built(ENCODER)[0]['pooler']
  base = {**jax.tree.map(lambda x: np.ones(x.shape, 'f'), masked.shapes()), 'pooler': pooler}
  model, params = models.classifier(jax.random.key(1), masked, base, 2)
  assert model.task == 'classification' and model.source == 'somewhere'
  assert params['pooler'] is pooler and set(params['head']) == {'dense', 'dense_bias'}


def test_what_cannot_be_a_classifier_is_refused():
  base = ENCODER.shapes()
  with pytest.raises(InputError, match='at least one output, not 0'):
    models.classifier(jax.random.key(0), ENCODER, base, 0)
  own = models.ModelSpec('Mine', None, 'features', lambda key: {}, lambda *_: None, lambda *_: None)
  with pytest.raises(InputError, match='Mine is a module of your own'):
    models.classifier(jax.random.key(0), own, {}, 2)
