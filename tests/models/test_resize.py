"""New rows are the mean of the old and leave the model's other outputs as they were."""

import jax
import numpy as np
import pytest

from jaxtune import adapt, models
from jaxtune.typing import InputError

KEY = jax.random.key(0)
SIZES = {'vocabulary': 12, 'width': 8, 'hidden': 8, 'layers': 1, 'heads': 2}
TOKENS = np.arange(1, 7).reshape(2, 3)
CONFIGS = {
  'tied decoder': models.DecoderConfig(**SIZES),
  'untied decoder': models.DecoderConfig(**SIZES, tied=False),
  'masked LM': models.EncoderConfig(**SIZES, positions=8, masked_lm=True),
  'classifier': models.EncoderConfig(**SIZES, positions=8, outputs=12),
  'encoder-decoder': models.EncoderDecoderConfig(**SIZES, decoder_layers=1, head_width=4),
}


def random(model):
  rng = np.random.default_rng(0)
  shapes = model.shapes()
  return jax.tree.map(lambda x: rng.normal(0.1, 0.6, x.shape).astype(np.float32), shapes)


def outputs(model, params):
  options = {'targets': TOKENS} if model.family == 'encoder_decoder' else {}
  return np.asarray(jax.jit(model.apply)(params, TOKENS, **options))


@pytest.mark.parametrize('kind', CONFIGS)
def test_old_outputs_stay_and_new_logits_are_the_mean(kind):
  model = models.build(CONFIGS[kind])
  params = random(model)
  larger, grown = models.resize(KEY, model, params, 15)
  assert larger.config.vocabulary == 15
  shapes = larger.shapes()
  jax.tree.map(lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape), grown, shapes)
  mean = np.float64(params['embed']['tokens']).mean(0)
  rows = np.asarray(grown['embed']['tokens'])
  np.testing.assert_allclose(rows[12:], np.tile(mean, (3, 1)), atol=1e-6)
  got, want = outputs(larger, grown), outputs(model, params)
  np.testing.assert_allclose(got[..., :12], want, atol=1e-5)
  if kind != 'classifier':
    for new in (12, 13, 14):
      np.testing.assert_allclose(got[..., new], want.mean(-1), atol=1e-5)
    p = np.asarray(jax.nn.softmax(got, axis=-1))
    assert (p[..., 12:] <= 1 / 12).all()  # the exponential of a mean is at most the mean of them


def test_noise_is_about_the_mean_and_the_key_counts():
  model = models.build(CONFIGS['masked LM'])
  params = random(model)
  rows = {}
  for seed in (1, 2):
    _, grown = models.resize(jax.random.key(seed), model, params, 4000, noise=0.5)
    rows[seed] = np.asarray(grown['embed']['tokens'])[12:]
    np.testing.assert_array_equal(grown['embed']['tokens'][:12], params['embed']['tokens'])
  old = params['embed']['tokens']
  np.testing.assert_allclose(rows[1].mean(0), old.mean(0), atol=0.05)
  np.testing.assert_allclose(rows[1].std(0), 0.5 * old.std(0), rtol=0.05)
  assert not np.allclose(rows[1], rows[2])
  assert not np.allclose(rows[1][:, 0], grown['head']['dense_bias'][12:])


def test_source_types_and_rules_are_kept():
  model = models.decoder(CONFIGS['untied decoder'])
  params = adapt.full(KEY, jax.tree.map(lambda x: x.astype('bfloat16'), random(model)))
  larger, grown = models.resize(KEY, model, params, 13)
  assert larger.source == model.source
  assert grown['head']['dense'].dtype == 'bfloat16' and grown['head']['dense'].shape == (8, 13)
  assert adapt.rules_of(grown) == params.rules
  same, equal = models.resize(KEY, model, params, 12)
  assert same.config == model.config
  jax.tree.map(np.testing.assert_array_equal, equal, params)


def test_what_cannot_be_resized():
  model = models.build(CONFIGS['tied decoder'])
  params = random(model)
  with pytest.raises(InputError, match='vocabulary is 11, but the model has 12 rows'):
    models.resize(KEY, model, params, 11)
  with pytest.raises(InputError, match='noise is -1'):
    models.resize(KEY, model, params, 13, noise=-1)
  adapted = adapt.lora(KEY, params, 2, select='embed/')
  with pytest.raises(InputError, match="'embed/tokens' is a LoRA; resize the model before"):
    models.resize(KEY, model, adapted, 13)
  image = models.build(models.VisionConfig(width=8, hidden=8, layers=1, heads=2))
  with pytest.raises(InputError, match='vision has no vocabulary'):
    models.resize(KEY, image, {}, 13)
