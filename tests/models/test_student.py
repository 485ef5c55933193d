"""A student is the model with some of its layers, in every family and however a stack is cut."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxtune import adapt, models, tree
from jaxtune.models.student import _chosen
from jaxtune.typing import InputError

TOKENS = np.random.default_rng(0).integers(0, 20, (2, 5)).astype(np.int32)
SIZES = {'vocabulary': 20, 'width': 8, 'hidden': 12, 'heads': 2, 'positions': 8}


def filled(model):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.5, x.shape)), model.shapes())


def test_layers_are_evenly_spaced():
  assert _chosen(12, 6) == [0, 2, 4, 7, 9, 11]  # DistilBERT's
  assert _chosen(6, 3) == [0, 2, 5] and _chosen(5, 3) == [0, 2, 4]
  assert _chosen(4, 4) == [0, 1, 2, 3] and _chosen(4, 1) == [0]


@pytest.mark.parametrize('cut', [None, 2])
def test_a_student_is_the_model_without_the_other_layers(cut):
  """What is left out adds nothing when its outputs are zero: residuals carry the rest."""
  model = models.decoder(models.DecoderConfig(**SIZES, layers=4))
  params = filled(model)
  skipped = np.array([1, 0, 1, 1], np.float32)
  layer = params['decoder']['0-3']
  for part, name in (('attn', 'o'), ('mlp', 'down')):
    layer[part][name] = layer[part][name] * skipped[:, None, None]
  whole = {**params, 'decoder': tree.cut(params['decoder'], cut) if cut else params['decoder']}
  small, own = models.student(model, whole, (0, 2, 3))
  assert list(own['decoder']) == (['0-0', '1-2'] if cut else ['0-2'])
  assert small.config == dataclasses.replace(model.config, layers=3)
  got, want = jax.jit(small.apply)(own, TOKENS), jax.jit(model.apply)(params, TOKENS)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_what_differs_by_layer_goes_with_the_layer():
  config = models.DecoderConfig(
    **SIZES, layers=4, window=2, local=(True, False, True, False), rotated=(True, True, False, True)
  )
  model = models.decoder(config)
  small, own = models.student(model, filled(model), (0, 1, 2))
  assert small.config.local == (True, False, True)
  assert small.config.rotated == (True, True, False)
  assert tree.difference(small.shapes(), own) is None


def test_experts_stay_experts():
  config = models.DecoderConfig(
    **SIZES, layers=4, experts=2, expert_hidden=4, sparse=(False, True, True, False)
  )
  model = models.decoder(config)
  small, own = models.student(model, filled(model), (0, 2, 3))
  assert small.config.sparse == (False, True, False)
  assert tree.difference(small.shapes(), own) is None


def test_an_encoder_under_an_adapter_and_its_head():
  model = models.encoder(models.EncoderConfig(**SIZES, layers=4, outputs=3))
  params = adapt.lora(jax.random.key(0), filled(model), 2)
  small, own = models.student(model, params, 2)
  want = jax.tree.map(lambda x: x[np.array([0, 3])], params['encoder']['0-3'])
  assert jax.tree.all(jax.tree.map(np.array_equal, own['encoder']['0-1'], want))
  assert own['head'] is params['head'] and small.task == 'classification'
  assert jax.eval_shape(small.apply, own, TOKENS).shape == (2, 3)


def test_both_stacks_of_an_encoder_decoder():
  config = models.EncoderDecoderConfig(
    vocabulary=20, width=8, hidden=12, heads=2, head_width=4, layers=4, decoder_layers=3
  )
  model = models.encoder_decoder(config)
  small, own = models.student(model, filled(model), 2)
  assert (small.config.layers, small.config.decoder_layers) == (2, 2)
  assert tree.difference(small.shapes(), own) is None


@pytest.mark.parametrize(
  'layers, message',
  [
    (0, 'layers is 0; this model has 2, so take from 1 to 2'),
    (3, 'layers is 3; this model has 2'),
    ((1, 0), 'layers are .1, 0.; give some of 0 to 1, each once and in their order'),
    ((), 'layers are ..; give some of 0 to 1'),
    ((0, 2), 'layers are .0, 2.; give some of 0 to 1'),
  ],
)
def test_layers_that_are_not_there_are_refused(layers, message):
  model = models.encoder(models.EncoderConfig(**SIZES, layers=2))
  with pytest.raises(InputError, match=message):
    models.student(model, model.shapes(), layers)


def test_a_module_of_the_users_own_is_refused():
  spec = models.ModelSpec('Own', None, 'features', *[lambda: None] * 3)
  with pytest.raises(InputError, match='Own is a module of your own'):
    models.student(spec, {}, 1)
