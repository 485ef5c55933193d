"""LoHa, LoKr and AdaLoRA: ours move the real torch model as they move ours, and the other way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, interop, models, tree
from jaxtune.adapt.lokr import factorization
from tests.interop.adapters import agree, load, ours, theirs
from tests.interop.families import random_model

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

SIZES = {
  'vocab_size': 96,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'initializer_range': 0.2,
  'pad_token_id': 0,
}
BASES = {
  'llama': ('LlamaForCausalLM', SIZES | {'num_key_value_heads': 2, 'tie_word_embeddings': True}),
  'bert': ('BertForSequenceClassification', SIZES | {'num_labels': 3}),
  'gpt2': (
    'GPT2LMHeadModel',
    {'vocab_size': 96, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'initializer_range': 0.2},
  ),
  'phi3': ('Phi3ForCausalLM', SIZES | {'num_key_value_heads': 2, 'num_hidden_layers': 2}),
}
OURS = {
  'loha': ('loha', {'rank': 3, 'alpha': 5}),
  'lokr': ('lokr', {'rank': 2, 'alpha': 3}),
  'lokr whole': ('lokr', {'rank': 20, 'alpha': 15}),
  'lokr both': ('lokr', {'rank': 1, 'alpha': 1, 'decompose_both': True}),
  'lokr factor': ('lokr', {'rank': 2, 'alpha': 3, 'decompose_factor': 8}),
  'adalora': ('adalora', {'rank': 4, 'alpha': 8}),
}


@pytest.fixture
def folder(request, tmp_path):
  def make(name):
    kind, fields = BASES[name]
    random_model(kind, **fields).save_pretrained(tmp_path / name)
    return tmp_path / name

  return make


def opened(folder, name):
  """The torch model in a folder."""
  return getattr(transformers, BASES[name][0]).from_pretrained(folder)


def shaken(adapted, size=0.3):
  """Every field that trains as training might have left it."""
  trainable, frozen = adapt.trainable(adapted)
  leaves, structure = jax.tree.flatten(trainable)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  moved = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return tree.combine(jax.tree.unflatten(structure, moved), frozen)


@pytest.mark.parametrize('base', ['llama', 'bert'])
@pytest.mark.parametrize('name', OURS)
def test_ours_in_peft(folder, tmp_path, base, name):
  """Over segments of unlike rank, and with modules that have none."""
  source = folder(base)
  model, params = interop.load(source)
  stack = 'decoder' if base == 'llama' else 'encoder'
  params = {**params, stack: models.cut(params[stack], 1)}
  method, options = OURS[name]
  # The second segment's rank and alpha are others, but where they would leave W1 whole.
  more = {} if name == 'lokr both' else {'rank': options['rank'] + 1, 'alpha': 7}
  rules = (
    (r'/0-0/(attn/[qkvo]|mlp/(gate|up|down))$', True),
    (r'/1-2/(attn/[qo]|mlp/up)$', options | more),
    ('', False),
  )
  also = None if base == 'llama' else adapt.HEAD
  adapted = adapt.create(method, jax.random.key(2), params, **options, select=rules, also=also)
  tuned = shaken(adapted)
  interop.save_peft(tmp_path / 'out', model, tuned, source)
  peer = peft.PeftModel.from_pretrained(opened(source, base), tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), f'{base}, {name}, ours in PEFT')
  again, read = load(tmp_path / 'out', *interop.load(source))
  np.testing.assert_allclose(ours(again, read), ours(model, tuned), atol=1e-4, rtol=1e-4)


LINEAR = {'llama': ['q_proj', 'down_proj'], 'bert': ['query', 'output.dense']}
REGEX = {'llama': r'.*\.1\..*(v_proj|up_proj)', 'bert': r'.*layer\.1\..*(value|dense)'}
PATTERNS = {
  'llama': {'layers.1.self_attn.q_proj': 7, r'layers\.2\.mlp\.down_proj': 2},
  'bert': {'layer.1.attention.self.query': 7, r'layer\.2\.output\.dense': 2},
}
LOHA, LOKR, ADALORA = 'LoHaConfig', 'LoKrConfig', 'AdaLoraConfig'
STEPS = {'total_step': 10}
THEIRS = {
  'loha': (LOHA, {'r': 3, 'alpha': 5}, LINEAR),
  'loha, patterns': (LOHA, {'r': 3, 'alpha': 5, 'rank_pattern': PATTERNS}, LINEAR),
  'loha, regex': (LOHA, {'r': 2}, REGEX),
  'loha, all linear': (LOHA, {'r': 2}, 'all-linear'),
  'lokr': (LOKR, {'r': 2, 'alpha': 3}, LINEAR),
  'lokr, whole': (LOKR, {'r': 16}, LINEAR),
  'lokr, patterns': (LOKR, {'r': 2, 'rank_pattern': PATTERNS, 'alpha_pattern': PATTERNS}, LINEAR),
  'lokr, both': (LOKR, {'r': 1, 'decompose_both': True, 'rank_pattern': PATTERNS}, LINEAR),
  'lokr, factor': (LOKR, {'r': 2, 'decompose_factor': 4}, REGEX),
  'lokr, all linear': (LOKR, {'r': 2, 'init_weights': 'lycoris'}, 'all-linear'),
  'adalora': (ADALORA, {'init_r': 4, 'lora_alpha': 8} | STEPS, LINEAR),
  'adalora, regex': (ADALORA, {'init_r': 3} | STEPS, REGEX),
  'adalora, all linear': (ADALORA, {'init_r': 3, 'bias': 'all'} | STEPS, 'all-linear'),
}


@pytest.mark.parametrize('base', ['llama', 'bert'])
@pytest.mark.parametrize('name', THEIRS)
def test_peft_in_ours(folder, tmp_path, base, name):
  source = folder(base)
  kind, fields, targets = THEIRS[name]
  fields = {k: v[base] if k.endswith('_pattern') else v for k, v in fields.items()}
  targets = targets if isinstance(targets, str) else targets[base]
  task = 'CAUSAL_LM' if base == 'llama' else 'SEQ_CLS'
  config = getattr(peft, kind)(task_type=task, target_modules=targets, **fields)
  peer = opened(source, base)
  before = theirs(peer)
  torch.manual_seed(1)
  adapted = peft.get_peft_model(peer, config)
  with torch.no_grad():
    for parameter in adapted.parameters():
      if parameter.requires_grad:
        parameter.add_(0.3 * torch.randn(parameter.shape))
  adapted.save_pretrained(tmp_path / 'out')
  model, read = load(tmp_path / 'out', *interop.load(source))
  agree(before, theirs(adapted), ours(model, read), f'{base}, {name}, PEFT in ours')
  trainable, _ = adapt.trainable(read)
  assert not any(path.endswith(('base', 'scale')) for path in tree.paths(trainable))


def pruned(peer, steps=6):
  """PEFT's training of an AdaLoRA down to its budget on made-up gradients, with a layer left bare.

  Returns the gradients, by name, of each step.
  """
  inner = peer.base_model
  generator = torch.Generator().manual_seed(4)
  gradients = []
  optimizer = torch.optim.SGD([p for p in peer.parameters() if p.requires_grad], lr=0.1)
  for step in range(1, steps + 1):
    own = {}
    for name, parameter in peer.named_parameters():
      if parameter.requires_grad:
        # The second query learns nothing, so that it loses all its triplets.
        size = 1e-6 if 'layers.1.self_attn.q_proj' in name else 1.0
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        own[name] = parameter.grad.numpy().copy()
    gradients.append(own)
    optimizer.step()
    inner.update_and_allocate(step)
    optimizer.zero_grad()
  return gradients


def adalora_peer(source, **fields):
  config = peft.AdaLoraConfig(
    task_type='CAUSAL_LM', target_modules=['q_proj', 'up_proj'], init_r=4, target_r=2, **fields
  )
  torch.manual_seed(2)
  return peft.get_peft_model(opened(source, 'llama'), config)


def test_settled_ranks_of_peft(folder, tmp_path):
  source = folder('llama')
  before = theirs(opened(source, 'llama'))
  peer = adalora_peer(source, total_step=6, tinit=1, tfinal=2)
  pruned(peer)
  want = theirs(peer)
  peer.save_pretrained(tmp_path / 'out')
  model, read = load(tmp_path / 'out', *interop.load(source))
  agree(before, want, ours(model, read), 'AdaLoRA with settled ranks, PEFT in ours')
  q = read['decoder']['0-2']['attn']['q']
  assert not q.e[1].any() and q.e[0].any()
  interop.save_peft(tmp_path / 'again', model, read, source)
  peer = peft.PeftModel.from_pretrained(opened(source, 'llama'), tmp_path / 'again')
  agree(before, want, theirs(peer), 'AdaLoRA with settled ranks, ours in PEFT')


@pytest.mark.parametrize('interval, final', [(1, 2), (2, 0)])
def test_the_budget_cuts_what_peft_cuts(folder, interval, final):
  """The same gradients, step by step: the same singular values are zero after each."""
  source = folder('llama')
  steps, warmup = 9, 2
  peer = adalora_peer(source, total_step=steps, tinit=warmup, tfinal=final, deltaT=interval)
  start = {n: p.detach().numpy().copy() for n, p in peer.named_parameters() if p.requires_grad}
  kept = []
  update = peer.base_model.update_and_allocate

  def watched(step):
    update(step)
    kept.append({n: (p != 0).numpy()[:, 0] for n, p in peer.named_parameters() if 'lora_E' in n})

  peer.base_model.update_and_allocate = watched
  gradients = pruned(peer, steps)

  def tree_of(values):
    """`{module: AdaLoRA without a base}` of PEFT's parameters by name."""
    modules = sorted({name.partition('.lora_')[0] for name in values})
    own = {module: {n: values[f'{module}.lora_{n}.default'] for n in 'AEB'} for module in modules}
    return {
      module: adapt.AdaLoRA(None, jnp.asarray(x['A'].T), jnp.asarray(x['E'][:, 0]),
                            jnp.asarray(x['B'].T), None)
      for module, x in own.items()
    }  # fmt: skip

  rule = adapt.adalora_budget(optax.sgd(0.1), 2, steps, warmup, final, interval)
  params = tree_of(start)
  state = rule.init(params)
  apply = jax.jit(rule.update)
  counts = []
  for gradient, want in zip(gradients, kept, strict=True):
    updates, state = apply(tree_of(gradient), state, params)
    params = optax.apply_updates(params, updates)
    got = {name: np.asarray(leaf.e) != 0 for name, leaf in params.items()}
    for name, mask in want.items():
      np.testing.assert_array_equal(got[name.partition('.lora_')[0]], mask)
    counts.append(int(sum(mask.sum() for mask in want.values())))
  print('triplets left after each step:', counts)
  assert counts[0] == 24 and counts[-1] == 12


