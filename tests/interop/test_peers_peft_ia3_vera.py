"""IA3 and VeRA: ours move the real torch model as they move ours, and PEFT's ours as theirs."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, models, tree
from tests.interop import decoders, families
from tests.interop.adapters import agree

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

KEY = jax.random.key(5)
BERT = {'vocab_size': 40, 'hidden_size': 24, 'intermediate_size': 36, 'pad_token_id': 0} | {
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'max_position_embeddings': 16,
}
T5 = {'vocab_size': 40, 'd_model': 24, 'd_kv': 8, 'd_ff': 20, 'num_layers': 2, 'num_heads': 3}
BASES = {
  'llama': ('LlamaForCausalLM', decoders.SIZES | {'tie_word_embeddings': True}, 'CAUSAL_LM'),
  'bert': ('BertForSequenceClassification', BERT | {'num_labels': 3}, 'SEQ_CLS'),
  'bare bert': ('BertModel', BERT, 'FEATURE_EXTRACTION'),
  'gpt2': ('GPT2LMHeadModel', decoders.GPT2, 'CAUSAL_LM'),
  'gpt_neox': ('GPTNeoXForCausalLM', decoders.NEOX, 'CAUSAL_LM'),
  't5': ('T5ForConditionalGeneration', T5, 'SEQ_2_SEQ_LM'),
}
DATA = families.batch(40, 9, 'right')


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  made = families.maker(tmp_path_factory.mktemp('peers'))
  return lambda base: made(BASES[base][0], **BASES[base][1])


def theirs(model):
  given = {'decoder_input_ids': DATA.tokens} if model.config.is_encoder_decoder else {}
  return families.outputs(
    model.eval(), input_ids=DATA.tokens, attention_mask=DATA.mask.astype(int), **given
  )


def ours(model, params):
  given = {'targets': DATA.tokens} if model.family == 'encoder_decoder' else {}
  return np.asarray(jax.jit(model.apply)(params, DATA.tokens, DATA.mask, **given))


def shaken(params, size=0.4):
  """Every trained vector as training might have left it."""

  def shake(path, leaf):
    fields = {adapt.IA3: ['l'], adapt.VeRA: ['lambda_d', 'lambda_b']}.get(type(leaf), [])
    noise = {
      name: getattr(leaf, name)
      + size * jax.random.normal(jax.random.key(len(path)), getattr(leaf, name).shape)
      for name in fields
    }
    return dataclasses.replace(leaf, **noise) if noise else leaf

  return tree.map_weights(shake, params)


def one_for_all(params):
  """The inputs of q, k and v scaled by the same numbers."""
  tuned = shaken(adapt.ia3(KEY, params, select='attn/[qkv]$', inside=''))
  layers = tuned['decoder']['0-2']['attn']
  same = {name: dataclasses.replace(layers[name], l=layers['q'].l) for name in 'qkv'}
  return tree.map_weights(lambda path, x: same[path[-1]] if isinstance(x, adapt.IA3) else x, tuned)


def uneven(params):
  """A layer that scales other sides than the rest, of other matrices."""
  params = {**params, 'decoder': models.cut(params['decoder'], 1)}
  return shaken(
    adapt.ia3(
      KEY,
      params,
      select='0-0/(attn|mlp)/|attn/[kv]$|mlp/down',
      inside='0-0/mlp/(down|up)|1-2/attn/v',
    )
  )


EXPORTS = {
  'llama, IA3': ('llama', lambda p: shaken(adapt.ia3(KEY, p))),
  'llama, IA3 by layer': ('llama', uneven),
  'bert, IA3': ('bert', lambda p: shaken(adapt.ia3(KEY, p))),
  'bare bert, IA3 everywhere': (
    'bare bert',
    lambda p: shaken(adapt.ia3(KEY, p, select=adapt.LINEAR, inside=r'(mlp/down|attn/o)$')),
  ),
  'gpt2, IA3': ('gpt2', lambda p: shaken(adapt.ia3(KEY, p))),
  'gpt2, IA3 on the inputs': ('gpt2', one_for_all),
  'gpt_neox, IA3': ('gpt_neox', lambda p: shaken(adapt.ia3(KEY, p))),
  't5, IA3': ('t5', lambda p: shaken(adapt.ia3(KEY, p))),
  'llama, VeRA': ('llama', lambda p: shaken(adapt.vera(KEY, p, 8))),
  'llama, VeRA on some': ('llama', lambda p: shaken(adapt.vera(KEY, p, 6, select='attn/[kv]|up$'))),
  'bert, VeRA': ('bert', lambda p: shaken(adapt.vera(KEY, p, 8))),
  'bare bert, VeRA': (
    'bare bert',
    lambda p: shaken(adapt.vera(KEY, p, 40, select='mlp/(up|down)$')),
  ),
  'gpt2, VeRA': ('gpt2', lambda p: shaken(adapt.vera(KEY, p, 8, select='(mlp/(up|down)|attn/o)$'))),
}


@pytest.mark.parametrize('name', EXPORTS)
def test_exported_to_peft_and_read_back(make, tmp_path, name):
  base, tune = EXPORTS[name]
  peer = make(base)
  tuned = tune(peer.params)
  interop.save_peft(tmp_path / 'out', peer.model, tuned, peer.folder)
  moved = peft.PeftModel.from_pretrained(copy.deepcopy(peer.theirs), tmp_path / 'out')
  want = ours(peer.model, tuned)
  agree(ours(peer.model, peer.params), want, theirs(moved), f'{name}, ours in PEFT', mask=DATA.mask)
  merged = moved.merge_and_unload()
  agree(
    ours(peer.model, peer.params), want, theirs(merged), f'{name}, merged by PEFT', mask=DATA.mask
  )
  again = interop.load_peft(tmp_path / 'out', peer.model, peer.params)
  np.testing.assert_allclose(ours(peer.model, again), want, atol=2e-5 * np.abs(want).max())


def test_a_module_that_goes_in_whole_has_its_bias_scaled(make, tmp_path):
  """Without a pooler in the base, ours goes with the adapter, merged; so does save_hf's."""
  import transformers

  folder = tmp_path / 'base'
  transformers.BertModel(
    transformers.BertConfig(**BERT, initializer_range=0.2), add_pooling_layer=False
  ).save_pretrained(folder)
  model, params = interop.load(folder)
  model, params = models.classifier(KEY, model, params, 2)
  params['head']['dense'] = params['head']['dense'] * 50
  params['pooler']['dense_bias'] = params['pooler']['dense_bias'] + 0.5
  tuned = shaken(adapt.ia3(KEY, params, select='pooler/dense$|attn/v$'), 2.0)
  base, want = ours(model, params), ours(model, tuned)
  interop.save_peft(tmp_path / 'out', model, tuned, folder)
  kind = transformers.BertForSequenceClassification
  moved = peft.PeftModel.from_pretrained(kind.from_pretrained(folder), tmp_path / 'out')
  agree(base, want, theirs(moved), 'pooler, ours in PEFT', mask=DATA.mask)
  interop.save_hf(tmp_path / 'whole', model, tuned)
  agree(
    base,
    want,
    theirs(kind.from_pretrained(tmp_path / 'whole')),
    'pooler, ours whole',
    mask=DATA.mask,
  )


