"""What only jaxtune opens: the trained leaves of adapters that are no function of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, interop, models, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
MODEL = models.encoder(
  models.EncoderConfig(vocabulary=9, width=8, hidden=8, layers=2, heads=2, positions=4, outputs=2)
)
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(lambda x: jnp.float32(RNG.normal(size=x.shape)), MODEL.shapes())


def method(params=PARAMS, width=3, **options):
  return adapt.bottleneck(KEY, params, width, **options)


def tuned(params):
  trainable, frozen = adapt.trainable(params)
  moved = jax.tree.map(lambda x: x + 0.5, trainable)
  return adapt.Adapted(tree.combine(moved, frozen), params.rules)


def test_round_trip(tmp_path):
  params = tuned(method())
  interop.save_trained(tmp_path / 'a', MODEL, params, labels=('x', 'y'), card='# Card\n')
  interop.save_trained(tmp_path / 'a', MODEL, params, labels=('x', 'y'))  # over an earlier one
  assert {file.name for file in (tmp_path / 'a').iterdir()} == {interop.TRAINED, 'jaxtune.json'}
  assert interop.load_labels(tmp_path / 'a') == ('x', 'y')
  again = interop.load_trained(tmp_path / 'a', method())
  jax.tree.map(np.testing.assert_array_equal, dict(params), dict(again))
  assert again.rules == params.rules
  size = (tmp_path / 'a' / interop.TRAINED).stat().st_size
  trained = adapt.trainable(params)[0]
  assert size < tree.size(trained) + 2000 < tree.size(params)


def test_what_needs_it():
  assert interop.merge_obstacle(PARAMS) is None
  assert interop.merge_obstacle(adapt.lora(KEY, PARAMS, 2)) is None
  assert 'no function of the weights' in interop.merge_obstacle(method())
  assert interop.merge_obstacle({**PARAMS, 'prompt': {}}) == 'the prompt is no weight of the model'
  words = interop.adapter_obstacle(MODEL, method())
  assert words == 'the parameters hold no adapter that PEFT has a format for'
  with pytest.raises(InputError, match='Bottleneck beside LORA'):
    interop.save_peft('nowhere', MODEL, adapt.lora(KEY, method(), 2, select='attn/q$'))


def test_files_that_do_not_fit(tmp_path):
  interop.save_trained(tmp_path, MODEL, tuned(method()))

  def refused(params, words):
    with pytest.raises(InputError, match=words) as error:
      interop.load_trained(tmp_path, params)
    assert '\n' not in str(error.value)

  refused(method(width=2), r'mlp/down/down is \[2, 8, 3\].*makes it \[2, 8, 2\]|attn/o/down')
  refused(method(select='attn/o$'), 'holds encoder/0-1/mlp/down/down, which .* does not train')
  refused(adapt.lora(KEY, PARAMS, 2), 'lacks|holds')
  other = {**PARAMS, 'embed': jax.tree.map(lambda x: x + 1, PARAMS['embed'])}
  refused(method(other), 'made for a base whose')
  bad = tuned(method())
  bad['head']['dense'] = bad['head']['dense'] * jnp.nan
  with pytest.raises(InputError, match='head/dense holds NaN'):
    interop.save_trained(tmp_path, MODEL, bad)
  with pytest.raises(InputError, match='no trained.safetensors'):
    interop.load_trained(tmp_path / '..', method())
  frozen = adapt.Adapted(PARAMS, (('', False),))
  with pytest.raises(InputError, match='nothing trains'):
    interop.save_trained(tmp_path, MODEL, frozen)
