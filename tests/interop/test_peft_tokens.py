"""Trained tokens and norms in PEFT's files without PEFT: what these hold, and what they cannot.

That they mean the same there is for test_golden_adapters.py and test_peers_peft_tokens.py.
"""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxtune import adapt, interop, models, tree
from jaxtune.typing import InputError
from tests.interop.test_golden_adapters import FOLDER

KEY = jax.random.key(0)


@functools.cache
def base(name):
  return interop.load(FOLDER / name)


def moved(params):
  """What trains, away from where it started."""
  trainable, frozen = adapt.trainable(params)
  return adapt.Adapted(
    tree.combine(jax.tree.map(lambda x: x + 0.5, trainable), frozen), params.rules
  )


def files(folder):
  config = json.loads((folder / 'adapter_config.json').read_text())
  return config, safetensors.numpy.load_file(folder / 'adapter_model.safetensors')


def tokens(params, also=None):
  return adapt.trainable_tokens(KEY, params, [9, 4], also=also)


def test_rows_are_written_for_all_that_share_them(tmp_path):
  model, params = base('llama')
  interop.save_peft(tmp_path / 'a', model, moved(tokens(params)), FOLDER / 'llama')
  config, tensors = files(tmp_path / 'a')
  assert config['token_indices'] == [4, 9] and config['target_modules'] == 'model.embed_tokens'
  assert 'modules_to_save' not in config  # no field of PEFT's class
  want = params['embed']['tokens'][np.array([4, 9])] + 0.5
  for name in ('model.embed_tokens', 'lm_head'):
    got = tensors.pop(f'base_model.model.{name}.trainable_tokens_delta')
    np.testing.assert_allclose(got, want)
  assert not tensors
  lora = moved(tokens(adapt.lora(KEY, params, 2, select='attn/q$', also=None)))
  interop.save_peft(tmp_path / 'b', model, lora, FOLDER / 'llama')
  config, tensors = files(tmp_path / 'b')
  assert config['trainable_token_indices'] == [4, 9] and config['target_modules'] == ['q_proj']
  (name,) = (name for name in tensors if 'token' in name)
  assert name == 'base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta'


def test_what_files_of_tokens_cannot_hold(tmp_path):
  model, params = base('bert')

  def refused(params, words, model=model):
    assert interop.adapter_obstacle(model, params)
    with pytest.raises(InputError, match=words):
      interop.save_peft(tmp_path / 'a', model, params, FOLDER / 'bert')

  refused(moved(tokens(params, adapt.HEAD)), 'classifier would go along whole.*put lora beside it')
  positions = adapt.trainable_tokens(KEY, params, [1], select='embed/positions')
  lora = functools.partial(adapt.lora, KEY, rank=2, select='attn/q$')
  with pytest.raises(InputError, match="'embed/positions' has trained rows, and PEFT has them of"):
    interop.save_peft(tmp_path / 'a', model, moved(lora(positions)), FOLDER / 'bert')
  refused(moved(tokens(adapt.ia3(KEY, params))), 'is a TrainableTokens beside IA3')
  refused(moved(tokens(adapt.lora(KEY, params, 2, select='embed/tokens'))), 'on an adapter')
  llama, params = base('llama')
  with pytest.raises(InputError, match='changes nothing; train before you export'):
    interop.save_peft(tmp_path / 'a', llama, tokens(params), FOLDER / 'llama')


def test_tokens_that_the_model_does_not_have(tmp_path):
  model, params = base('llama')
  larger, grown = models.resize(KEY, model, params, 34)
  tuned = moved(adapt.trainable_tokens(KEY, grown, [32, 33], also=None))
  interop.save_peft(tmp_path / 'a', larger, tuned, FOLDER / 'llama')
  again = interop.load_peft(tmp_path / 'a', larger, grown)
  jax.tree.map(np.testing.assert_array_equal, dict(tuned), dict(again))
  with pytest.raises(InputError, match='token 32 has no row among the 32.*models.resize'):
    interop.load_peft(tmp_path / 'a', model, params)
  interop.save_hf(tmp_path / 'b', larger, adapt.merge(tuned), FOLDER / 'llama')
  whole, merged = interop.load(tmp_path / 'b')
  assert whole.config.vocabulary == 34
  np.testing.assert_allclose(merged['embed']['tokens'], tuned['embed']['tokens'].materialize())


def test_norms_are_an_adapter_only_where_nothing_else_is_trained(tmp_path):
  model, params = base('bert')
  norms = adapt.norms(KEY, params)
  interop.save_peft(tmp_path / 'a', model, moved(norms), FOLDER / 'bert')
  config, tensors = files(tmp_path / 'a')
  assert (config['peft_type'], config['target_modules']) == ('LN_TUNING', ['LayerNorm'])
  assert config['modules_to_save'] == ['classifier']
  assert sum('.ln_tuning_layers.' in name for name in tensors) == len(tensors) - 2 == 10
  for other in (
    adapt.full(KEY, params),
    adapt.bitfit(KEY, params),
    adapt.last_layers(KEY, params),
    adapt.train_also(norms, [('attn/q$', True)]),
  ):
    assert 'no adapter that PEFT has a format for' in interop.adapter_obstacle(model, other)
  beside = moved(adapt.norms(KEY, adapt.lora(KEY, params, 2, select='attn/q$'), 'mlp_norm/scale$'))
  interop.save_peft(tmp_path / 'b', model, beside, FOLDER / 'bert')
  config, tensors = files(tmp_path / 'b')
  assert config['peft_type'] == 'LORA'
  assert {name.rpartition('.')[2] for name in config['modules_to_save']} == {
    'LayerNorm',
    'classifier',
  }
  assert not any('ln_tuning' in name for name in tensors)
