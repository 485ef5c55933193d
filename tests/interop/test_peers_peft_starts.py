"""Starts of LoRA beside PEFT's: the same factors, and files that mean the same on the same base."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, losses, models, ops, tree
from tests.interop.adapters import MASK, TOKENS, agree, ours, theirs, tiny_llama

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

KEY = jax.random.key(2)


@pytest.fixture
def tiny(tmp_path):
  return tiny_llama(tmp_path / 'tiny')


def moved(params, size):
  """Every A and B as training might have left it."""

  def move(path, leaf):
    if not isinstance(leaf, adapt.LoRA):
      return leaf
    one, two = jax.random.split(jax.random.key(len(path)))
    a, b = (size * jax.random.normal(k, x.shape) for k, x in ((one, leaf.a), (two, leaf.b)))
    return dataclasses.replace(leaf, a=leaf.a + a, b=leaf.b + b)

  return tree.map_weights(move, params)


OPTIONS = {
  'pissa': {'start': 'pissa'},
  'pissa_niter_4, rslora': {'start': 'pissa_niter_4', 'rslora': True},
  'olora, patterns': {
    'start': 'olora',
    'select': (('attn/q$', {'rank': 2, 'alpha': 5}), (adapt.LINEAR, True), ('', False)),
  },
  'gaussian, rslora, dropout': {'start': 'gaussian', 'rslora': True, 'dropout': 0.2},
}


@pytest.mark.parametrize('name', OPTIONS)
def test_decoder_exported_to_peft_on_the_base_as_it_was(tiny, tmp_path, name):  # noqa: F811
  model, params = interop.load(tiny)
  tuned = moved(adapt.lora(KEY, params, 4, 8, **OPTIONS[name]), 0.1)
  interop.save_peft(tmp_path / 'out', model, tuned, tiny)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), f'Llama, {name}, ours in PEFT')


@pytest.mark.parametrize('name', ['pissa', 'olora, patterns'])
def test_encoder_exported_to_peft_on_the_base_as_it_was(minilm, tmp_path, name):
  model, params = interop.load(minilm)
  model, params = models.classifier(jax.random.key(1), model, params, 3)
  params['head'] = jax.tree.map(lambda x: 20 * x + 0.1, params['head'])
  tuned = moved(adapt.lora(KEY, params, 4, 8, **OPTIONS[name]), 0.03)
  interop.save_peft(tmp_path / 'out', model, tuned, minilm)
  peer = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), f'MiniLM, {name}, ours in PEFT')


def test_parts_of_a_fused_tensor(tmp_path):
  """Some of query, key and value, of unlike ranks, from what each of them was."""
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2
  )
  transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / 'base')
  model, params = interop.load(tmp_path / 'base')
  select = (('attn/q$', {'rank': 2}), ('attn/v$|mlp/up$', True), ('', False))
  tuned = moved(adapt.lora(KEY, params, 4, start='pissa', select=select), 0.1)
  interop.save_peft(tmp_path / 'out', model, tuned, tmp_path / 'base')
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), 'GPT-2, pissa, ours in PEFT')


def test_loftq_exported_to_peft(tiny, tmp_path):  # noqa: F811
  """On the base in full precision: what training moved is there, the rounding of the base not."""
  model, params = interop.load(tiny)
  fresh = adapt.lora(KEY, params, 4, start='loftq_int8')
  tuned = moved(fresh, 0.2)
  interop.save_peft(tmp_path / 'out', model, tuned, tiny)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  base, rounded = ours(model, params), ours(model, fresh)
  after, peers = ours(model, tuned), theirs(peer)
  moves, off, start = (np.abs(x)[MASK].max() for x in (after - base, peers - after, rounded - base))
  print(f'loftq_int8: moves by {moves:.2f}, differs by {off:.3f}; its base differs by {start:.3f}')
  assert moves >= 0.1 and off < 0.1 * moves and start < 0.1 * moves


@pytest.mark.parametrize('start', ['pissa', 'olora'])
@pytest.mark.parametrize('rslora', [False, True])
def test_factors_and_residual_are_those_of_peft(tiny, start, rslora):  # noqa: F811
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=['q_proj'], init_lora_weights=start, use_rslora=rslora
  )
  layers = peft.get_peft_model(peer, config).base_model.model.model.layers
  _, params = interop.load(tiny)
  leaf = adapt.lora(KEY, params, 4, 6, start=start, rslora=rslora, select='attn/q$')
  leaf = leaf['decoder']['0-3']['attn']['q']
  for i, layer in enumerate(layers):
    own = layer.self_attn.q_proj
    a, b = (x['default'].weight.detach().numpy().T for x in (own.lora_A, own.lora_B))
    assert abs(own.scaling['default'] - float(leaf.scale[i])) < 1e-6
    np.testing.assert_allclose(np.asarray(leaf.a[i] @ leaf.b[i]), a @ b, atol=1e-4)
    np.testing.assert_allclose(np.abs(leaf.a[i]), np.abs(a), atol=1e-3)
    weight = own.base_layer.weight.detach().numpy().T
    np.testing.assert_allclose(np.asarray(ops.materialize(leaf.base))[i], weight, atol=1e-4)


def test_an_adapter_that_peft_started_with_pissa(tiny, tmp_path):  # noqa: F811
  """As PEFT converts it to plain LoRA of the base as it was."""
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  base = theirs(peer)
  config = peft.LoraConfig(
    r=4, task_type='CAUSAL_LM', target_modules=['q_proj', 'up_proj'], init_lora_weights='pissa'
  )
  tuned = peft.get_peft_model(peer, config)
  tuned.peft_config['default'].init_lora_weights = True
  tuned.save_pretrained(tmp_path / 'start')
  torch.manual_seed(1)
  with torch.no_grad():
    for name, parameter in tuned.named_parameters():
      if 'lora_' in name:
        parameter.add_(0.1 * torch.randn_like(parameter))
  after = theirs(tuned)
  tuned.peft_config['default'].init_lora_weights = 'pissa'
  tuned.save_pretrained(
    tmp_path / 'out', path_initial_model_for_weight_conversion=str(tmp_path / 'start')
  )
  model, params = interop.load(tiny)
  read = interop.load_peft(tmp_path / 'out', model, params)
  agree(base, after, ours(model, read), 'Llama, converted pissa, PEFT in ours')


def test_eva_sees_the_inputs_that_torch_sees(tiny):  # noqa: F811
  """Of tokens that predict one; the query of the first, which sees itself alone, is not needed."""
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  seen = {}
  layers = peer.model.layers
  for i, layer in enumerate(layers):
    for name, module in (('q', layer.self_attn.q_proj), ('down', layer.mlp.down_proj)):
      module.register_forward_pre_hook(
        lambda _, x, at=(name, i): seen.__setitem__(at, x[0].detach().double().numpy())
      )
  theirs(peer)
  model, params = interop.load(tiny)
  fresh = adapt.lora(KEY, params, 3, select='attn/q$|mlp/down$')
  batch = {'tokens': TOKENS, 'mask': MASK}
  started = adapt.eva(KEY, fresh, losses.causal_lm(model), [batch])
  predicts = np.pad(MASK[:, 1:], ((0, 0), (0, 1)))
  decoder = started['decoder']['0-3']
  for (name, i), inputs in seen.items():
    leaf = decoder['attn']['q'] if name == 'q' else decoder['mlp']['down']
    rows = predicts & (np.arange(12)[None] > 0) if name == 'q' else predicts
    _, values, right = np.linalg.svd(inputs[rows], full_matrices=False)
    assert values[2] > 1.001 * values[3]
    cosines = np.linalg.svd(right[:3] @ np.float64(leaf.a[i]), compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
