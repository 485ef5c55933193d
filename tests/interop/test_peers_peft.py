"""Adapters: ours move the real torch model as they move ours, and PEFT's move ours as theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, interop, models, tree

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

MASK = np.arange(12)[None] < np.array([[12], [9], [4]])
# Transformers' decoders find the last token by the padding's id, ours by the mask: pad with it.
TOKENS = np.where(MASK, np.random.default_rng(0).integers(1, 90, MASK.shape), 0).astype(np.int32)


def theirs(model):
  with torch.no_grad():
    out = model.eval()(torch.tensor(TOKENS).long(), attention_mask=torch.tensor(MASK).long())
  return (out.logits if hasattr(out, 'logits') else out.last_hidden_state).float().numpy()


def ours(model, params):
  return np.asarray(jax.jit(model.apply)(params, TOKENS, MASK))


def agree(base, tuned, other, name):
  """Contract: to 2% of what the adapter moves them, which must be at least 0.1."""
  rows = MASK if base.ndim == 3 else slice(None)
  moved = np.abs(tuned - base)[rows].max()
  error = np.abs(other - tuned)[rows].max()
  print(f'{name}: the adapter moves by {moved:.3f}, the tools differ by {error:.2e}')
  assert moved >= 0.1
  assert error <= 0.02 * moved


def shaken(params, size):
  """Every B as training might have left it."""

  def shake(path, leaf):
    if not isinstance(leaf, adapt.LoRA):
      return leaf
    b = size * jax.random.normal(jax.random.key(len(path)), leaf.b.shape)
    return adapt.LoRA(leaf.base, leaf.a, b, leaf.scale)

  return tree.map_weights(shake, params)


@pytest.fixture
def tiny(tmp_path):
  """A folder of a random Llama, and how to open it."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    tie_word_embeddings=True,
    pad_token_id=0,
  )
  transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / 'tiny')
  return tmp_path / 'tiny'


@pytest.mark.parametrize('targets', [adapt.LINEAR, r'attn/[qv]$', r'(mlp/down|pooler/dense)$'])
def test_classifier_exported_to_peft(minilm, tmp_path, targets):
  model, params = interop.load(minilm)
  model, params = models.classifier(jax.random.key(1), model, params, 3)
  params['head'] = jax.tree.map(lambda x: 20 * x + 0.1, params['head'])  # as if trained
  base = ours(model, params)
  adapted = adapt.lora(jax.random.key(2), params, 8, select=targets)
  tuned = shaken(adapted, 0.3 if 'attn/[qv]' in targets else 0.05)
  interop.save_peft(tmp_path / 'out', model, tuned, minilm, labels=('a', 'b', 'c'))
  peer = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(base, ours(model, tuned), theirs(peer), 'MiniLM classifier, ours in PEFT')
  assert interop.load_labels(tmp_path / 'out') == ('a', 'b', 'c')


def test_bare_encoder_exported_to_peft(minilm, tmp_path):
  model, params = interop.load(minilm)
  tuned = shaken(adapt.lora(jax.random.key(2), params, 4), 0.05)
  interop.save_peft(tmp_path / 'out', model, tuned, minilm)
  peer = peft.PeftModel.from_pretrained(
    transformers.AutoModel.from_pretrained(minilm), tmp_path / 'out'
  )
  agree(ours(model, params), ours(model, tuned), theirs(peer), 'MiniLM, ours in PEFT')


def test_encoder_without_pooler_takes_its_own_along(tmp_path):
  """What the base lacks goes with the adapter, merged: else the peer would make it up afresh."""
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
  )
  transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / 'base')
  model, params = interop.load(tmp_path / 'base')
  assert 'pooler' not in params
  model, params = models.classifier(jax.random.key(1), model, params, 2)
  params['head']['dense'] = params['head']['dense'] * 50
  adapted = adapt.lora(jax.random.key(2), params, 4)
  assert isinstance(adapted['pooler']['dense'], adapt.LoRA)
  tuned = shaken(adapted, 0.3)
  interop.save_peft(tmp_path / 'out', model, tuned, tmp_path / 'base')
  peer = transformers.BertForSequenceClassification.from_pretrained(tmp_path / 'base')
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), 'without pooler, ours in PEFT')


