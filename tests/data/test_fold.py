"""Folded in Python or normalized by the tokenizer, every text has the same tokens."""

import string

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from jaxtune.data import fold

TEXTS = st.lists(
  st.text(st.characters(max_codepoint=127))
  | st.text()
  | st.sampled_from(['[SEP] Hello', 'A\tb\n\x00c\x7f', '[sep]', 'Ünï [CLS]', '']),
  max_size=6,
)
NORMALIZERS = {
  'bert': normalizers.BertNormalizer(),
  'bert, cased': normalizers.BertNormalizer(lowercase=False),
  'bert, unclean': normalizers.BertNormalizer(clean_text=False, strip_accents=False),
  'sequence': normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
  'accents': normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}


def characters(normalizer):
  """A tokenizer of single characters, so that every difference shows."""
  vocabulary = {char: i for i, char in enumerate(['?', *map(chr, range(128)), 'é', 'ü'])}
  vocabulary |= {f'##{char}': 500 + i for char, i in vocabulary.items()}
  model = tokenizers.models.WordPiece(vocabulary, unk_token='?', max_input_chars_per_word=50)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.add_special_tokens(['[CLS]', '[SEP]'])
  return tokenizer


@pytest.mark.parametrize('name', NORMALIZERS)
@given(texts=TEXTS)
@settings(max_examples=30, deadline=None)
def test_the_same_tokens(name, texts):
  tokenizer = characters(NORMALIZERS[name])
  encode = fold.encoder(tokenizer)
  assert encode != tokenizer.encode_batch_fast
  want = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
  assert [e.ids for e in encode(texts, add_special_tokens=False)] == want


def test_the_real_tokenizer_with_its_cut_and_special_tokens(minilm):
  tokenizer = tokenizers.Tokenizer.from_file(str(minilm / 'tokenizer.json'))
  tokenizer.no_padding()
  tokenizer.enable_truncation(8)
  texts = ['A Film, of 9 words!\n' * n for n in range(4)] + ['Café [SEP]', string.printable]
  found, want = fold.encoder(tokenizer)(texts), tokenizer.encode_batch(texts)
  assert [e.ids for e in found] == [e.ids for e in want]
  assert [len(e.overflowing) for e in found] == [len(e.overflowing) for e in want]


def test_what_is_not_known_stays_with_the_tokenizer():
  for normalizer in (
    normalizers.Prepend('x'),
    normalizers.Replace('a', 'b'),
    normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()]),
    None,
  ):
    tokenizer = characters(normalizers.Lowercase())
    tokenizer.normalizer = normalizer
    assert fold.encoder(tokenizer) == tokenizer.encode_batch_fast
  tokenizer = characters(normalizers.Lowercase())
  tokenizer.add_tokens([tokenizers.AddedToken('Film', normalized=True)])
  assert fold.encoder(tokenizer) == tokenizer.encode_batch_fast
