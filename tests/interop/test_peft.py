"""PEFT's files without PEFT: round trips, what the files hold, and what is refused."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from jaxtune import adapt, interop, models, tree
from jaxtune.interop.peft.save import _targets
from jaxtune.typing import InputError


def shaken(params, size=0.3):
  def shake(path, leaf):
    if not isinstance(leaf, adapt.LoRA):
      return leaf
    b = size * jax.random.normal(jax.random.key(len(path)), leaf.b.shape)
    return adapt.LoRA(leaf.base, leaf.a, b, leaf.scale)

  return tree.map_weights(shake, params)


@pytest.fixture
def tuned(bert):
  """`(source, model, params)` of a classifier with an adapter that does something."""
  source = bert()
  model, params = interop.load(source)
  model, params = models.classifier(jax.random.key(1), model, params, 3)
  params['head'] = jax.tree.map(lambda x: 20 * x + 0.5, params['head'])
  adapted = adapt.lora(jax.random.key(2), params, 4, alpha=6)
  return source, model, shaken(adapted)


def load(folder, model, params):
  """The model, under the classifier that the adapter brings, and the parameters with it."""
  model, params = interop.adapter_head(folder, model, params)
  return model, interop.load_peft(folder, model, params)


def read(folder):
  config = json.loads((folder / 'adapter_config.json').read_text())
  return config, safetensors.numpy.load_file(folder / 'adapter_model.safetensors')


def rewrite(folder, change=None, **fields):
  config, tensors = read(folder)
  (folder / 'adapter_config.json').write_text(json.dumps(config | fields))
  tensors = change(tensors) if change else tensors
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')


def test_round_trip(tuned, tmp_path):
  source, model, params = tuned
  interop.save_peft(tmp_path / 'a', model, params, source, labels=('x', 'y', 'z'))
  again, adapted = load(tmp_path / 'a', *interop.load(source))
  assert again.config == model.config
  jax.tree.map(np.testing.assert_array_equal, dict(params), dict(adapted))
  before, after = adapt.trainable(params)[0], adapt.trainable(adapted)[0]
  assert tree.paths(before) == tree.paths(after)
  assert interop.load_labels(tmp_path / 'a') == ('x', 'y', 'z')


def test_what_the_files_hold(tuned, tmp_path):
  source, model, params = tuned
  interop.save_peft(tmp_path / 'a', model, params, source, card='# Card\n')
  config, tensors = read(tmp_path / 'a')
  assert (config['r'], config['lora_alpha'], config['task_type']) == (4, 6, 'SEQ_CLS')
  assert config['target_modules'] == ['dense', 'key', 'query', 'value']
  assert config['modules_to_save'] == ['classifier']
  assert config['base_model_name_or_path'] == str(source)
  key = 'base_model.model.bert.encoder.layer.1.intermediate.dense.lora_'
  leaf = params['encoder']['0-1']['mlp']['up']
  np.testing.assert_array_equal(tensors[f'{key}A.weight'], leaf.a[1].T)
  np.testing.assert_array_equal(tensors[f'{key}B.weight'], leaf.b[1].T)
  # ΔW of PEFT, [out, in], is the transpose of ours.
  delta = 6 / 4 * tensors[f'{key}B.weight'] @ tensors[f'{key}A.weight']
  ours = leaf.materialize()[1] - leaf.base[1]
  np.testing.assert_allclose(delta.T, ours, atol=1e-6)
  head = params['head']
  np.testing.assert_array_equal(tensors['base_model.model.classifier.weight'], head['dense'].T)
  np.testing.assert_array_equal(tensors['base_model.model.classifier.bias'], head['dense_bias'])
  assert len(tensors) == 2 * (2 * 6 + 1) + 2
  assert (tmp_path / 'a' / 'README.md').read_text() == '# Card\n'
  assert interop.load_labels(tmp_path / 'a') is None


@pytest.mark.slow
def test_segments_of_unlike_rank(llama, tmp_path):
  source = llama()
  model, base = interop.load(source)
  params = {**base, 'decoder': models.cut(base['decoder'], 1)}
  adapted = adapt.lora(jax.random.key(2), params, 4, alpha=6, select='0-0/attn/')
  adapted = adapt.lora(jax.random.key(3), adapted, 2, alpha=8, select='1-2/(attn/q|mlp/up)')
  params = shaken(adapted)
  interop.save_peft(tmp_path / 'a', model, params, source)
  config, _ = read(tmp_path / 'a')
  assert config['task_type'] == 'CAUSAL_LM' and config['modules_to_save'] is None
  modules = {'model.layers.0.self_attn.q_proj', 'model.layers.2.mlp.up_proj'}
  assert len(modules & set(config['rank_pattern'])) == 1  # one rank is the general one
  same, again = load(tmp_path / 'a', model, base)
  assert same.config == model.config
  cut = {**again, 'decoder': models.cut(again['decoder'], 1)}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), adapt.merge(params), adapt.merge(cut)
  )
  q = again['decoder']['0-2']['attn']['q']  # ranks 4, 2, 2 in one stack
  assert q.a.shape == (3, 16, 4) and not q.a[1:, :, 2:].any() and not q.b[1:, 2:].any()
  np.testing.assert_allclose(q.scale, [1.5, 4, 4])
  up = again['decoder']['0-2']['mlp']['up']
  assert not up.a[0].any() and not up.b[0].any()  # no adapter there
  assert not isinstance(again['decoder']['0-2']['mlp']['gate'], adapt.LoRA)


def test_rslora_and_patterns(tuned, tmp_path):
  source, model, params = tuned
  interop.save_peft(tmp_path / 'a', model, params, source)
  rewrite(tmp_path / 'a', use_rslora=True, alpha_pattern={r'layer\.1\.attention.self.key': 10})
  again = load(tmp_path / 'a', *interop.load(source))[1]
  attention = again['encoder']['0-1']['attn']
  np.testing.assert_allclose(attention['q'].scale, [3, 3])  # 6 / sqrt(4)
  np.testing.assert_allclose(attention['k'].scale, [3, 5])


def test_what_the_base_lacks_goes_along(tuned, bert, tmp_path):
  source, model, params = tuned
  tensors = {n: x for n, x in bert.tensors.items() if 'pooler' not in n}
  safetensors.numpy.save_file(tensors, source / 'model.safetensors')
  interop.save_peft(tmp_path / 'a', model, params, source)
  config, tensors = read(tmp_path / 'a')
  assert config['modules_to_save'] == ['bert.pooler.dense', 'classifier']
  merged = adapt.merge(params)['pooler']['dense']
  np.testing.assert_array_equal(tensors['base_model.model.bert.pooler.dense.weight'], merged.T)
  assert not any('pooler.dense.lora' in name for name in tensors)
  again, adapted = load(tmp_path / 'a', *interop.load(source))
  assert again.config == model.config
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    adapt.merge(params),
    adapt.merge(adapted),
  )
  rewrite(tmp_path / 'a', lambda t: {n: x for n, x in t.items() if 'pooler' not in n})
  with pytest.raises(InputError, match='pooler.dense.* that neither it nor the base'):
    load(tmp_path / 'a', *interop.load(source))


def test_adapters_that_cannot_be_written(tuned, llama, tmp_path):
  source, model, params = tuned
  out = tmp_path / 'a'

  def refused(words, *arguments, **options):
    with pytest.raises(InputError, match=words):
      interop.save_peft(out, *arguments, **options)
    assert not out.exists()

  refused('changes nothing', model, shaken(params, 0.0), source)
  refused('NaN', model, shaken(params, float('nan')), source)
  refused('hold no adapter', model, adapt.merge(params), source)
  refused('3 outputs', model, params, source, labels=('x', 'y'))
  twice = adapt.lora(jax.random.key(0), params, 2)
  refused('an adapter on an adapter', model, twice, source)
  under = adapt.train_also(params, [(r'attn/q/base$', True)])
  refused('trained under its adapter', model, under, source)
  source = llama()
  model, params = interop.load(source)
  rows = adapt.dora(jax.random.key(0), params, 2, select='embed/tokens|attn/q')
  refused('is an embedding', model, rows, source)


def fused(model_type, **fields):
  config = models.DecoderConfig(
    model_type=model_type, vocabulary=12, width=8, hidden=12, layers=2, heads=2, **fields
  )
  model = models.build(config)
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32), model.shapes()
  )


def test_experts_have_no_adapter_of_their_own(tmp_path):
  model, params = fused('mixtral', experts=2, expert_hidden=4)
  adapted = shaken(adapt.lora(jax.random.key(0), params, 2, select='experts/up$'))
  with pytest.raises(InputError, match='holds many experts'):
    interop.save_peft(tmp_path / 'a', model, adapted, 'someone/base')


def test_parts_of_a_tensor_share_one_adapter(tmp_path):
  """A of all of them under each other, and B with a block for each."""
  model, params = fused('phi3')
  adapted = shaken(adapt.lora(jax.random.key(0), params, 2, select='attn/[qv]$|mlp/'))
  interop.save_peft(tmp_path / 'a', model, adapted, 'someone/base')
  config, tensors = read(tmp_path / 'a')
  assert config['target_modules'] == ['down_proj', 'gate_up_proj', 'qkv_proj']
  name = 'base_model.model.model.layers.0.self_attn.qkv_proj.lora_'
  assert tensors[f'{name}A.weight'].shape == (4, 8) and tensors[f'{name}B.weight'].shape == (24, 4)
  assert not tensors[f'{name}B.weight'][8:16].any()  # k has none
  again = load(tmp_path / 'a', model, params)[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    adapt.merge(adapted),
    adapt.merge(again),
  )


def test_the_whole_head_goes_along(tmp_path):
  """RoBERTa's has a layer in front of the matrix, which PEFT trains and saves with it."""
  config = models.EncoderConfig(
    model_type='roberta',
    vocabulary=12,
    width=8,
    hidden=12,
    layers=2,
    heads=2,
    positions=16,
    types=1,
    pooler=False,
    text_head=models.Head('tanh'),
  )
  body = models.build(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype('f'), body.shapes())
  model, base = models.classifier(jax.random.key(1), body, params, 3)
  adapted = adapt.lora(jax.random.key(2), base, 2)
  tuned = shaken(adapted)
  interop.save_peft(tmp_path / 'a', model, tuned, 'someone/base')
  saved, tensors = read(tmp_path / 'a')
  assert saved['modules_to_save'] == ['classifier']
  whole = {n for n in tensors if '.lora_' not in n}
  kinds = [f'{layer}.{kind}' for layer in ('dense', 'out_proj') for kind in ('bias', 'weight')]
  assert whole == {f'base_model.model.classifier.{kind}' for kind in kinds}
  again, read_back = load(tmp_path / 'a', body, params)
  assert again.config == model.config
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    adapt.merge(tuned),
    adapt.merge(read_back),
  )
  rewrite(tmp_path / 'a', lambda t: {n: x for n, x in t.items() if 'classifier.dense' not in n})
  with pytest.raises(InputError, match='through classifier.dense.* that neither it nor the base'):
    load(tmp_path / 'a', body, params)


