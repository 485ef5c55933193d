"""Hugging Face folders: what is read is what was written, and what cannot be is refused."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import interop, shard
from jaxtune.interop.folder import open_folder
from jaxtune.interop.tensors import open_safetensors
from jaxtune.typing import InputError
from tests.interop.conftest import LLAMA, llama_tensors, write_model


def refused(source, *words, **options):
  with pytest.raises(InputError) as error:
    interop.load(source, **options)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message
  return message


def test_minilm_holds_the_files_numbers(minilm):
  model, params = interop.load(minilm)
  raw = safetensors.numpy.load_file(minilm / 'model.safetensors')
  assert model.task == 'features' and model.config.layers == 6 and model.config.width == 384
  shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), params)
  assert shapes == jax.tree.map(lambda x: (x.shape, str(x.dtype)), model.shapes())
  layers = params['encoder']['0-5']
  for i in range(6):
    p = f'encoder.layer.{i}.'
    np.testing.assert_array_equal(
      layers['attn']['k'][i], raw[f'{p}attention.self.key.weight'].T, strict=False
    )
    np.testing.assert_array_equal(layers['mlp']['down'][i], raw[f'{p}output.dense.weight'].T)
    np.testing.assert_array_equal(
      layers['attn_norm']['bias'][i], raw[f'{p}attention.output.LayerNorm.bias']
    )
  np.testing.assert_array_equal(params['embed']['tokens'], raw['embeddings.word_embeddings.weight'])
  out = model.apply(params, jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), bool))
  assert out.shape == (2, 5, 384) and bool(jnp.isfinite(out).all())


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_prefix_and_old_layer_norm_names(bert):
  plain = interop.load(bert())[1]

  def old(name):
    name = 'bert.' + name
    return name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    )

  same(plain, interop.load(bert(old))[1])


def test_classifier_comes_with_its_head(bert):
  extra = {'classifier.weight': np.ones((3, 16), 'f'), 'classifier.bias': np.zeros(3, 'f')}
  fields = {'architectures': ['BertForSequenceClassification']}
  labels = {'id2label': {'0': 'x', '1': 'y', '2': 'z'}}
  folder = bert('bert.{}'.format, extra, **fields, **labels)
  model, params = interop.load(folder)
  assert model.config.outputs == 3 and params['head']['dense'].shape == (16, 3)
  assert interop.load_labels(folder) == ('x', 'y', 'z')
  refused(bert('bert.{}'.format, extra, **fields), 'classifier', '[3, 16]', '[2, 16]')


NEW = {
  'rope_theta': None,
  'torch_dtype': None,
  'dtype': 'float32',
  'rope_parameters': {'rope_theta': 5000.0, 'rope_type': 'default'},
}


def test_both_forms_of_config_say_the_same(llama):
  old, new = interop.load(llama())[0], interop.load(llama(**NEW))[0]
  assert old.config == new.config and old.config.rope.base == 5000.0
  assert old.config.head_width == 6 and old.config.kv_heads == 2 and old.config.epsilon == 1e-6
  assert interop.load(llama(rope_scaling={'rope_type': 'default'}))[0].config == old.config
  assert interop.load(llama(head_dim=4))[0].config.head_width == 4
  bare = {'num_key_value_heads': 4, 'head_dim': 4}
  folder = llama(**bare)
  raw = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({k: v for k, v in raw.items() if k not in bare}))
  config = interop.load(folder)[0].config  # what the oldest files leave out
  assert (config.kv_heads, config.head_width) == (4, 4)


@pytest.mark.parametrize('tied', [True, False])
def test_untied_heads(llama, tied):
  _, params = interop.load(llama(tie_word_embeddings=tied))
  assert ('head' in params) == (not tied)
  if not tied:
    np.testing.assert_array_equal(params['head']['dense'], llama.tensors['lm_head.weight'].T)


def test_types_are_kept_or_made(llama):
  folder = llama(ml_dtypes.bfloat16)
  kinds = {str(x.dtype) for x in jax.tree.leaves(interop.load(folder)[1])}
  assert kinds == {'bfloat16'}
  _, params = interop.load(folder, dtype='float32')
  want = llama.tensors['model.layers.2.mlp.up_proj.weight'].astype(np.float32)
  np.testing.assert_array_equal(params['decoder']['0-2']['mlp']['up'][2], want.T, strict=False)
  mixed = dict(llama.tensors)
  name = 'model.layers.1.self_attn.q_proj.weight'
  mixed[name] = mixed[name].astype(np.float32) + 1e-4
  safetensors.numpy.save_file(mixed, folder / 'model.safetensors')
  layers = interop.load(folder)[1]['decoder']['0-2']
  assert layers['attn']['q'].dtype == np.float32 and layers['attn']['k'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(layers['attn']['q'][1], mixed[name].T)
  refused(folder, 'int8', 'floating', dtype='int8')


def test_blocks_smaller_than_a_tensor(llama, monkeypatch):
  whole = interop.load(llama())[1]
  monkeypatch.setattr('jaxtune.interop.tensors._BLOCK', 200)
  same(whole, interop.load(llama())[1])


@pytest.mark.parametrize('fsdp', [2, 4])
def test_each_device_reads_its_own_part(llama, monkeypatch, fsdp):
  """Rows, columns and replicas; blocks of a few rows."""
  monkeypatch.setattr('jaxtune.interop.tensors._BLOCK', 200)
  mesh = shard.mesh({'data': -1, 'fsdp': fsdp})
  whole = interop.load(llama(tie_word_embeddings=False))[1]

  def places(model, shapes):
    return shard.param_shardings(mesh, shapes, model.axes(shapes))

  model, parts = interop.load(llama(tie_word_embeddings=False), shardings=places)
  same(whole, parts)
  assert jax.tree.map(lambda x: x.sharding, parts) == places(model, parts)
  up = parts['decoder']['0-2']['mlp']['up']
  assert {x.data.shape for x in up.addressable_shards} == {(3, 16 // fsdp, 24)}


def cut(folder, tensors):
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  where = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(names)}
  for file in set(where.values()):
    part = {n: tensors[n] for n in names if where[n] == file}
    safetensors.numpy.save_file(part, folder / file)
  index = {'metadata': {'total_size': 0}, 'weight_map': where}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return where


def test_shards(llama):
  folder = llama()
  whole = interop.load(folder)[1]
  where = cut(folder, llama.tensors)
  same(whole, interop.load(folder)[1])
  name = next(iter(where))
  index = {'weight_map': where | {name: 'model-00002-of-00002.safetensors'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  refused(folder, 'lacks the tensor', name)
  (folder / 'model-00002-of-00002.safetensors').unlink()
  refused(folder, 'model-00002-of-00002.safetensors', 'not in the folder')
  (folder / 'model.safetensors.index.json').write_text('{"weight_map": {"a": "../a.safetensors"}}')
  refused(folder, '../a.safetensors')


def test_an_index_that_lies(llama):
  folder = llama()
  where = cut(folder, llama.tensors)
  name, shard = next(iter(where.items()))
  index = folder / 'model.safetensors.index.json'
  for change, words in (
    ({name: 3}, [name, '3', 'no file']),
    ({name: None}, [name, 'None', 'no file']),
    ({name: '.'}, ["'.'", 'not in the folder']),
    ({'more': shard}, ['lacks the tensor more', 'the index']),
  ):
    index.write_text(json.dumps({'weight_map': where | change}))
    refused(folder, *words)
  for whole in ('{"weight_map": []}', '{"weight_map": {}}', '{}'):
    index.write_text(whole)
    refused(folder, 'has no weight_map')
  index.write_text('[' * 100_000)
  refused(folder, 'is not JSON')
  index.write_text(json.dumps({'weight_map': where}))
  extra = safetensors.numpy.load_file(folder / shard) | {'stray': np.ones(2, 'f')}
  safetensors.numpy.save_file(extra, folder / shard)
  refused(folder, 'does not have in jaxtune (stray)')


VALUES = st.sampled_from(
  [None, True, -1, 1, 2**31, 2**63, 2**64 - 1, 10**30, 1.5, 'F32', 'I8', 'F4', [], {}, [0], [[1]]]
  + [[0, 0], [5, 3], [0, 2**63], [2**64 - 1, 1], [2**32, 2**32], [2**62, 4], [-1, 4], [0, 16]]
)


@given(st.data())
@settings(max_examples=300)
def test_headers_that_lie(tmp_path_factory, data):
  """Whatever a header says, the file is read as it is meant or refused in one line."""
  file = tmp_path_factory.getbasetemp() / 'lie.safetensors'
  tensors = {name: np.ones((2, 3), 'f') for name in 'abc'}
  raw = safetensors.numpy.save(tensors)
  length = struct.unpack('<Q', raw[:8])[0]
  header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
  change = data.draw(st.sampled_from(['dtype', 'shape', 'data_offsets', 'entry', 'copy', 'more']))
  if change == 'entry':
    header['a'] = data.draw(VALUES)
  elif change == 'copy':
    header['a']['data_offsets'] = header['b']['data_offsets']
  elif change == 'more':
    header['d'] = {'dtype': 'F32', 'shape': data.draw(VALUES), 'data_offsets': [68, 72]}
  else:
    header['a'][change] = data.draw(VALUES)
  text = json.dumps(header).encode()
  length = data.draw(st.sampled_from([len(text)] * 5 + [0, len(text) - 1, 2**40, 2**63]))
  file.write_bytes(struct.pack('<Q', length) + text + body)
  try:
    found = open_safetensors(file)
  except InputError as error:
    assert '\n' not in str(error) and 'lie.safetensors' in str(error)
  else:
    assert set(found) == set(tensors)
    read = {name: t.read() for name, t in found.items() if t.dtype is not None}
    assert all(x.size == 6 for x in read.values())


FIELDS = st.sampled_from(
  sorted({*LLAMA, 'architectures', 'id2label', 'num_labels', 'rope_parameters', 'attention_bias'})
)
ODD = st.sampled_from(
  [None, True, -1, 0, 3, 2**24, 2**31, 10**30, 1.5, 1e-30, float('nan'), float('inf'), '', 'gelu']
  + [[], [1], ['a'], {}, {'0': 'x'}, {'rope_type': 'yarn'}, {'type': []}, 10**400]
)


@given(FIELDS, ODD, st.booleans())
@settings(max_examples=40, deadline=None)
def test_configs_of_any_kind(tmp_path_factory, field, value, classifier):
  """One field is anything: the folder is opened or refused in one line, and soon."""
  folder = tmp_path_factory.getbasetemp() / 'odd'
  if not folder.exists():
    write_model(folder, LLAMA, llama_tensors(LLAMA))
  kind = 'LlamaForSequenceClassification' if classifier else 'LlamaForCausalLM'
  raw = LLAMA | {'architectures': [kind]} | {field: value}
  (folder / 'config.json').write_text(json.dumps(raw))
  try:
    open_folder(folder)
  except InputError as error:
    assert '\n' not in str(error)


def test_two_names_for_one_parameter(llama):
  folder = llama()
  both = llama.tensors | {'norm.weight': llama.tensors['model.norm.weight']}
  safetensors.numpy.save_file(both, folder / 'model.safetensors')
  refused(folder, 'both', 'model.norm.weight', 'norm.weight')


def test_heads_by_their_class(bert, llama):
  extra = {'classifier.weight': np.ones((3, 16), 'f'), 'classifier.bias': np.zeros(3, 'f')}
  fields = {'architectures': ['BertForTokenClassification'], 'num_labels': 3}
  model, params = interop.load(bert('bert.{}'.format, extra, **fields))
  assert model.task == 'token_classification' and model.config.each_token
  assert model.apply(params, jnp.ones((2, 5), jnp.int32)).shape == (2, 5, 3)
  refused(llama(architectures=['LlamaForMaskedLM']), 'LlamaForMaskedLM', 'LlamaForCausalLM')
  refused(llama(architectures='LlamaForCausalLM'), 'architectures', 'list')
  refused(llama(architectures=['LlamaForSequenceClassification'], id2label=[1]), 'id2label')
  folder = llama(architectures=None)
  model, _ = interop.load(folder)
  assert model.task == 'causal_lm' and model.source == str(folder)


def test_files_cut_short(llama):
  folder = llama()
  file = folder / 'model.safetensors'
  data = file.read_bytes()
  for length in (0, 5, 100, len(data) // 2, len(data) - 1):
    file.write_bytes(data[:length])
    refused(folder, 'model.safetensors', 'cut short')
  file.write_bytes(b'\xff' * len(data))
  refused(folder, 'model.safetensors', 'damaged')


def test_what_is_not_a_model(tmp_path, llama):
  refused(tmp_path / 'nowhere', 'nowhere', 'neither a folder, a file nor a reachable Hub id')
  refused(tmp_path, 'has no config.json')
  refused(llama(model_type='mamba'), "model_type is 'mamba'", 'known: bert, ', 'llama')
  folder = llama()
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  refused(folder, 'pickle', 'pytorch_model.bin', 'safetensors')
  (folder / 'pytorch_model.bin').unlink()
  refused(folder, 'has no model.safetensors')
  (folder / 'config.json').write_text('{"model_type": ')
  refused(folder, 'config.json', 'not JSON')
  (folder / 'config.json').write_text('[]')
  refused(folder, 'config.json', 'object')
  shutil.rmtree(folder)


def test_hub_ids_need_a_network_or_the_cache(tmp_path, monkeypatch):
  pytest.importorskip('huggingface_hub')
  import huggingface_hub

  asked = {}

  def offline(repo, **options):
    asked.update(options, repo=repo)
    raise OSError('no network\nand a second line')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  refused('someone/some-model', 'reachable Hub id (no network)')
  assert asked['repo'] == 'someone/some-model' and not any(
    'bin' in p for p in asked['allow_patterns']
  )


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'hidden_size': 20}, ['model.layers.0.self_attn.k_proj', '[12, 16]', '[12, 20]']),
    ({'vocab_size': None}, ['vocab_size']),
    ({'num_hidden_layers': -1}, ['num_hidden_layers', '-1']),
    ({'num_hidden_layers': 4}, ['layers.3.', 'lacks']),
    ({'num_hidden_layers': 2}, ['layers.2.', 'does not have']),
    ({'rms_norm_eps': 'x'}, ['rms_norm_eps', "'x'"]),
    ({'hidden_act': 'swiglu2'}, ['hidden_act', 'swiglu2', 'silu']),
    ({'attention_bias': True}, ['lacks', '0.self_attn.k_proj.bias', 'and 9 more']),
    ({'rope_scaling': {'rope_type': 'spiral', 'factor': 8.0}}, ['rope_scaling', 'spiral']),
    ({'num_key_value_heads': 3}, ['4 heads', '3 key-value']),
    ({'quantization_config': {'bits': 4}}, ['quantization_config']),
    ({'architectures': ['LlamaForSequenceClassification']}, ['score.weight']),
  ],
)
def test_configs_that_do_not_fit(llama, fields, words):
  folder = llama()
  raw = json.loads((folder / 'config.json').read_text()) | fields
  (folder / 'config.json').write_text(json.dumps(raw))
  refused(folder, *words)


def test_bert_that_is_another_model(bert):
  refused(bert(position_embedding_type='relative_key'), 'position_embedding_type')
  refused(bert(is_decoder=True), 'is_decoder')
  extra = {'qa_outputs.weight': np.zeros((2, 16), 'f')}
  refused(bert(extra=extra, architectures=['BertForQuestionAnswering']), 'qa_outputs.weight')


def test_tensors_that_are_left_out(bert, llama):
  harmless = {'embeddings.position_ids': np.arange(32)[None]}
  plain = interop.load(bert(extra=harmless))[1]
  head = {'cls.predictions.bias': np.zeros(40, 'f')}
  with pytest.warns(UserWarning, match=r'1 tensors are left out.*cls.predictions.bias'):
    same(plain, interop.load(bert(extra=head))[1])
  folder = llama()
  tensors = dict(llama.tensors)
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(3, 'f')
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  interop.load(folder)
  tensors['lm_head.weight'] = tensors['lm_head.weight'] + 1
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  refused(folder, 'lm_head.weight differs')


def test_integers_are_not_weights(llama):
  folder = llama()
  name = 'model.layers.1.mlp.up_proj.weight'
  tensors = llama.tensors | {name: np.zeros((24, 16), np.int8)}
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  refused(folder, name, 'I8')
