"""Adapters: ours move the real torch model as they move ours, and PEFT's move ours as theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, interop, models, tree
from tests.interop.adapters import agree, load, ours, theirs, tiny_llama
from tests.interop.families import maker

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')


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
  return tiny_llama(tmp_path / 'tiny')


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


def torch_adapter(peer, config, folder, size=0.1):
  torch.manual_seed(1)
  tuned = peft.get_peft_model(peer, config)
  with torch.no_grad():
    for parameter in tuned.parameters():
      if parameter.requires_grad:
        parameter.add_(size * torch.randn(parameter.shape))
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
  'dora': {'r': 4, 'target_modules': r'.*\.(q_proj|down_proj)', 'use_dora': True},
  'embeddings': {'r': 4, 'target_modules': ['embed_tokens', 'q_proj']},
  'tied': {'r': 4, 'target_modules': ['embed_tokens'], 'ensure_weight_tying': True},
  'whole': {
    'r': 4,
    'target_modules': ['q_proj'],
    'modules_to_save': ['embed_tokens'],
    'ensure_weight_tying': True,
  },
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
    ({'use_dora': True, 'target_modules': ['embed_tokens', 'q_proj']}, 'rows DoRA scales'),
    ({'init_lora_weights': 'pissa'}, 'init_lora_weights'),
    ({'target_modules': ['lm_head', 'q_proj']}, 'of lm_head alone'),
    ({'target_modules': ['lm_head', 'embed_tokens']}, 'differ'),
    ({'modules_to_save': ['embed_tokens']}, 'replaces the embeddings and not lm_head'),
    ({'modules_to_save': ['embed_tokens', 'lm_head']}, 'differs from what it is tied to'),
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


BERT = {'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2}
BERT |= {'num_attention_heads': 4, 'max_position_embeddings': 32, 'pad_token_id': 0}
CAUSAL = BERT | {'num_key_value_heads': 2, 'bos_token_id': 1, 'eos_token_id': 2}
GPT2 = {'vocab_size': 96, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 32}
MODELS = {
  'llama': ('LlamaForCausalLM', CAUSAL | {'tie_word_embeddings': True}),
  'untied': ('LlamaForCausalLM', CAUSAL),
  'bert': ('BertForSequenceClassification', BERT | {'num_labels': 3}),
  'masked': ('BertForMaskedLM', BERT),
  'gpt2': ('GPT2LMHeadModel', GPT2 | {'bos_token_id': 1, 'eos_token_id': 2}),
  'gpt_neox': ('GPTNeoXForCausalLM', {k: v for k, v in CAUSAL.items() if 'value' not in k}),
  'phi3': ('Phi3ForCausalLM', CAUSAL),
  'modernbert': ('ModernBertForMaskedLM', BERT),
}
KEY = jax.random.key(2)


def biased(params):
  adapted = adapt.lora(KEY, params, 2, select=r'attn/[qkv]$')
  return adapt.train_also(adapted, ((r'attn/[qkv]_bias$', True),))


WAYS = {
  'lora': lambda params: adapt.lora(KEY, params, 4),
  'dora': lambda params: adapt.dora(KEY, params, 4),
  'dora beside lora': lambda params: adapt.dora(
    KEY, adapt.lora(KEY, params, 2, select=r'(attn/q|mlp/down)$'), 3, select=r'attn/[vo]$'
  ),
  'embeddings': lambda params: adapt.lora(
    KEY, params, 4, select=r'(embed/tokens|attn/q)$', also=None
  ),
  'whole embeddings': lambda params: adapt.lora(
    KEY, params, 4, select=r'attn/q$', also='embed/tokens'
  ),
  'all biases': lambda params: adapt.bitfit(KEY, adapt.lora(KEY, params, 2, select='attn/o$')),
  'biases': biased,
}
PAIRS = [
  *((model, way) for model in MODELS for way in ('lora', 'dora')),
  *((model, 'embeddings') for model in ('llama', 'untied', 'bert', 'masked', 'gpt2')),
  *((model, 'whole embeddings') for model in ('llama', 'untied', 'bert', 'masked')),
  *((model, way) for model in ('bert', 'gpt2') for way in ('all biases', 'biases')),
  *((model, 'dora beside lora') for model in ('llama', 'bert', 'phi3', 'gpt_neox')),
]


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  return maker(tmp_path_factory.mktemp('models'))


def trained(adapted, size=0.1):
  """Every trained leaf as training might have left it."""
  trainable, frozen = adapt.trainable(adapted)
  rng = np.random.default_rng(0)
  moved = jax.tree.map(lambda x: x + np.float32(rng.normal(0, size, x.shape)), trainable)
  return adapt.Adapted(tree.combine(moved, frozen), adapted.rules)


@pytest.mark.parametrize('name, way', PAIRS)
def test_there_and_back(make, tmp_path, name, way):
  """Ours in PEFT, and what PEFT saves of that in ours."""
  kind, fields = MODELS[name]
  folder, peer, model, params = make(kind, **fields)
  base = ours(model, params)
  np.testing.assert_allclose(base, theirs(peer), atol=1e-3)
  adapted = WAYS[way](params)
  tuned = trained(adapted)
  interop.save_peft(tmp_path / 'out', model, tuned, folder)
  found = peft.PeftModel.from_pretrained(getattr(transformers, kind).from_pretrained(folder),
                                         tmp_path / 'out')  # fmt: skip
  agree(base, ours(model, tuned), theirs(found), f'{name}, {way}, ours in PEFT')
  found.save_pretrained(tmp_path / 'back')
  again = interop.load_peft(tmp_path / 'back', model, params)
  agree(base, theirs(found), ours(model, again), f'{name}, {way}, PEFT in ours')
  paths = {tree.path_name(p) for p, _ in jax.tree.leaves_with_path(adapt.trainable(again)[0])}
  if way != 'dora beside lora':
    assert paths >= set(
      tree.paths(adapt.trainable(adapted)[0])
    )  # parts of a fused tensor come back together


ENCODER_CONFIGS = {
  'plain': {'target_modules': ['query', 'dense']},
  'all linear': {'target_modules': 'all-linear'},
  'dora': {'target_modules': r'.*\.(key|output\.dense)', 'use_dora': True},
  'embeddings': {'target_modules': ['word_embeddings', 'token_type_embeddings', 'value']},
  'all biases': {'target_modules': ['query'], 'bias': 'all'},
  'biases': {'target_modules': ['query', 'dense'], 'bias': 'lora_only'},
}


@pytest.mark.parametrize('name', ENCODER_CONFIGS)
def test_adapter_of_peft_on_an_encoder(make, tmp_path, name):
  kind, fields = MODELS['bert']
  folder, _, model, params = make(kind, **fields)
  peer = getattr(transformers, kind).from_pretrained(folder)
  base = theirs(peer)
  config = peft.LoraConfig(task_type='SEQ_CLS', r=4, **ENCODER_CONFIGS[name])
  tuned = torch_adapter(peer, config, tmp_path / 'adapter', 0.2)
  adapted = interop.load_peft(tmp_path / 'adapter', model, params)
  agree(base, tuned, ours(model, adapted), f'BERT, {name}, PEFT in ours')


VISION = {'hidden_size': 16, 'intermediate_size': 20, 'num_hidden_layers': 2, 'image_size': 8}
VISION |= {'num_attention_heads': 2, 'patch_size': 4}


@pytest.mark.parametrize('kind', ['ViTForImageClassification', 'ViTModel', 'CLIPVisionModel'])
def test_adapters_of_images(make, tmp_path, kind):
  """Transformers 5 has other names for ViT in memory than in its files, and adapters have those."""
  labels = {'num_labels': 3} if 'Classification' in kind else {}
  folder, _, model, params = make(kind, **VISION, **labels)
  images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
  apply = jax.jit(model.apply)

  def theirs_of(peer):
    with torch.no_grad():
      out = peer.eval()(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)))
    return (out.logits if labels else out.last_hidden_state).numpy()

  def close(want, got):
    moved = np.abs(want - apply(params, images)).max()
    assert moved >= 0.1 and np.abs(want - got).max() < 0.02 * moved

  tuned = trained(adapt.bitfit(KEY, adapt.lora(KEY, params, 2)))
  interop.save_peft(tmp_path / 'out', model, tuned, folder)
  peer = getattr(transformers, kind).from_pretrained(folder)
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  close(apply(tuned, images), theirs_of(peer))

  peer = getattr(transformers, kind).from_pretrained(folder)
  targets = ['q_proj', 'fc1'] if 'ViT' in kind else 'all-linear'
  whole = ['classifier'] if labels else None
  config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=whole)
  peer = peft.get_peft_model(peer, config)
  with torch.no_grad():
    for parameter in peer.parameters():
      if parameter.requires_grad:
        parameter.add_(0.2 * torch.randn(parameter.shape))
  peer.save_pretrained(tmp_path / 'adapter')
  close(theirs_of(peer), apply(interop.load_peft(tmp_path / 'adapter', model, params), images))