def everywhere(feedforward):
  return {'target_modules': 'all-linear', 'feedforward_modules': feedforward}


IA3 = {
  'llama, default': ('llama', {}),
  'llama, list': (
    'llama',
    {'target_modules': ['q_proj', 'layers.1.mlp.up_proj'], 'feedforward_modules': ['q_proj']},
  ),
  'llama, regex': (
    'llama',
    {
      'target_modules': r'.*layers\.[02]\.(self_attn\.v_proj|mlp\.(up|down)_proj)',
      'feedforward_modules': r'.*\.down_proj',
    },
  ),
  'llama, sides by layer': (
    'llama',
    {'target_modules': r'.*\.(up|down)_proj', 'feedforward_modules': r'.*\.1\.mlp\.(up|down)_proj'},
  ),
  'llama, all linear': ('llama', everywhere(['down_proj', 'o_proj'])),
  'bert, default': ('bert', {}),
  'bert, all linear': ('bert', everywhere(['intermediate.dense'])),
  'bare bert, regex': (
    'bare bert',
    {'target_modules': r'.*(query|output\.dense)', 'feedforward_modules': r'.*\d\.output\.dense'},
  ),
  'gpt2, default': ('gpt2', {}),
  'gpt2, inputs': (
    'gpt2',
    {'target_modules': ['c_attn', 'c_fc'], 'feedforward_modules': ['c_attn']},
  ),
  'gpt_neox, default': ('gpt_neox', {}),
  't5, default': ('t5', {}),
}
VERA = {
  'llama, list': ('llama', {'r': 8, 'target_modules': ['q_proj', 'v_proj', 'down_proj']}),
  'llama, regex': ('llama', {'r': 40, 'target_modules': r'.*layers\.[02]\..*(k_proj|gate_proj)'}),
  'llama, all linear': ('llama', {'r': 4, 'target_modules': 'all-linear'}),
  'llama, one layer': (
    'llama',
    {'r': 4, 'target_modules': ['v_proj', 'up_proj'], 'layers_to_transform': [1]},
  ),
  'bert, list': ('bert', {'r': 8, 'target_modules': ['query', 'output.dense']}),
  'bert, all linear': ('bert', {'r': 8, 'target_modules': 'all-linear', 'd_initial': 0.3}),
  'bert, biases': ('bert', {'r': 8, 'target_modules': ['key', 'value'], 'bias': 'vera_only'}),
  'bare bert, regex': ('bare bert', {'r': 8, 'target_modules': r'.*\d\.output\.dense'}),
  'gpt2, list': ('gpt2', {'r': 8, 'target_modules': ['mlp.c_proj', 'c_fc']}),
}