@pytest.mark.parametrize(
  'fields, change, words',
  [
    ({'peft_type': 'XYZ'}, None, "peft_type is 'XYZ'"),
    ({'use_dora': True}, None, 'lacks .*lora_magnitude_vector'),
    ({'something_new': {'a': 1}}, None, 'something_new'),
    ({'init_lora_weights': 'pissa_niter_4'}, None, 'pissa'),
    ({'r': 0}, None, 'r is 0'),
    ({'lora_alpha': None}, None, 'lora_alpha'),
    ({'r': 5}, None, r'lora_A.weight is \[4, 16\] F32.* make it \[5, 16\]'),
    ({}, lambda t: {n: x for n, x in t.items() if '0.output.dense.lora_B' not in n}, 'lacks'),
    ({}, lambda t: t | {'base_model.model.bert.x.lora_A.weight': np.ones((4, 16))}, 'no place for'),
    ({}, lambda t: t | {'base_model.model.x.lora_embedding_A': np.ones((4, 16))}, 'no place for'),
    ({}, lambda t: {}, 'holds no tensors'),
    ({}, lambda t: {n: x * np.float32('nan') for n, x in t.items()}, 'holds NaN'),
    ({'target_modules': ['q_proj', 'v_proj']}, None, 'match no module of this model'),
    ({'target_modules': r'.*\.q_proj'}, None, 'match no module of this model'),
    (
      {'target_modules': ['query', 'key', 'value']},
      None,
      'do not name that module, and PEFT would',
    ),
    ({'target_modules': '('}, None, 'must be a list of names or a regular expression'),
  ],
)
def test_adapters_that_cannot_be_read(tuned, tmp_path, fields, change, words):
  source, model, params = tuned
  interop.save_peft(tmp_path / 'a', model, params, source)
  rewrite(tmp_path / 'a', change, **fields)
  with pytest.raises(InputError, match=words) as error:
    load(tmp_path / 'a', *interop.load(source))
  assert '\n' not in str(error.value)


