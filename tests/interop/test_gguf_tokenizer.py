"""Tokenizers in GGUF files: how text is split, SentencePiece's joins by score, and damaged ones."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import interop
from jaxtune.typing import InputError
from tests.interop.gguf_files import PROSE, byte_level, sentencepiece

TEXT = "We'Ve 12345 déjà\n\n  vUes!!\n x"
SPLITS = {
  'gpt-2': ['We', "'", 'Ve', ' 12345', ' déjà', '\n\n ', ' vUes', '!!', '\n', ' x'],
  'smollm': [
    *('We', "'", 'Ve', ' ', '1', '2', '3', '4', '5', ' déjà', '\n\n ', ' vUes', '!!', '\n', ' x'),
  ],
  'llama-bpe': ['We', "'Ve", ' ', '123', '45', ' déjà', '\n\n', ' ', ' vUes', '!!\n', ' x'],
  'qwen2': ['We', "'Ve", ' ', '1', '2', '3', '4', '5', ' déjà', '\n\n', ' ', ' vUes', '!!\n', ' x'],
  'tekken': [
    *('We', "'Ve", ' ', '1', '2', '3', '4', '5', ' déjà', '\n\n', ' ', ' v', 'Ues', '!!\n', ' x'),
  ],
  'default': [
    *('We', "'", 'Ve', ' ', '123', '45', ' déjà', '\n\n ', ' vUes', '!!', '\n', ' x'),
  ],
}


@pytest.mark.parametrize('pre', SPLITS)
def test_text_is_split_as_the_word_says(tmp_path, pre):
  tokenizer = interop.load_tokenizer(byte_level(tmp_path / 'x.gguf', pre, add_bos_token=False))
  pieces = tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
  assert [TEXT[a:b] for _, (a, b) in pieces] == SPLITS[pre]
  encoding = tokenizer.encode('the the<|end|>héthe <think>')
  assert encoding.tokens == ['the', 'Ġthe', '<|end|>', 'h', 'Ã', '©', 'the', 'Ġ', '<think>']
  assert tokenizer.decode(encoding.ids) == 'the thehéthe <think>'


def test_words_that_are_tokens_stay_whole(tmp_path):
  """`ignore_merges`: Llama 3 has tokens that no merge makes."""
  for pre, want in (('llama-bpe', ['Ġthe']), ('qwen2', ['Ġ', 'th', 'e'])):
    path = byte_level(tmp_path / 'x.gguf', pre, merges=['t h'], add_bos_token=False)
    assert interop.load_tokenizer(path).encode(' the').tokens == want


def test_where_texts_begin_and_end(tmp_path):
  def ends(pre, **fields):
    tokens = (
      interop.load_tokenizer(byte_level(tmp_path / 'x.gguf', pre, **fields)).encode('t').tokens
    )
    return tokens[0] == '<|end|>', tokens[-1] == '<|end|>'

  last = {'bos_token_id': 259, 'eos_token_id': 259}
  assert ends('qwen2', **last) == (False, False)
  assert ends('llama-bpe', **last) == (True, False)  # what llama.cpp assumes
  assert ends('llama-bpe', **last, add_bos_token=False) == (False, False)
  assert ends('qwen2', **last, add_bos_token=True, add_eos_token=True) == (True, True)
  path = byte_level(tmp_path / 'x.gguf', 'qwen2', bos_token_id=2**32 - 1, eos_token_id=259)
  assert interop.special_tokens(path)[:4] == (None, 259, None, None)


def joined(text, scores):
  """SentencePiece's BPE: of all neighbours that make a token, the best, the first of equals."""
  parts = list(text)
  while True:
    pairs = map(''.join, itertools.pairwise(parts))
    made = [(-scores[pair], i) for i, pair in enumerate(pairs) if pair in scores]
    if not made:
      break
    _, i = min(made)
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
  return [
    token
    for part in parts
    for token in ([part] if part in scores else [f'<0x{b:02X}>' for b in part.encode()])
  ]


@pytest.fixture(scope='module')
def spm(tmp_path_factory):
  path, scores = sentencepiece(tmp_path_factory.mktemp('spm') / 'x.gguf')
  return interop.load_tokenizer(path), scores


WORDS = st.sampled_from([*PROSE.split(), *'theing,', 'é', '語', '\n', 'Z'])


@settings(max_examples=200, deadline=None)
@given(text=st.lists(WORDS, max_size=12).map(' '.join) | st.lists(WORDS, max_size=12).map(''.join))
def test_sentencepiece_by_scores(spm, text):
  tokenizer, scores = spm
  want = joined('▁' + text.replace(' ', '▁'), scores) if text else []
  encoding = tokenizer.encode(text)
  assert encoding.tokens == ['<s>', *want]
  assert tokenizer.decode(encoding.ids) == text


def test_sentencepiece_learned_something(spm):
  tokenizer, _ = spm
  assert '▁the' in tokenizer.encode('the plain').tokens


def test_sentencepiece_tokens_that_are_given(tmp_path):
  """Those of users are cut out of the text; Gemma's runs of spaces are among them."""
  path, _ = sentencepiece(tmp_path / 'x.gguf', add_space_prefix=False, add_bos_token=False)
  tokenizer = interop.load_tokenizer(path)
  encoding = tokenizer.encode('n<user>   n</s>')
  assert encoding.tokens == ['n', '<user>', '   ', 'n', '</s>']
  assert tokenizer.decode(encoding.ids) == 'n<user>   n'
  path, _ = sentencepiece(tmp_path / 'x.gguf')
  tokenizer = interop.load_tokenizer(path)
  assert tokenizer.encode('the</s>the').tokens == ['<s>', '▁the', '</s>', '▁the']


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'model': None}, 'holds no tokenizer'),
    (
      {'model': 'bert'},
      "'bert' with 'qwen2'; known: llama, and gpt2 with deepseek-r1-qwen, default",
    ),
    ({'pre': 'falcon'}, "'gpt2' with 'falcon'"),
    ({'pre': None}, "'gpt2' with None"),
    ({'tokens': None}, "no metadata field 'tokenizer.ggml.tokens'"),
    ({'tokens': [1, 2]}, 'tokens is not a list of str'),
    ({'merges': ['no space', 'x']}, 'tokenizer is damaged'),
    ({'merges': ['t zzz']}, 'tokenizer is damaged'),
    ({'add_bos_token': True}, 'bos_token_id is missing'),
    ({'add_bos_token': True, 'bos_token_id': 10**6}, 'bos_token_id is missing'),
    ({'model': 'llama', 'scores': [0.0]}, 'scores are 1 for 261 tokens'),
  ],
)
def test_other_tokenizers_are_refused(tmp_path, fields, words):
  path = byte_level(tmp_path / 'x.gguf', **{'pre': 'qwen2'} | fields)
  with pytest.raises(InputError, match=words) as error:
    interop.load_tokenizer(path)
  assert 'x.gguf' in str(error.value) and '\n' not in str(error.value)
