"""Trained tokens and norms: real PEFT computes what we do, with its files and with ours."""

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, models, tree
from jaxtune.typing import InputError
from tests.interop.adapters import agree

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

MASK = np.arange(8)[None] < np.array([[8], [6], [3]])
TOKENS = np.where(MASK, np.random.default_rng(0).integers(1, 24, MASK.shape), 0).astype(np.int32)
IDS = [int(i) for i in TOKENS[(0, 1, 2), (3, 2, 1)]]  # in no order
SIZES = {'vocab_size': 24, 'pad_token_id': 0, 'initializer_range': 0.2}
BODY = {'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2}
BODY |= {'num_attention_heads': 4, 'max_position_embeddings': 32}
T5 = {'d_model': 16, 'd_ff': 24, 'd_kv': 4, 'num_heads': 4, 'num_layers': 2}
KINDS = {
  'llama': ('LlamaForCausalLM', BODY | {'tie_word_embeddings': True}),
  'untied': ('LlamaForCausalLM', BODY | {'tie_word_embeddings': False}),
  'bert': ('BertForSequenceClassification', BODY | {'num_labels': 3}),
  'masked': ('BertForMaskedLM', BODY),
  't5': ('T5ForConditionalGeneration', T5 | {'tie_word_embeddings': True}),
  'untied t5': ('T5ForConditionalGeneration', T5 | {'tie_word_embeddings': False}),
}
TASKS = {'bert': 'SEQ_CLS', 't5': 'SEQ_2_SEQ_LM', 'masked': None}


@pytest.fixture
def made(tmp_path):
  """A folder with a random model of a kind."""

  def make(kind):
    torch.manual_seed(0)
    name, fields = KINDS[kind]
    cls = getattr(transformers, name)
    cls(cls.config_class(**SIZES, **fields)).save_pretrained(tmp_path / kind)
    return tmp_path / kind

  return make


def opened(kind, folder):
  return getattr(transformers, KINDS[kind][0]).from_pretrained(folder)


def theirs(model, kind):
  tokens = torch.tensor(TOKENS).long()
  more = {'decoder_input_ids': tokens} if 't5' in kind else {}
  with torch.no_grad():
    out = model.eval()(tokens, attention_mask=torch.tensor(MASK).long(), **more)
  return out.logits.float().numpy()


def ours(model, params, kind):
  more = {'targets': TOKENS} if 't5' in kind else {}
  return np.asarray(jax.jit(model.apply)(params, TOKENS, MASK, **more))


def shaken(params, size=0.3):
  """What trains as training might have left it."""
  trainable, frozen = adapt.trainable(params)
  leaves, structure = jax.tree.flatten(trainable)
  keys = jax.random.split(jax.random.key(5), len(leaves))
  moved = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  moved = tree.combine(jax.tree.unflatten(structure, moved), frozen)
  return adapt.Adapted(moved, params.rules)


def ours_in_peft(kind, folder, out, method, **files):
  """Exported, opened by PEFT without a complaint, and opened here again."""
  model, params = interop.load(folder)
  tuned = shaken(method(params))
  interop.save_peft(out, model, tuned, folder, **files)
  with pytest.warns() as found:
    peer = peft.PeftModel.from_pretrained(opened(kind, folder), out)
    __import__('warnings').warn('at least one', UserWarning, stacklevel=1)
  complaints = [str(w.message) for w in found if 'adapter' in str(w.message).lower()]
  assert not complaints
  want = ours(model, tuned, kind)
  agree(ours(model, params, kind), want, theirs(peer, kind), f'{kind}, ours in PEFT', mask=MASK)
  again = interop.load_peft(out, model, params)
  np.testing.assert_allclose(ours(model, again, kind), want, atol=1e-5)
  assert set(tree.paths(adapt.trainable(again)[0])) == set(tree.paths(adapt.trainable(tuned)[0]))


def peft_in_ours(kind, folder, out, config, size=0.3):
  peer = opened(kind, folder)
  base = theirs(peer, kind)
  torch.manual_seed(1)
  tuned = peft.get_peft_model(peer, config)
  with torch.no_grad():
    for parameter in tuned.parameters():
      if parameter.requires_grad:
        parameter.add_(size * torch.randn_like(parameter))
  tuned.save_pretrained(out)
  model, params = interop.load(folder)
  adapted = interop.load_peft(out, model, params)
  agree(base, theirs(tuned, kind), ours(model, adapted, kind), f'{kind}, PEFT in ours', mask=MASK)
  return model, adapted


def tokens(params, also=None):
  return adapt.trainable_tokens(jax.random.key(1), params, IDS, also=also)


def beside_lora(params, also=None):
  return tokens(adapt.lora(jax.random.key(2), params, 2, select='attn/[qv]$', also=also), None)


@pytest.mark.parametrize('kind', ['llama', 'untied', 'masked', 't5'])
def test_tokens_alone(made, tmp_path, kind):
  folder = made(kind)
  ours_in_peft(kind, folder, tmp_path / 'a', tokens)
  config = peft.TrainableTokensConfig(task_type=TASKS.get(kind, 'CAUSAL_LM'), token_indices=IDS)
  _, adapted = peft_in_ours(kind, folder, tmp_path / 'b', config)
  np.testing.assert_array_equal(adapted['embed']['tokens'].ids, sorted(IDS))


@pytest.mark.parametrize('kind', ['llama', 'untied', 'bert', 'masked', 't5'])
def test_tokens_beside_lora(made, tmp_path, kind):
  folder = made(kind)
  targets = {'bert': ['query', 'value'], 'masked': ['query', 'value'], 't5': ['q', 'v']}
  also = adapt.HEAD if kind == 'bert' else None
  ours_in_peft(kind, folder, tmp_path / 'a', lambda params: beside_lora(params, also))
  config = peft.LoraConfig(
    task_type=TASKS.get(kind, 'CAUSAL_LM'),
    r=2,
    target_modules=targets.get(kind, ['q_proj', 'v_proj']),
    trainable_token_indices=IDS,
  )
  _, adapted = peft_in_ours(kind, folder, tmp_path / 'b', config)
  trains = tree.paths(adapt.trainable(adapted)[0])
  assert 'embed/tokens/rows' in trains and not any('ids' in path for path in trains)


def test_names_for_the_tokens(made, tmp_path):
  folder = made('llama')
  for name, indices in (('a', {'embed_tokens': IDS}), ('b', {'model.embed_tokens': IDS})):
    config = peft.LoraConfig(
      task_type='CAUSAL_LM', r=2, target_modules=['q_proj'], trainable_token_indices=indices
    )
    peft_in_ours('llama', folder, tmp_path / name, config)


def test_tokens_of_an_untied_head_are_refused(made, tmp_path):
  folder = made('untied')
  configs = (
    peft.TrainableTokensConfig(token_indices=IDS, target_modules=['embed_tokens', 'lm_head']),
    peft.LoraConfig(
      r=2, target_modules=['q_proj'], trainable_token_indices={'embed_tokens': IDS, 'lm_head': [1]}
    ),
  )
  for config in configs:
    with pytest.raises(InputError, match='holds trained tokens of lm_head'):
      peft_in_ours('untied', folder, tmp_path / 'a', config)


@pytest.mark.parametrize('kind', ['llama', 'untied'])
@pytest.mark.parametrize('lora', [False, True])
def test_new_tokens_on_a_model_of_more_rows(made, tmp_path, kind, lora):
  """PEFT first resizes the base; it then saves the whole table, and takes a file without it."""
  folder = made(kind)
  peer = opened(kind, folder)
  peer.resize_token_embeddings(27)
  fields = {'r': 2, 'target_modules': ['q_proj']} if lora else {}
  fields |= {'trainable_token_indices' if lora else 'token_indices': [24, 25]}
  config = (peft.LoraConfig if lora else peft.TrainableTokensConfig)(**fields)
  peer = peft.get_peft_model(peer, config)
  peer.save_pretrained(tmp_path / 'a')
  model, params = interop.load(folder)
  key = jax.random.key(0)
  larger, grown = models.resize(key, model, params, 27)
  adapted = interop.load_peft(tmp_path / 'a', larger, grown)
  table = peer.get_input_embeddings().weight.detach().numpy()
  np.testing.assert_allclose(adapted['embed']['tokens'].materialize(), table, atol=1e-6)

  method = adapt.lora(key, grown, 2, select='attn/q$', also=None) if lora else grown
  tuned = shaken(adapt.trainable_tokens(key, method, [24, 25, 26], also=None))
  interop.save_peft(tmp_path / 'b', larger, tuned, folder)
  base = opened(kind, folder)
  base.resize_token_embeddings(27)
  peer = peft.PeftModel.from_pretrained(base, tmp_path / 'b')
  new = np.where(MASK, 24 + TOKENS % 3, 0).astype(np.int32)
  want = np.asarray(jax.jit(larger.apply)(tuned, new, MASK))
  with torch.no_grad():
    ids, mask = torch.tensor(new).long(), torch.tensor(MASK).long()
    got = peer.eval()(ids, attention_mask=mask).logits.numpy()
  compared = 27 if kind == 'llama' else 24  # the new rows of an untied head are no tokens' rows
  np.testing.assert_allclose(got[MASK][:, :compared], want[MASK][:, :compared], atol=2e-3)


def norms(params, **options):
  return adapt.norms(jax.random.key(0), params, **options)


@pytest.mark.parametrize('kind', ['llama', 'bert', 'masked', 't5', 'untied t5'])
def test_norms(made, tmp_path, kind):
  folder = made(kind)
  also = adapt.HEAD if kind == 'bert' else None
  ours_in_peft(kind, folder, tmp_path / 'a', lambda params: norms(params, also=also))
  names = {'bert': ['LayerNorm'], 'masked': ['LayerNorm']}
  config = peft.LNTuningConfig(
    task_type=TASKS.get(kind.removeprefix('untied '), 'CAUSAL_LM'), target_modules=names.get(kind)
  )
  peft_in_ours(kind, folder, tmp_path / 'b', config)


def test_some_norms(made, tmp_path):
  folder = made('llama')
  some = {'select': r'attn_norm/scale$', 'also': None}
  ours_in_peft('llama', folder, tmp_path / 'a', lambda params: norms(params, **some))
  for name, targets in (('b', r'.*layers\.1\.input_layernorm'), ('c', ['norm'])):
    config = peft.LNTuningConfig(task_type='CAUSAL_LM', target_modules=targets)
    model, adapted = peft_in_ours('llama', folder, tmp_path / name, config, 1.0)
    (path,) = tree.paths(adapt.trainable(adapted)[0])
    assert path == {'b': 'decoder/0-1/attn_norm/scale', 'c': 'norm/scale'}[name]
  config = peft.LNTuningConfig(task_type='CAUSAL_LM', target_modules=['q_proj'])
  with pytest.raises(InputError, match='tunes layers.0.self_attn.q_proj, which is no norm'):
    peft_in_ours('llama', folder, tmp_path / 'd', config)