def test_the_penalty_is_pefts(folder):
  """What PEFT adds to the loss of its model."""
  source = folder('llama')
  peer = adalora_peer(source, total_step=9, orth_reg_weight=0.7)
  ids = torch.tensor(np.arange(8)[None])
  with torch.no_grad():
    added = float(
      peer(input_ids=ids, labels=ids).loss - peer.base_model.model(ids, labels=ids).loss
    )
  leaves = {}
  for name, module in peer.named_modules():
    if hasattr(module, 'lora_E') and 'default' in getattr(module, 'lora_E', {}):
      a, b = (getattr(module, f'lora_{n}')['default'].detach().numpy().T for n in 'AB')
      leaves[name] = adapt.AdaLoRA(None, a, np.zeros(4, 'f'), b, np.ones((), 'f'))
  assert len(leaves) == 6
  np.testing.assert_allclose(0.7 * adapt.orthogonality(leaves), added, rtol=1e-4)


@pytest.mark.parametrize('name', ['loha', 'adalora'])
def test_parts_of_a_fused_tensor(folder, tmp_path, name):
  source = folder('phi3')
  model, params = interop.load(source)
  method, options = OURS[name]
  select = ((r'attn/q$', {'rank': 2, 'alpha': 9}), (r'attn/v$|mlp/', True), ('', False))
  tuned = shaken(
    adapt.create(method, jax.random.key(2), params, **options, select=select, also=None)
  )
  interop.save_peft(tmp_path / 'out', model, tuned, source)
  peer = peft.PeftModel.from_pretrained(opened(source, 'phi3'), tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), f'Phi-3, {name}, ours in PEFT')
  again, read = load(tmp_path / 'out', *interop.load(source))
  np.testing.assert_allclose(ours(again, read), ours(model, tuned), atol=1e-4, rtol=1e-4)


