"""Training a head on cached features is training it on the texts, without dropout."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxtune import adapt, data, losses, models, train
from jaxtune.train import features
from jaxtune.typing import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SIZES = {'vocabulary': 40, 'width': 8, 'hidden': 8, 'layers': 1, 'heads': 2, 'outputs': 3}
EXAMPLES = [
  {'tokens': RNG.integers(1, 40, n, dtype=np.int32), 'label': np.int32(RNG.integers(3))}
  for n in RNG.integers(2, 12, 21)
]
MODELS = {
  'first': models.EncoderConfig(**SIZES, positions=12, dropout=0.5),
  'mean': models.EncoderConfig(**SIZES, positions=12, pooling='mean', pooler=False),
  'last': models.DecoderConfig(**SIZES, kv_heads=1),
}


def built(config):
  model = models.build(config)
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype('f'), model.shapes())
  return model, adapt.probe(KEY, params)


@pytest.mark.parametrize('name', MODELS)
def test_outputs_of_cached_features_are_those_of_the_texts(name):
  model, params = built(MODELS[name])
  assert features.trains_head_alone(model, params)
  table = features.cache_features(model, params, EXAMPLES, 8, max_length=12)
  assert table.shape == (21, 1, 8)
  options = {'batch_size': 24, 'max_length': 12}
  (batch,) = data.eval_batches(EXAMPLES, **options)
  (short,) = features.feature_eval_batches(EXAMPLES, table, **options)
  np.testing.assert_array_equal(short['label'], batch['label'])
  np.testing.assert_array_equal(short['weight'], batch['weight'])
  want = jax.jit(model.apply)(params, batch['tokens'], batch['mask'])
  got = jax.jit(features.head_only(model).apply)(params, short['tokens'], short['mask'])
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_features_of_every_token():
  model, params = built(dataclasses.replace(MODELS['first'], each_token=True))
  table = features.cache_features(model, params, EXAMPLES, 8, max_length=12)
  (batch,) = data.eval_batches(EXAMPLES, 24, max_length=12)
  (short,) = features.feature_eval_batches(EXAMPLES, table, 24, max_length=12)
  want = jax.jit(model.apply)(params, batch['tokens'], batch['mask'])
  got = jax.jit(features.head_only(model).apply)(params, short['tokens'], short['mask'])
  assert got.shape == (24, 12, 3)
  np.testing.assert_allclose(got[batch['mask']], want[batch['mask']], atol=2e-6)


def test_a_head_trained_on_features_is_the_one_trained_on_texts_and_goes_on_where_it_was():
  model, params = built(dataclasses.replace(MODELS['first'], dropout=0.0))
  table = features.cache_features(model, params, EXAMPLES, 8, max_length=12)
  options = {'batch_size': 8, 'max_length': 12, 'seed': 3}

  def run(model, batches, steps, state=None):
    program = train.prepare(model, params, losses.classification(model), optax.adam(0.1), batches)
    return train.fit(program, batches, steps=steps, state=state)

  want = run(model, data.batches(EXAMPLES, **options), 5)
  short = features.head_only(model)
  batches = features.feature_batches(EXAMPLES, table, **options)
  half = run(short, batches, 3)
  again = features.feature_batches(EXAMPLES, table + 1e-7, **options)  # computed elsewhere
  again.set_state(batches.get_state())
  got = run(short, again, 5, half)
  for a, b in zip(jax.tree.leaves(got.trainable), jax.tree.leaves(want.trainable), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_only_where_nothing_but_the_head_trains():
  model, params = built(MODELS['first'])
  assert features.trains_head_alone(model, adapt.lora(KEY, params, 2, select='head/dense$'))
  assert features.trains_head_alone(model, adapt.probe(KEY, params, select='^(head|pooler)/'))
  assert not features.trains_head_alone(model, adapt.bitfit(KEY, params))
  language, params = built(models.DecoderConfig(**SIZES | {'outputs': 0}, tied=False))
  assert not features.trains_head_alone(language, params)
  with pytest.raises(InputError, match='this is a decoder for causal_lm'):
    features.head_only(language)
  with pytest.raises(InputError, match='no examples'):
    features.cache_features(model, params, [], 8, max_length=12)