def tuned_by_peft(peer, config, folder):
  torch.manual_seed(1)
  tuned = peft.get_peft_model(copy.deepcopy(peer.theirs), config)
  with torch.no_grad():
    for parameter in tuned.parameters():
      if parameter.requires_grad:
        parameter.add_(0.3 * torch.randn(parameter.shape))
  tuned.save_pretrained(folder)
  return theirs(tuned)


@pytest.mark.parametrize(
  'method, name', [('IA3', name) for name in IA3] + [('Vera', name) for name in VERA]
)
def test_adapter_of_peft(make, tmp_path, method, name):
  base, fields = (IA3 if method == 'IA3' else VERA)[name]
  peer = make(base)
  config = getattr(peft, f'{method}Config')(task_type=BASES[base][2], **fields)
  want = tuned_by_peft(peer, config, tmp_path / 'adapter')
  read = interop.load_peft(tmp_path / 'adapter', peer.model, peer.params)
  agree(
    theirs(peer.theirs),
    want,
    ours(peer.model, read),
    f'{name}, {method} of PEFT in ours',
    mask=DATA.mask,
  )
  again = ours(peer.model, adapt.merge(read))
  np.testing.assert_allclose(again, ours(peer.model, read), atol=1e-4 * np.abs(want).max())
  if name == 'llama, sides by layer':  # two leaves on one weight, which no file of PEFT has
    return
  interop.save_peft(tmp_path / 'again', peer.model, read, peer.folder)
  moved = peft.PeftModel.from_pretrained(copy.deepcopy(peer.theirs), tmp_path / 'again')
  np.testing.assert_allclose(theirs(moved), want, atol=1e-5 * np.abs(want).max())


def test_vera_on_a_tensor_that_holds_several_is_refused(make, tmp_path):
  peer = make('gpt2')
  config = peft.VeraConfig(r=4, target_modules=['c_attn'], task_type='CAUSAL_LM')
  tuned_by_peft(peer, config, tmp_path / 'adapter')
  with pytest.raises(ValueError, match='c_attn, which jaxtune keeps in several parts'):
    interop.load_peft(tmp_path / 'adapter', peer.model, peer.params)


def test_without_the_random_matrices_there_is_no_vera(make, tmp_path):
  peer = make('llama')
  config = peft.VeraConfig(
    r=4, target_modules=['q_proj'], save_projection=False, task_type='CAUSAL_LM'
  )
  tuned_by_peft(peer, config, tmp_path / 'adapter')
  with pytest.raises(ValueError, match='lacks base_model.vera_A.*save_projection=True'):
    interop.load_peft(tmp_path / 'adapter', peer.model, peer.params)


@pytest.mark.parametrize('method', ['ia3', 'vera'])
def test_our_config_has_no_key_that_peft_warns_about(make, tmp_path, recwarn, method):
  peer = make('llama')
  tuned = shaken(getattr(adapt, method)(KEY, peer.params))
  interop.save_peft(tmp_path / 'out', peer.model, tuned, peer.folder)
  recwarn.clear()
  config = peft.PeftConfig.from_pretrained(tmp_path / 'out')
  assert not [w for w in recwarn if 'keyword' in str(w.message)]
  if method == 'vera':
    assert (config.r, config.bias) == (256, 'none')
  else:
    raw = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
    assert raw['target_modules'] == ['down_proj', 'k_proj', 'v_proj']
    assert raw['feedforward_modules'] == r'model\.layers\.\d+\.mlp\.down_proj'