def test_a_conv1d_takes_adalora(folder, tmp_path):
  """GPT-2 holds its matrices as [in, out], which PEFT's LyCORIS layers do not know."""
  source = folder('gpt2')
  model, params = interop.load(source)
  tuned = shaken(adapt.adalora(jax.random.key(2), params, 4, select=r'(attn/o|mlp/up)$', also=None))
  interop.save_peft(tmp_path / 'out', model, tuned, source)
  peer = peft.PeftModel.from_pretrained(opened(source, 'gpt2'), tmp_path / 'out')
  agree(ours(model, params), ours(model, tuned), theirs(peer), 'GPT-2, AdaLoRA, ours in PEFT')


def test_factorization_is_pefts():
  from peft.tuners.lokr.layer import factorization as wanted

  for size in [*range(1, 130), 768, 1000, 3072, 4096, 11008]:
    for factor in (-1, 1, 2, 3, 4, 5, 8, 10, 16, 64, 200):
      assert factorization(size, factor) == wanted(size, factor), (size, factor)


def test_our_configs_have_no_key_that_peft_warns_about(folder, tmp_path, recwarn):
  source = folder('llama')
  model, params = interop.load(source)
  for method in ('loha', 'lokr', 'adalora'):
    tuned = shaken(adapt.create(method, jax.random.key(2), params, rank=2, also=None))
    interop.save_peft(tmp_path / method, model, tuned, source)
    recwarn.clear()
    config = peft.PeftConfig.from_pretrained(tmp_path / method)
    assert not [w for w in recwarn if 'keyword' in str(w.message)]
    assert config.peft_type == method.upper()
