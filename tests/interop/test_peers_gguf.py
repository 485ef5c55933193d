"""GGUF files beside transformers: models that it saved, and its own reading of the same files."""

import numpy as np
import pytest

from jaxtune import interop
from tests.interop import decoders, families, gguf_files
from tests.interop.families import SAME, batch, distance, ours_on, theirs_on

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LLAMA3 = decoders.rope(
  'llama3',
  500000.0,
  **decoders.LLAMA3
  | {
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  },
)
CASES = {
  'llama': ('llama', {}),
  'llama 3.1': ('llama', LLAMA3),
  'llama linear': ('llama', decoders.rope('linear', factor=2.5)),
  'llama with biases': ('llama', {'attention_bias': True, 'mlp_bias': True}),
  'smollm3': ('smollm3', {'no_rope_layer_interval': 4, 'num_hidden_layers': 4}),
  'qwen2': ('qwen2', {'tie_word_embeddings': True}),
  'qwen2 yarn': ('qwen2', decoders.rope('yarn', **decoders.YARN)),
  'qwen3': ('qwen3', {}),
  'gemma2': ('gemma2', {'query_pre_attn_scalar': 8, **decoders.rope(base=10000.0)}),
  'gemma3': (
    'gemma3',
    {'query_pre_attn_scalar': 8, 'num_hidden_layers': 7, 'sliding_window_pattern': 6},
  ),
  'mixtral': ('mixtral', {'sliding_window': None}),
  'qwen3_moe': ('qwen3_moe', {'mlp_only_layers': [], 'norm_topk_prob': True}),
}


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  return families.maker(tmp_path_factory.mktemp('peers'))


@pytest.mark.parametrize('name', CASES)
def test_logits_of_a_converted_model(make, tmp_path, name):
  """Contract: those of transformers for the folder, within 1e-4 of their standard deviation."""
  family, changes = CASES[name]
  peer = make(decoders.architecture(family), **decoders.fields(family, **changes))
  model, params = interop.load(gguf_files.convert(peer.folder, tmp_path / 'x.gguf'))
  assert model.config == peer.model.config
  data = batch(40, side='right')
  error = distance(theirs_on(peer.theirs, data), ours_on(model, params, data), data.mask)
  print(f'{name}, GGUF: {error:.1e} of the standard deviation')
  assert error < SAME


# It overlooks the width of Qwen's heads in a file, and takes its default.
WIDTHS = {'llama': 8, 'qwen2': 6, 'qwen3': 128, 'gemma2': 8, 'gemma3': 8}


@pytest.mark.parametrize('name', WIDTHS)
def test_transformers_reads_the_same_file(make, tmp_path, name):
  """Its own knowledge of llama.cpp's names, order of q and k, and offsets of norms."""
  family, changes = CASES[name]
  fields = decoders.fields(family, **changes, head_dim=WIDTHS[name])
  peer = make(decoders.architecture(family), **fields)
  gguf_files.convert(peer.folder, tmp_path / 'x.gguf')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='x.gguf', dtype=torch.float32
  )
  read = theirs.state_dict()
  for key, want in peer.theirs.state_dict().items():
    np.testing.assert_allclose(read[key].numpy(), want.numpy(), atol=2e-7)


TEXTS = (
  "The rain in Spain: We'Ve 12345 déjà\n\n  vUes!!\n x",
  'then <think>there</think> 語 <|end|>THE other  thing',
)


@pytest.mark.parametrize('pre', ['llama-bpe', 'qwen2', 'tekken', 'gpt-2'])
def test_byte_level_tokenizers(tmp_path, pre):
  """Its splits of text, which it takes from the models' own tokenizers."""
  path = gguf_files.byte_level(tmp_path / 'x.gguf', pre, add_bos_token=False, bos_token_id=259)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='x.gguf')
  ours = interop.load_tokenizer(path)
  for text in TEXTS:
    assert ours.encode(text).ids == theirs(text)['input_ids']


def test_sentencepiece_tokenizers(tmp_path):
  path, _ = gguf_files.sentencepiece(tmp_path / 'x.gguf')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='x.gguf')
  ours = interop.load_tokenizer(path)
  # Behind a token that is cut out, llama.cpp puts a space before the text again; it does not.
  for text in (*TEXTS, gguf_files.PROSE, 'rain<user>   '):
    assert ours.encode(text).ids == theirs(text)['input_ids']
