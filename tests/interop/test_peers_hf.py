"""Models: files of transformers open here and ours open there, with the same outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = {
  'vocab_size': 96,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'initializer_range': 0.3,
}


def llama(kind='LlamaForCausalLM', **fields):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    **{**SIZES, 'num_key_value_heads': 2, 'max_position_embeddings': 64, 'pad_token_id': 0} | fields
  )
  return getattr(transformers, kind)(config).eval()


def bert(kind='BertModel', **fields):
  torch.manual_seed(0)
  return getattr(transformers, kind)(transformers.BertConfig(**SIZES | fields)).eval()


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 96, (3, 11)).astype(np.int32)
  mask = np.arange(11)[None] < np.array([[11], [7], [1]])
  return np.where(mask, tokens, 0).astype(np.int32), mask


def theirs(model, tokens, mask):
  with torch.no_grad():
    out = model(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
  out = out.logits if hasattr(out, 'logits') else out.last_hidden_state
  return out.float().numpy()


def ours(model, params, tokens, mask):
  return np.asarray(jax.jit(model.apply)(params, tokens, mask), np.float32)


def worst(a, b, mask=None):
  difference = np.abs(a - b)
  return float(difference.max() if mask is None else difference[mask].max())


def test_minilm_hidden_states_agree(minilm):
  """Contract: MiniLM's hidden states agree with transformers to 1e-4, with padding."""
  peer = transformers.AutoModel.from_pretrained(minilm).eval()
  tokenizer = interop.load_tokenizer(minilm)
  texts = ['A real film.', 'It is long, and the second half of it is longer than the first.', 'No']
  tokenizer.enable_padding(pad_id=0)
  encodings = tokenizer.encode_batch(texts)
  tokens = np.array([e.ids for e in encodings], np.int32)
  mask = np.array([e.attention_mask for e in encodings], bool)
  model, params = interop.load(minilm)
  error = worst(theirs(peer, tokens, mask), ours(model, params, tokens, mask), mask)
  print(f'MiniLM: largest difference of hidden states {error:.2e}')
  assert error < 1e-4


def test_smollm2_logits_agree(smollm2, tmp_path):
  """Contract: SmolLM2's logits agree to 1e-3 with the same dequantized weights in transformers."""
  model, params = interop.load(smollm2)
  interop.save_hf(tmp_path / 'hf', model, params, source=smollm2)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf', dtype=torch.float32)
  peer = peer.eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  text = 'It is a truth universally acknowledged, that a man of 30 in possession of £1,000'
  tokens = np.array([tokenizer(text)['input_ids']], np.int32)
  assert tokens[0].tolist() == interop.load_tokenizer(smollm2).encode(text).ids
  mask = np.ones_like(tokens, bool)
  error = worst(theirs(peer, tokens, mask), ours(model, params, tokens, mask))
  print(f'SmolLM2: largest difference of logits {error:.2e}')
  assert error < 1e-3


def test_smollm2_weights_are_those_of_transformers_own_gguf_reader(smollm2):
  """An independent reading of the same file: q and k come back in Hugging Face's order."""
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
  )
  _, params = interop.load(smollm2)
  layers = params['decoder']['0-29']
  for name, leaf in (('q', 'q_proj'), ('k', 'k_proj'), ('v', 'v_proj'), ('o', 'o_proj')):
    want = peer.state_dict()[f'model.layers.7.self_attn.{leaf}.weight'].numpy()
    np.testing.assert_array_equal(np.asarray(layers['attn'][name][7]).T, want)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kind', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shard', ['10GB', '20KB'])
def test_llama_of_transformers_opens_here(tmp_path, batch, tied, kind, shard):
  peer = llama(tie_word_embeddings=tied, rope_theta=5000.0, head_dim=16)
  peer.to(getattr(torch, kind)).save_pretrained(tmp_path, max_shard_size=shard)
  assert (tmp_path / 'model.safetensors.index.json').exists() == (shard == '20KB')
  model, params = interop.load(tmp_path)
  assert str(params['embed']['tokens'].dtype) == kind
  assert ('head' in params) == (not tied)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  want = theirs(type(peer).from_pretrained(tmp_path, dtype=torch.float32).eval(), *batch)
  assert worst(want, ours(model, wide, *batch), batch[1]) < 1e-4


@pytest.mark.parametrize('kind', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shard', ['10GB', '20KB'])
@pytest.mark.parametrize('architecture', ['BertModel', 'BertForSequenceClassification'])
def test_bert_of_transformers_opens_here(tmp_path, batch, architecture, kind, shard):
  peer = bert(architecture, num_labels=5).to(getattr(torch, kind))
  peer.save_pretrained(tmp_path, max_shard_size=shard)
  model, params = interop.load(tmp_path, dtype='float32')
  assert model.config.outputs == (5 if architecture != 'BertModel' else 0)
  mask = batch[1] if architecture == 'BertModel' else None
  want = theirs(type(peer).from_pretrained(tmp_path, dtype=torch.float32).eval(), *batch)
  assert worst(want, ours(model, params, *batch), mask) < 1e-4


def test_llama_classifier_of_transformers_opens_here(tmp_path, batch):
  peer = llama('LlamaForSequenceClassification', num_labels=3)
  peer.save_pretrained(tmp_path)
  model, params = interop.load(tmp_path)
  assert worst(theirs(peer, *batch), ours(model, params, *batch)) < 1e-4


def test_pretraining_head_is_left_out_and_said(tmp_path, batch):
  peer = bert('BertForPreTraining')
  peer.save_pretrained(tmp_path)
  with pytest.warns(UserWarning, match='cls'):
    model, params = interop.load(tmp_path)
  assert worst(theirs(peer.bert, *batch), ours(model, params, *batch), batch[1]) < 1e-4


@pytest.mark.parametrize(
  'make',
  [
    lambda: llama(tie_word_embeddings=True, rope_theta=5000.0),
    lambda: llama(tie_word_embeddings=False),
    lambda: llama('LlamaForSequenceClassification', num_labels=3),
    lambda: bert(),
    lambda: bert('BertForSequenceClassification', num_labels=3),
  ],
)
@pytest.mark.parametrize('known', [True, False])
def test_saved_here_opens_in_transformers(tmp_path, batch, make, known):
  """With the source's config.json as a start, and without one."""
  peer = make()
  peer.save_pretrained(tmp_path / 'theirs')
  model, params = interop.load(tmp_path / 'theirs')
  source = tmp_path / 'theirs' if known else None
  labels = ('bad', 'fair', 'good') if model.config.outputs else None
  interop.save_hf(tmp_path / 'ours', model, params, source=source, labels=labels)
  config = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  if not known and 'llama' in config['model_type'] and labels:
    config['pad_token_id'] = 0  # a tokenizer's matter, and these toys have none
    (tmp_path / 'ours' / 'config.json').write_text(json.dumps(config))
  again, info = type(peer).from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  assert config['architectures'] == [type(peer).__name__]
  if labels:
    assert again.config.id2label == {0: 'bad', 1: 'fair', 2: 'good'}
  assert worst(theirs(peer, *batch), theirs(again.eval(), *batch)) < 1e-6
