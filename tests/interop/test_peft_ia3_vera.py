"""What PEFT's files of IA3 and VeRA cannot hold is refused, and what they hold without PEFT."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxtune import adapt, interop, models, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
SIZES = {'vocabulary': 8, 'width': 4, 'hidden': 6, 'layers': 2, 'heads': 2, 'kv_heads': 2}
FIELDS = {'norm': 'layer', 'gated': False, 'qkv_bias': True, 'o_bias': True, 'mlp_bias': True}
GPT2 = models.build(models.DecoderConfig(**SIZES, **FIELDS, model_type='gpt2', tied=True))
LLAMA = models.build(models.DecoderConfig(**SIZES, model_type='llama', tied=True))


def random(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), jax.eval_shape(model.init, KEY)
  )


def moved(params):
  rng = np.random.default_rng(1)
  fields = {adapt.IA3: ['l'], adapt.VeRA: ['lambda_b']}

  def move(_, leaf):
    names = fields.get(type(leaf), [])
    values = {n: jnp.float32(rng.normal(size=getattr(leaf, n).shape)) for n in names}
    return dataclasses.replace(leaf, **values) if values else leaf

  return tree.map_weights(move, params)


def written(folder):
  config = json.loads((folder / 'adapter_config.json').read_text())
  return config, safetensors.numpy.load_file(folder / 'adapter_model.safetensors')


def test_ia3_of_a_tensor_that_holds_several(tmp_path):
  """Ones for the queries, which have no vector; the sides of the MLP by a regular expression."""
  params = random(GPT2)
  tuned = moved(adapt.ia3(KEY, params))
  interop.save_peft(tmp_path, GPT2, tuned, 'base')
  config, tensors = written(tmp_path)
  assert config['target_modules'] == ['c_attn', 'mlp.c_proj']
  assert config['feedforward_modules'] == r'transformer\.h\.\d+\.mlp\.c_proj'
  layers = tuned['decoder']['0-1']
  name = 'base_model.model.transformer.h.1.{}.ia3_l'
  own = [np.ones(4), layers['attn']['k'].l[1], layers['attn']['v'].l[1]]
  np.testing.assert_array_equal(tensors[name.format('attn.c_attn')][:, 0], np.concatenate(own))
  np.testing.assert_array_equal(tensors[name.format('mlp.c_proj')][0], layers['mlp']['down'].l[1])
  again = interop.load_peft(tmp_path, GPT2, params)
  for way in ('merge', 'train'):
    a, b = ((adapt.merge(p) if way == 'merge' else adapt.trainable(p)[0]) for p in (tuned, again))
    if way == 'merge':
      jax.tree.map(np.testing.assert_array_equal, a, b)
    else:  # the ones train as well now, as they would there
      assert set(tree.paths(b)) - set(tree.paths(a)) == {'decoder/0-1/attn/q/l'}


def test_veras_codes_survive_a_round_trip(tmp_path):
  """On our grid of numbers they come back as codes of one byte, if the largest is among them."""
  params = random(LLAMA)
  tuned = moved(adapt.vera(KEY, params, 300, select='attn/[qk]$'))
  interop.save_peft(tmp_path, LLAMA, tuned, 'base')
  again = interop.load_peft(tmp_path, LLAMA, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dict(tuned), dict(again))
  q = again['decoder']['0-1']['attn']['q']
  assert q.a.dtype == q.b.dtype == jnp.int8
  assert set(tree.paths(adapt.trainable(again)[0])) == set(tree.paths(adapt.trainable(tuned)[0]))


def twice(params):
  once = adapt.vera(KEY, params, 3, select='attn/q$', also=None)
  return moved(adapt.vera(jax.random.key(1), once, 3, select='attn/k$', also=None))


@pytest.mark.parametrize(
  'model, tune, words',
  [
    (
      GPT2,
      lambda p: moved(adapt.ia3(KEY, p, inside='attn/')),
      'h.0.attn.c_attn is one module of 3',
    ),
    (
      GPT2,
      lambda p: moved(adapt.ia3(KEY, p, select='attn/[qkv]$', inside='attn/')),
      'scales in unlike ways on the inputs; write the whole model',
    ),
    (LLAMA, lambda p: adapt.ia3(KEY, p), 'changes nothing'),
    (LLAMA, lambda p: moved(adapt.ia3(KEY, p, select='embed/tokens')), 'for which PEFT has no IA3'),
    (LLAMA, lambda p: adapt.vera(KEY, p, 2), 'changes nothing'),
    (LLAMA, lambda p: moved(adapt.vera(KEY, p, 2, select='embed/')), 'for which PEFT has no VeRA'),
    (LLAMA, twice, 'has other random matrices than the rest.*one call of vera'),
    (GPT2, lambda p: moved(adapt.vera(KEY, p, 2, select='attn/q$')), 'c_attn holds several'),
  ],
)
def test_what_a_file_cannot_hold(tmp_path, model, tune, words):
  with pytest.raises(InputError, match=words) as error:
    interop.save_peft(tmp_path / 'out', model, tune(random(model)), 'base')
  assert '\n' not in str(error.value)


def test_a_run_knows_before_it_trains():
  for method, words in {'vera': 'c_attn holds several', 'ia3': None}.items():
    found = interop.adapter_obstacle(GPT2, adapt.create(method, KEY, random(GPT2)))
    assert (found is None) if words is None else words in found


def change(folder, tensors=None, **fields):
  config, held = written(folder)
  (folder / 'adapter_config.json').write_text(json.dumps(config | fields))
  held = {name: x for name, x in (held | (tensors or {})).items() if x is not None}
  safetensors.numpy.save_file(held, folder / 'adapter_model.safetensors')


K = 'base_model.model.model.layers.0.self_attn.k_proj.'
BROKEN = {
  'side': ('ia3', {f'{K}ia3_l': np.ones((5, 1), np.float32)}, {}, r'\[5, 1\].*make it \[4, 1\]'),
  'nan': ('ia3', {f'{K}ia3_l': np.full((4, 1), np.nan, np.float32)}, {}, 'NaN'),
  'no pair': ('vera', {'base_model.vera_A': None}, {}, 'lacks base_model.vera_A.*save_projection'),
  'no B': ('vera', {'base_model.vera_B': None}, {}, 'lacks the tensor .*base_model.vera_B'),
  'rank': ('vera', {}, {'r': 5}, r'vera_A is \[2, 4\] F32.* make it \[5, 4\]'),
  'no rank': ('vera', {}, {'r': None}, "no field 'r'"),
  'flat': ('vera', {'base_model.vera_B': np.ones(3, np.float32)}, {}, r'vera_B is \[3\]'),
  'small': ('vera', {'base_model.vera_A': np.ones((2, 3), np.float32)}, {}, '3x4.* is 4x4'),
  'one': ('vera', {f'{K}vera_lambda_b': None}, {}, 'lacks the tensor .*vera_lambda_b'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_files_that_cannot_be_read(tmp_path, name):
  method, tensors, fields, words = BROKEN[name]
  options = {'rank': 2} if method == 'vera' else {}
  params = random(LLAMA)
  tuned = adapt.create(method, KEY, params, select='attn/k$', **options)
  interop.save_peft(tmp_path, LLAMA, moved(tuned), 'base')
  change(tmp_path, tensors, **fields)
  with pytest.raises(InputError, match=words) as error:
    interop.load_peft(tmp_path, LLAMA, params)
  assert '\n' not in str(error.value)
