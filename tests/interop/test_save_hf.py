"""Whole models: what is saved loads bit by bit, and a folder appears whole or not at all."""

import json
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxtune import adapt, interop, models, tree
from jaxtune.typing import InputError


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('known', [True, False])
def test_llama_round_trip(llama, tmp_path, dtype, tied, known):
  source = llama(dtype, tie_word_embeddings=tied)
  model, params = interop.load(source)
  interop.save_hf(tmp_path / 'out', model, params, source=source if known else None)
  again, read = interop.load(tmp_path / 'out')
  assert again.config == model.config
  same(params, read)
  written = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(written) == set(llama.tensors)
  for name, value in llama.tensors.items():
    np.testing.assert_array_equal(written[name], value)
  with safetensors.safe_open(tmp_path / 'out' / 'model.safetensors', 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}


def test_minilm_round_trip_with_its_tokenizer(minilm, tmp_path):
  model, params = interop.load(minilm)
  interop.save_hf(tmp_path / 'out', model, params, source=minilm, card='# Card\n')
  same(params, interop.load(tmp_path / 'out')[1])
  for name in ('tokenizer.json', 'tokenizer_config.json', 'vocab.txt'):
    assert (tmp_path / 'out' / name).read_bytes() == (minilm / name).read_bytes()
  assert (tmp_path / 'out' / 'README.md').read_text() == '# Card\n'


def test_classifier_with_labels(bert, tmp_path):
  source = bert()
  model, params = interop.load(source)
  model, params = models.classifier(jax.random.key(0), model, params, 2)
  interop.save_hf(tmp_path / 'out', model, params, source, labels=('no', 'yes'))
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['architectures'] == ['BertForSequenceClassification']
  assert config['label2id'] == {'no': 0, 'yes': 1}
  assert interop.load_labels(tmp_path / 'out') == ('no', 'yes')
  names = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert 'classifier.weight' in names and 'bert.pooler.dense.weight' in names
  again, read = interop.load(tmp_path / 'out')
  assert again.config == model.config
  same(params, read)
  with pytest.raises(InputError, match='2 outputs'):
    interop.save_hf(tmp_path / 'out', model, params, labels=('one',))
  assert interop.load_labels(tmp_path / 'out') == ('no', 'yes')  # the earlier export stands


def test_adapters_are_merged_and_segments_joined(llama, tmp_path):
  model, params = interop.load(llama())
  cut = {**params, 'decoder': models.cut(params['decoder'], 2)}
  adapted = adapt.lora(jax.random.key(0), cut, 2)
  tuned = tree.map_weights(
    lambda p, x: adapt.LoRA(x.base, x.a, x.b + 0.1, x.scale) if isinstance(x, adapt.LoRA) else x,
    adapted,
  )
  interop.save_hf(tmp_path / 'out', model, tuned)
  segments = adapt.merge(tuned)['decoder']
  want = jax.tree.map(lambda a, b: np.concatenate([a, b]), segments['0-1'], segments['2-2'])
  _, read = interop.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, read['decoder']['0-2'], want)
  assert (
    np.abs(read['decoder']['0-2']['attn']['q'] - params['decoder']['0-2']['attn']['q']).max() > 0
  )


def test_shards(llama, tmp_path, monkeypatch):
  """Files of at most that size, one held at a time, and an index that says where all is."""
  source = llama(ml_dtypes.bfloat16)
  model, params = interop.load(source)
  held, save = [], safetensors.numpy.save_file

  def watched(tensors, *others, **options):
    held.append(sum(x.nbytes for x in tensors.values()))
    save(tensors, *others, **options)

  monkeypatch.setattr(safetensors.numpy, 'save_file', watched)
  out = tmp_path / 'out'
  interop.save_hf(out, model, params, max_shard_bytes=3000)
  total = sum(x.nbytes for x in llama.tensors.values())
  assert max(held) <= 3000 and sum(held) == total and len(held) > 3
  index = json.loads((out / 'model.safetensors.index.json').read_text())
  assert index['metadata'] == {'total_size': total}
  assert set(index['weight_map']) == set(llama.tensors)
  names = sorted(p.name for p in out.glob('*.safetensors'))
  assert names == [f'model-{i:05}-of-{len(held):05}.safetensors' for i in range(1, len(held) + 1)]
  for name, file in index['weight_map'].items():
    found = safetensors.numpy.load_file(out / file)[name]
    np.testing.assert_array_equal(found, llama.tensors[name])
  same(params, interop.load(out)[1])
  interop.save_hf(out, model, params, max_shard_bytes=1)  # a tensor a file, in the old one's place
  assert len(list(out.glob('*.safetensors'))) == len(llama.tensors)
  interop.save_hf(out, model, params)
  assert sorted(os.listdir(out)) == ['config.json', 'model.safetensors']


KEPT = {
  'README.md': b'# Theirs',
  'LICENSE': b'free',
  'preprocessor_config.json': b'{}',
  'spiece.model': b'\x0a\x0e',
  'chat_template.jinja': b'{{ x }}',
  '1_Pooling/config.json': b'{"pooling_mode_mean_tokens": true}',
}
LEFT = {
  'pytorch_model.bin': b'x',
  'training_args.bin': b'x',
  'odd': b'\x80\x04pickle',
  'archive': b'PK\x03\x04',
  'onnx/model.onnx': b'x',
  'onnx/config.json': b'{}',
  '.cache/x.json': b'{}',
}


