"""A head for masked tokens on an encoder that has none."""

import jax
import numpy as np
import pytest

from jaxtune import models
from jaxtune.typing import InputError

CONFIG = models.EncoderConfig(vocabulary=20, width=8, hidden=12, layers=1, heads=2, positions=6)
KEY = jax.random.key(0)


def test_the_body_stays_and_the_head_is_that_of_the_family():
  model = models.encoder(CONFIG)
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), model.shapes())
  masked, own = models.masked_lm(KEY, model, params)
  assert masked.task == 'masked_lm' and masked.source == model.source
  assert jax.tree.structure(own) == jax.tree.structure(masked.shapes())
  assert 'pooler' in params and set(own) == {'embed', 'encoder', 'head'}
  assert own['encoder'] is params['encoder'] and own['embed'] is params['embed']
  assert set(own['head']) == {'hidden', 'hidden_bias', 'norm', 'dense_bias'}  # the matrix is tied
  logits = jax.jit(masked.apply)(own, np.ones((2, 6), np.int32))
  assert logits.shape == (2, 6, 20)
  again, same = models.masked_lm(jax.random.key(1), masked, own)
  assert again is masked and same is own  # a head that is there is pretrained
  classifier, headed = models.classifier(KEY, masked, own, 3)
  assert classifier.task == 'classification' and headed['encoder'] is params['encoder']


def test_only_encoders_have_masked_tokens():
  config = models.DecoderConfig(vocabulary=20, width=8, hidden=12, layers=1, heads=2, head_width=4)
  with pytest.raises(InputError, match='decoder has no masked tokens; take an encoder'):
    models.masked_lm(KEY, models.decoder(config), {})
