"""Long texts become blocks with nothing lost, and every token knows its word."""

import itertools

import numpy as np
import pytest

from jaxtune.data import encode_masked, read
from jaxtune.data.encodings import spaced
from jaxtune.typing import InputError


def test_words_of_tokens(wordpiece):
  (example,) = encode_masked([{'text': 'tokenizations, x-ray'}], wordpiece, max_length=16).examples
  word = wordpiece.id_to_token
  assert [word(i) for i in example['tokens']] == [
    *('[CLS]', 'token', '##izations', ',', 'x', '-', 'ray', '[SEP]')
  ]
  assert example['words'].tolist() == [-1, 0, 0, 1, 2, 3, 4, -1]
  assert example['words'].dtype == example['tokens'].dtype == np.int32


def test_long_texts_are_cut_into_blocks_that_join_to_the_text(wordpiece, reviews):
  rows = [{'text': ' '}, *read(reviews)[:6]]
  whole, cut = (encode_masked(rows, wordpiece, max_length=n) for n in (2000, 32))
  assert whole.empty == cut.empty == 1 and whole.truncated == cut.truncated == 0
  assert len(whole.examples) == 6 < len(cut.examples)
  assert max(len(example['tokens']) for example in cut.examples) == 32

  def joined(examples):
    return [e['tokens'][e['words'] >= 0] for e in examples]

  np.testing.assert_array_equal(
    np.concatenate(joined(cut.examples)), np.concatenate(joined(whole.examples))
  )
  for example in cut.examples:
    words = example['words']
    assert words[0] == words[-1] == -1  # special tokens at both ends of every block
    steps = [b - a for a, b in itertools.pairwise(words[1:-1].tolist())]
    assert words[1] == 0 and set(steps) <= {0, 1}


def test_without_special_tokens(bytewise):
  (example,) = encode_masked([{'text': 'ab cd'}], bytewise, max_length=8).examples
  assert example['words'].tolist() == [0, 0, 1, 1, 1]
  assert spaced(bytewise, ['ab', 'cd']) == ['ab', ' cd']


def test_bad_texts(wordpiece):
  with pytest.raises(InputError, match="column 'text' is empty in all 2 rows"):
    encode_masked([{'text': ''}, {'text': ' '}], wordpiece, max_length=8)
  with pytest.raises(InputError, match='max_length is 2, .* 2 special tokens'):
    encode_masked([{'text': 'a'}], wordpiece, max_length=2)
  with pytest.raises(InputError, match="row 1: 'text' is 3, which is not a string"):
    encode_masked([{'text': 3}], wordpiece, max_length=8)