@pytest.mark.parametrize('kind', ['Roberta', 'DistilBert', 'ModernBert'])
def test_heads_with_a_layer_of_their_own(tmp_path, kind):
  """The layer in front of a classifier's matrix goes with it, there and back."""
  torch.manual_seed(0)
  sizes = {'vocab_size': 96, 'pad_token_id': 0, 'initializer_range': 0.2}
  sizes |= (
    {'dim': 32, 'hidden_dim': 48, 'n_layers': 2, 'n_heads': 4}
    if kind == 'DistilBert'
    else {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2}
    | {'num_attention_heads': 4, 'max_position_embeddings': 64}
  )
  config = getattr(transformers, f'{kind}Config')(**sizes)
  getattr(transformers, f'{kind}Model')(config).save_pretrained(tmp_path / 'base')
  body = interop.load(tmp_path / 'base')
  model, params = models.classifier(jax.random.key(1), *body, 3)
  params['head'] = jax.tree.map(lambda x: 5 * x, params['head'])
  targets = 'attn/o$' if kind == 'ModernBert' else adapt.LINEAR  # the others are parts of tensors
  tuned = shaken(adapt.lora(jax.random.key(2), params, 4, select=targets), 0.3)
  interop.save_peft(tmp_path / 'out', model, tuned, tmp_path / 'base')
  peer = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'base', num_labels=3
  )
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), f'{kind}, ours in PEFT')
  again, read = load(tmp_path / 'out', *body)
  np.testing.assert_allclose(ours(again, read), ours(model, tuned), atol=1e-4)


@pytest.mark.parametrize('outputs', [0, 2])
def test_decoder_exported_to_peft(tiny, tmp_path, outputs):
  """Some targets in two segments of unlike rank: every layer finds its module."""
  model, params = interop.load(tiny)
  if outputs:
    model, params = models.classifier(jax.random.key(1), model, params, outputs)
    params['head'] = jax.tree.map(lambda x: 20 * x, params['head'])
  base = ours(model, params)
  params = {**params, 'decoder': models.cut(params['decoder'], 1)}
  adapted = adapt.lora(jax.random.key(2), params, 4, alpha=6, select='0-0/(attn|mlp)/')
  adapted = adapt.lora(jax.random.key(3), adapted, 6, select='1-3/(attn/[qo]|mlp/up)')
  tuned = shaken(adapted, 0.3)
  interop.save_peft(tmp_path / 'out', model, tuned, tiny)
  kind = transformers.AutoModelForSequenceClassification if outputs else None
  peer = (kind or transformers.AutoModelForCausalLM).from_pretrained(tiny)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(base, ours(model, tuned), theirs(peer), f'Llama with {outputs} outputs, ours in PEFT')


def test_trained_norms_go_along(tiny, tmp_path):
  model, params = interop.load(tiny)
  adapted = adapt.lora(jax.random.key(2), params, 4, also='norm/scale')
  tuned = shaken(adapted, 0.1)
  tuned = tree.map_weights(lambda p, x: x * 1.5 if 'norm/scale' in p else x, tuned)
  interop.save_peft(tmp_path / 'out', model, tuned, tiny)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), 'Llama with norms, ours in PEFT')
  model, again = load(tmp_path / 'out', *interop.load(tiny))
  np.testing.assert_allclose(ours(model, again), ours(model, tuned), atol=1e-5)


def load(folder, model, params):
  """The model, under the classifier that the adapter brings, and the parameters with it."""
  model, params = interop.adapter_head(folder, model, params)
  return model, interop.load_peft(folder, model, params)


def torch_adapter(peer, config, folder, size=0.1):
  torch.manual_seed(1)
  tuned = peft.get_peft_model(peer, config)
  with torch.no_grad():
    for name, parameter in tuned.named_parameters():
      if 'lora_B' in name:
        parameter.normal_(0, size)
  tuned.save_pretrained(folder)
  return theirs(tuned)


