"""Tokenizers of folders, and the one of a real GGUF file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import interop
from jaxtune.typing import InputError


def test_minilm_without_its_own_lengths(minilm):
  raw = json.loads((minilm / 'tokenizer.json').read_text())
  assert raw['truncation'] and raw['padding']  # else this test shows nothing
  tokenizer = interop.load_tokenizer(minilm)
  encoding = tokenizer.encode('film ' * 300)
  assert len(encoding.ids) == 302 and encoding.tokens[0] == '[CLS]'
  assert len(tokenizer.encode('film').ids) == 3
  assert interop.special_tokens(minilm).pad == tokenizer.token_to_id('[PAD]') == 0


@pytest.fixture(scope='module')
def smol(smollm2):
  return interop.load_tokenizer(smollm2)


def test_smollm2_knows_its_tokens(smol, smollm2):
  special = interop.special_tokens(smollm2)
  assert (special.bos, special.eos, special.pad) == (1, 2, 2)
  assert '<|im_start|>' in special.chat_template
  assert smol.get_vocab_size() == 49152
  assert smol.encode('Hello world').ids == [19556, 905]
  assert smol.encode('<|im_start|>user\n1234<|im_end|>').tokens == [
    *('<|im_start|>', 'user', 'Ċ', '1', '2', '3', '4', '<|im_end|>')
  ]
  assert smol.decode([1, 19556, 2]) == 'Hello'  # special tokens are skipped


@settings(max_examples=50, deadline=None)
@given(
  text=st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=['Cs', 'Cc']), max_size=40)
)
def test_smollm2_round_trip(smol, text):
  # Its vocabulary lacks some bytes: of control characters and of the planes behind.
  if '<' not in text:
    assert smol.decode(smol.encode(text).ids) == text


def test_special_tokens_of_a_folder(tmp_path, minilm):
  (tmp_path / 'tokenizer.json').write_text((minilm / 'tokenizer.json').read_text())
  (tmp_path / 'config.json').write_text('{"eos_token_id": [7, 8], "pad_token_id": 3}')
  named = {'bos_token': {'content': '[CLS]'}, 'pad_token': '[PAD]', 'chat_template': 'T'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(named))
  assert interop.special_tokens(tmp_path)[:4] == (101, 7, 0, 'T')
  (tmp_path / 'chat_template.jinja').write_text('J')
  assert interop.special_tokens(tmp_path).chat_template == 'J'


def test_no_tokenizer(tmp_path):
  with pytest.raises(InputError, match='has no tokenizer.json'):
    interop.load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"model": 1}')
  with pytest.raises(InputError, match='tokenizer.json: is not a tokenizer'):
    interop.load_tokenizer(tmp_path)
