"""What LoRA's files hold beyond A and B: lengths, embeddings, biases, heads; without PEFT."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxtune import adapt, interop, tree
from jaxtune.typing import InputError

FOLDER = pathlib.Path(__file__).parent / 'golden' / 'adapters'
KEY = jax.random.key(0)
TOKENS = np.arange(1, 7, dtype=np.int32)[None]


@pytest.fixture(scope='module')
def llama():
  return interop.load(FOLDER / 'llama')


@pytest.fixture(scope='module')
def bert():
  return interop.load(FOLDER / 'bert')


def trained(adapted):
  """Every trained leaf as training might have left it."""
  trainable, frozen = adapt.trainable(adapted)
  rng = np.random.default_rng(0)
  moved = jax.tree.map(lambda x: np.float32(x + rng.normal(0, 0.2, x.shape)), trainable)
  return adapt.Adapted(tree.combine(moved, frozen), adapted.rules)


def files(folder):
  config = json.loads((folder / 'adapter_config.json').read_text())
  tensors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  return config, {name.removeprefix('base_model.model.'): x for name, x in tensors.items()}


def same_weights(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), adapt.merge(one), adapt.merge(other)
  )


def test_lora_beside_dora_is_dora_with_the_lengths_that_it_has(llama, tmp_path):
  model, params = llama
  lora = adapt.lora(KEY, params, 2, select='attn/q$', also=None)
  tuned = trained(adapt.dora(KEY, lora, 3, select='attn/v$', also=None))
  interop.save_peft(tmp_path / 'a', model, tuned, FOLDER / 'llama')
  config, tensors = files(tmp_path / 'a')
  assert config['use_dora'] and (config['r'], len(config['rank_pattern'])) in ((2, 2), (3, 2))
  q, v = (tuned['decoder']['0-1']['attn'][name] for name in 'qv')
  name = 'model.layers.1.self_attn.{}_proj.lora_magnitude_vector'
  lengths = np.linalg.norm(q.materialize()[1], axis=0)
  np.testing.assert_allclose(tensors[name.format('q')], lengths, rtol=1e-5)
  np.testing.assert_array_equal(tensors[name.format('v')], v.m[1])
  again = interop.load_peft(tmp_path / 'a', model, params)
  assert {type(leaf) for _, leaf in tree.named_weights(again)} & {adapt.LoRA, adapt.DoRA} == {
    adapt.DoRA
  }
  same_weights(tuned, again)


def test_a_layer_without_dora_keeps_its_lengths(tmp_path, llama):
  model, params = llama
  cut = {**params, 'decoder': tree.cut(params['decoder'], 1)}
  tuned = trained(adapt.dora(KEY, cut, 2, select='0-0/mlp/up$', also=None))
  interop.save_peft(tmp_path / 'a', model, tuned, FOLDER / 'llama')
  again = interop.load_peft(tmp_path / 'a', model, params)
  same_weights(tuned, {**again, 'decoder': tree.cut(again['decoder'], 1)})


def test_a_tied_head_has_the_factors_of_the_embeddings(llama, tmp_path):
  model, params = llama
  adapted = adapt.lora(KEY, params, 2, select='embed/tokens')
  with pytest.raises(InputError, match='changes nothing'):
    interop.save_peft(tmp_path / 'a', model, adapted, FOLDER / 'llama')
  tuned = trained(adapted)
  interop.save_peft(tmp_path / 'a', model, tuned, FOLDER / 'llama')
  config, tensors = files(tmp_path / 'a')
  assert config['ensure_weight_tying'] and config['target_modules'] == ['embed_tokens', 'lm_head']
  embedding = 'model.embed_tokens.lora_embedding_'
  np.testing.assert_array_equal(tensors['lm_head.lora_A.weight'], tensors[f'{embedding}B'].T)
  np.testing.assert_array_equal(tensors['lm_head.lora_B.weight'], tensors[f'{embedding}A'].T)
  np.testing.assert_array_equal(tensors[f'{embedding}A'], tuned['embed']['tokens'].a.T)

  def rewrite(**changes):
    full = {f'base_model.model.{name}': x for name, x in {**tensors, **changes}.items()}
    full = {name: x for name, x in full.items() if x is not None}
    safetensors.numpy.save_file(full, tmp_path / 'a' / 'adapter_model.safetensors')
    return interop.load_peft(tmp_path / 'a', model, params)

  with pytest.raises(InputError, match='lm_head, which is tied to it, differ'):
    rewrite(**{'lm_head.lora_A.weight': tensors['lm_head.lora_A.weight'] + 1})
  with pytest.raises(InputError, match='an adapter of lm_head alone'):
    rewrite(**{f'{embedding}A': None, f'{embedding}B': None})
  with pytest.raises(InputError, match='lm_head.weight differs from what it is tied to'):
    rewrite(**{'lm_head.weight': np.zeros((32, 16), np.float32)})
  alone = rewrite(**{'lm_head.lora_A.weight': None, 'lm_head.lora_B.weight': None})
  leaf = alone['embed']['tokens']
  assert isinstance(leaf, adapt.InputLoRA)
  x = np.ones((1, 16), np.float32)
  np.testing.assert_allclose(leaf.dot_transposed(x), x @ params['embed']['tokens'].T, atol=1e-5)
  with pytest.raises(InputError, match='cannot be merged'):
    adapt.merge(alone)


def test_embeddings_go_whole_with_the_head_tied_to_them(llama, tmp_path):
  model, params = llama
  tuned = trained(adapt.lora(KEY, params, 1, select='attn/q$', also='embed/tokens'))
  interop.save_peft(tmp_path / 'a', model, tuned, FOLDER / 'llama')
  config, tensors = files(tmp_path / 'a')
  assert config['modules_to_save'] == ['lm_head', 'model.embed_tokens']
  assert config['ensure_weight_tying']
  np.testing.assert_array_equal(tensors['lm_head.weight'], tuned['embed']['tokens'])
  same_weights(tuned, interop.load_peft(tmp_path / 'a', model, params))
  del tensors['lm_head.weight']
  tensors = {f'base_model.model.{name}': x for name, x in tensors.items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'a' / 'adapter_model.safetensors')
  with pytest.raises(InputError, match='replaces the embeddings and not lm_head.weight'):
    interop.load_peft(tmp_path / 'a', model, params)


def test_biases_alone_or_with_their_modules(bert, tmp_path):
  """All, or all of adapted modules: by themselves; another choice: in whole modules."""
  model, params = bert
  lora = adapt.lora(KEY, params, 1, select=r'attn/[qk]$')
  for rule, bias, more in (
    ('bias$', 'all', 1 + 2 * 8 + 1),  # of the embeddings' norm, the layers and the pooler
    ('attn/[qk]_bias$', 'lora_only', 4),
    ('attn/[ko]_bias$', 'none', 0),
  ):
    tuned = trained(adapt.train_also(lora, [(rule, True)]))
    interop.save_peft(tmp_path / bias, model, tuned, FOLDER / 'bert')
    config, tensors = files(tmp_path / bias)
    assert config['bias'] == bias
    alone = {name for name in tensors if name.endswith('.bias')} - {
      f'{module}.bias' for module in config['modules_to_save']
    }
    assert len(alone) == more
    assert ('bert.encoder.layer.0.attention.self.query.base_layer.bias' in alone) == bool(more)
    again = interop.load_peft(tmp_path / bias, model, params)
    same_weights(tuned, again)
    if more:
      paths = [set(tree.paths(adapt.trainable(p)[0])) for p in (tuned, again)]
      assert paths[0] == paths[1]


def test_parts_of_a_fused_bias_and_of_a_kernel(tmp_path):
  golden = FOLDER.parent
  model, params = interop.load(golden / 'gpt2')
  tuned = trained(adapt.bitfit(KEY, adapt.lora(KEY, params, 1, also=None)))
  interop.save_peft(tmp_path / 'a', model, tuned, golden / 'gpt2')
  config, tensors = files(tmp_path / 'a')
  assert config['fan_in_fan_out'] and config['bias'] == 'all'
  bias = tensors['transformer.h.0.attn.c_attn.base_layer.bias']
  attention = tuned['decoder']['0-1']['attn']
  np.testing.assert_array_equal(bias, np.concatenate([attention[f'{n}_bias'][0] for n in 'qkv']))
  same_weights(tuned, interop.load_peft(tmp_path / 'a', model, params))


def test_a_head_of_masked_words_takes_its_copies_along(tmp_path):
  """PEFT wraps `cls.predictions` with all that is in it, the tied matrix too."""
  golden = FOLDER.parent
  model, params = interop.load(golden / 'bert')
  tuned = trained(adapt.lora(KEY, params, 1, select='attn/q$'))
  interop.save_peft(tmp_path / 'a', model, tuned, golden / 'bert')
  config, tensors = files(tmp_path / 'a')
  assert config['modules_to_save'] == ['cls.predictions']
  copy = tensors['cls.predictions.decoder.weight']
  np.testing.assert_array_equal(copy, params['embed']['tokens'])
  same_weights(tuned, interop.load_peft(tmp_path / 'a', model, params))
  both = adapt.lora(KEY, params, 1, select='embed/tokens')
  with pytest.raises(InputError, match='tied to the head, which was trained whole'):
    interop.save_peft(tmp_path / 'b', model, trained(both), golden / 'bert')


def test_names_of_images_are_those_in_memory(tmp_path):
  golden = FOLDER.parent
  model, params = interop.load(golden / 'vit')
  tuned = trained(adapt.lora(KEY, params, 1, also='head/|embed/'))
  interop.save_peft(tmp_path / 'a', model, tuned, golden / 'vit')
  config, tensors = files(tmp_path / 'a')
  assert config['target_modules'] == ['fc1', 'fc2', 'k_proj', 'o_proj', 'q_proj', 'v_proj']
  assert config['task_type'] is None and config['modules_to_save'] == [
    'classifier',
    'vit.embeddings',
  ]
  assert tensors['vit.layers.1.attention.q_proj.lora_A.weight'].shape == (1, 16)
  assert tensors['vit.embeddings.patch_embeddings.projection.weight'].shape == (16, 3, 4, 4)
  same_weights(tuned, interop.load_peft(tmp_path / 'a', model, params))