def test_adapters_for_another_base(tuned, tmp_path):
  """The same shapes, but other embeddings: jaxtune.json knows which base it was."""
  source, model, params = tuned
  interop.save_peft(tmp_path / 'a', model, params, source)
  body, base = interop.load(source)
  other = base['embed'] | {'tokens': base['embed']['tokens'] + 1}
  with pytest.raises(InputError, match="base whose 'embed/tokens' is another than this model's"):
    load(tmp_path / 'a', body, base | {'embed': other})
  # A base held in bfloat16 is the same base.
  low = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), base)
  load(tmp_path / 'a', body, low)


def test_files_that_point_outside_of_their_folder(tuned, tmp_path):
  source, model, params = tuned
  interop.save_peft(tmp_path / 'a', model, params, source)
  weights = tmp_path / 'a' / 'adapter_model.safetensors'
  weights.rename(tmp_path / 'elsewhere.safetensors')
  weights.symlink_to(tmp_path / 'elsewhere.safetensors')
  with pytest.raises(InputError, match="points outside of the adapter's folder"):
    load(tmp_path / 'a', *interop.load(source))
  # As the Hub's cache has it: snapshots/<commit>/file -> ../../blobs/<digest>.
  cache = tmp_path / 'models--x' / 'snapshots' / 'abc'
  cache.mkdir(parents=True)
  (tmp_path / 'models--x' / 'blobs').mkdir()
  (tmp_path / 'elsewhere.safetensors').rename(tmp_path / 'models--x' / 'blobs' / 'one')
  (cache / 'adapter_model.safetensors').symlink_to('../../blobs/one')
  (tmp_path / 'a' / 'adapter_config.json').rename(cache / 'adapter_config.json')
  load(cache, *interop.load(source))