def lay(folder, files):
  for name, content in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def test_what_the_source_has_is_kept(llama, tmp_path):
  source = llama(my_field=[1, 2], transformers_version='1')
  lay(source, KEPT | LEFT)
  model, params = interop.load(source)
  out = tmp_path / 'out'
  for card in (None, '# Mine'):  # the second time it replaces the first
    interop.save_hf(out, model, params, card=card)
    found = {p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()}
    assert found == {*KEPT, 'config.json', 'model.safetensors'}
    for name, content in KEPT.items():
      want = card.encode() if card and name == 'README.md' else content
      assert (out / name).read_bytes() == want
  raw = json.loads((out / 'config.json').read_text())
  assert raw['my_field'] == [1, 2] and 'transformers_version' not in raw
  (out / 'LICENSE').write_text('changed by hand')
  with pytest.raises(InputError, match=r'something else than an export \(LICENSE\)'):
    interop.save_hf(out, model, params)


def test_the_sources_names_are_kept(bert, tmp_path):
  """A bare body with the prefix of a whole model's, and LayerNorm's old names."""
  source = bert(lambda n: 'bert.' + n.replace('LayerNorm.weight', 'LayerNorm.gamma'))
  model, params = interop.load(source)
  interop.save_hf(tmp_path / 'out', model, params)
  written = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(written) == set(bert.tensors)
  model, params = models.classifier(jax.random.key(0), model, params, 2)  # another class
  interop.save_hf(tmp_path / 'out', model, params)
  written = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert 'bert.embeddings.LayerNorm.weight' in written and 'classifier.bias' in written


def test_a_source_that_has_gone_or_changed(llama, bert, tmp_path):
  source = llama(my_field=1)
  model, params = interop.load(source)
  (source / 'model.safetensors').unlink()  # its configuration is still there
  interop.save_hf(tmp_path / 'out', model, params)
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['my_field'] == 1
  other = bert()
  (other / 'notes.txt').write_text('of another model')
  shutil.rmtree(source)
  other.rename(source)
  interop.save_hf(tmp_path / 'out', model, params)
  shutil.rmtree(source)
  interop.save_hf(tmp_path / 'out', model, params)
  assert sorted(os.listdir(tmp_path / 'out')) == ['config.json', 'model.safetensors']
  assert 'my_field' not in json.loads((tmp_path / 'out' / 'config.json').read_text())
  same(params, interop.load(tmp_path / 'out')[1])
  with pytest.raises(InputError, match="model_type is 'bert', but the model is 'llama'"):
    interop.save_hf(tmp_path / 'out', model, params, source=bert())
  with pytest.raises(InputError, match='neither a folder'):
    interop.save_hf(tmp_path / 'out', model, params, source=tmp_path / 'nowhere')


def test_a_body_without_a_head(llama, tmp_path):
  source = llama(architectures=['LlamaModel'], tie_word_embeddings=False)
  tensors = {n.removeprefix('model.'): x for n, x in llama.tensors.items() if 'lm_head' not in n}
  safetensors.numpy.save_file(tensors, source / 'model.safetensors')
  model, params = interop.load(source)
  assert model.task == 'features' and 'head' not in params
  assert model.apply(params, jnp.ones((1, 3), jnp.int32)).shape == (1, 3, 16)
  interop.save_hf(tmp_path / 'out', model, params)
  assert set(safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')) == set(tensors)
  raw = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert raw['architectures'] == ['LlamaModel']


@pytest.mark.slow
def test_gguf_becomes_a_folder(smollm2, tmp_path):
  model, params = interop.load(smollm2)
  interop.save_hf(tmp_path / 'out', model, params, source=smollm2)
  again, read = interop.load(tmp_path / 'out')
  assert again.config == model.config
  same(params, read)
  assert interop.special_tokens(tmp_path / 'out') == interop.special_tokens(smollm2)
  text = '<|im_start|>user\nHow are you, 42?<|im_end|>'
  ids = [interop.load_tokenizer(s).encode(text).ids for s in (tmp_path / 'out', smollm2)]
  assert ids[0] == ids[1]


def test_a_folder_with_other_files_is_not_touched(llama, tmp_path):
  model, params = interop.load(llama())
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'thesis.tex').write_text('mine')
  with pytest.raises(InputError, match=r'out: holds something else than an export \(thesis.tex\)'):
    interop.save_hf(out, model, params)
  assert os.listdir(out) == ['thesis.tex']
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='is a file'):
    interop.save_hf(tmp_path / 'file', model, params)


def test_a_failure_leaves_what_was_there(llama, tmp_path, monkeypatch):
  source = llama()
  model, params = interop.load(source)
  interop.save_hf(tmp_path / 'out', model, params)
  before = {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()}

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(sys.modules['jaxtune.interop.save_hf'], 'write_json', full)
  with pytest.raises(OSError, match='No space'):
    interop.save_hf(tmp_path / 'out', model, params)
  assert {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()} == before
  assert sorted(os.listdir(tmp_path)) == ['llama', 'out']


def test_a_module_of_ones_own_has_no_names(tmp_path):
  import flax.linen as nn

  model = models.from_linen(nn.Dense(2), jnp.zeros((1, 2)))
  with pytest.raises(InputError, match='module of your own'):
    interop.save_hf(tmp_path / 'out', model, model.init(jax.random.key(0)))