CONFIGS = {
  'plain': {'r': 4, 'lora_alpha': 16, 'target_modules': ['q_proj', 'v_proj', 'down_proj']},
  'all linear': {'r': 4, 'lora_alpha': 8, 'target_modules': 'all-linear'},
  'rslora': {'r': 8, 'lora_alpha': 8, 'target_modules': ['q_proj', 'up_proj'], 'use_rslora': True},
  'patterns': {
    'r': 4,
    'lora_alpha': 8,
    'target_modules': ['q_proj', 'o_proj', 'gate_proj'],
    'rank_pattern': {'layers.1.self_attn.q_proj': 2, r'layers\.[23]\.mlp\.gate_proj': 6},
    'alpha_pattern': {'o_proj': 20, 'layers.1.self_attn.q_proj': 3},
  },
  'one layer': {'r': 4, 'target_modules': ['q_proj', 'up_proj'], 'layers_to_transform': [2]},
  'norm whole': {'r': 4, 'target_modules': ['q_proj', 'up_proj'], 'modules_to_save': ['norm']},
}


@pytest.mark.parametrize('name', CONFIGS)
def test_adapter_of_peft_on_a_decoder(tiny, tmp_path, name):
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  base = theirs(peer)
  config = peft.LoraConfig(task_type='CAUSAL_LM', **CONFIGS[name])
  tuned = torch_adapter(peer, config, tmp_path / 'adapter', 0.2)
  model, adapted = load(tmp_path / 'adapter', *interop.load(tiny))
  agree(base, tuned, ours(model, adapted), f'Llama, {name}, PEFT in ours')
  trainable, _ = adapt.trainable(adapted)
  assert all('base' not in tree.path_name(p) for p, _ in jax.tree.leaves_with_path(trainable))


@pytest.mark.parametrize('whole', [None, ['pooler.dense']])
def test_adapter_of_peft_makes_a_bare_encoder_a_classifier(minilm, tmp_path, whole):
  torch.manual_seed(0)
  peer = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=4)
  peer.classifier.weight.data.mul_(20)
  base = theirs(peer)
  config = peft.LoraConfig(
    task_type='SEQ_CLS', r=8, target_modules=['query', 'value'], modules_to_save=whole
  )
  tuned = torch_adapter(peer, config, tmp_path / 'adapter', 0.3)
  model, adapted = load(tmp_path / 'adapter', *interop.load(minilm))
  assert model.config.outputs == 4
  agree(base, tuned, ours(model, adapted), f'MiniLM classifier, {whole}, PEFT in ours')
  trainable, _ = adapt.trainable(adapted)
  assert trainable['head']['dense'] is not None
  assert (trainable['pooler']['dense'] is not None) == (whole is not None)


@pytest.mark.parametrize(
  'fields, word',
  [
    ({'use_dora': True}, 'use_dora'),
    ({'init_lora_weights': 'pissa'}, 'init_lora_weights'),
    ({'bias': 'lora_only'}, 'bias'),
    ({'target_modules': ['embed_tokens']}, 'embedding'),
  ],
)
def test_other_arithmetic_of_peft_is_refused(tiny, tmp_path, fields, word):
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  config = {'r': 2, 'target_modules': ['q_proj'], 'task_type': 'CAUSAL_LM'} | fields
  torch_adapter(peer, peft.LoraConfig(**config), tmp_path / 'adapter')
  with pytest.raises(ValueError, match=word):
    load(tmp_path / 'adapter', *interop.load(tiny))


def test_our_config_has_no_key_that_peft_warns_about(tiny, tmp_path, recwarn):
  model, params = interop.load(tiny)
  tuned = shaken(adapt.lora(jax.random.key(2), params, 4), 0.1)
  interop.save_peft(tmp_path / 'out', model, tuned, tiny)
  recwarn.clear()
  config = peft.PeftConfig.from_pretrained(tmp_path / 'out')
  assert not [w for w in recwarn if 'keyword' in str(w.message)]
  assert (config.r, config.lora_alpha) == (4, 32)
  assert jnp.isfinite(tuned['embed']['tokens']).all()