def test_folders_that_are_no_adapter(tuned, llama, tmp_path):
  source, model, params = tuned
  base = interop.load(source)
  with pytest.raises(InputError, match='has no adapter_config.json'):
    load(source, *base)
  interop.save_peft(tmp_path / 'a', model, params, source)
  with pytest.raises(InputError, match='already has an adapter'):
    load(tmp_path / 'a', model, params)
  with pytest.raises(InputError, match='no place for'):
    load(tmp_path / 'a', *interop.load(llama()))
  weights = tmp_path / 'a' / 'adapter_model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-5])
  with pytest.raises(InputError, match='cut short'):
    load(tmp_path / 'a', *base)
  weights.rename(tmp_path / 'a' / 'adapter_model.bin')
  with pytest.raises(InputError, match='pickle'):
    load(tmp_path / 'a', *base)


PARTS = st.sampled_from(['a', 'b', 'ab', '1', '11', 'dense', 'query'])
MODULES = st.sets(st.lists(PARTS, min_size=1, max_size=4).map('.'.join), min_size=1, max_size=12)


@given(MODULES, st.data())
def test_targets_name_the_adapted_modules_and_no_other(modules, data):
  """PEFT: a module is a target if its name is one, or ends with a dot and one."""
  # A module that is the end of another's name cannot be told from it by PEFT's rule.
  modules = {m for m in modules if not any(o.endswith(f'.{m}') for o in modules)}
  adapted = data.draw(st.sets(st.sampled_from(sorted(modules)), min_size=1))
  targets = _targets(adapted, modules)
  found = {m for m in modules for t in targets if m == t or m.endswith(f'.{t}')}
  assert found == adapted
  assert not any(re.search(r'[^\w.]', target) for target in targets)
