"""Every token that should be learned is learned once, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.data import SpecialTokens, Tokenizer, render_many
from jaxtune.typing import InputError

EOS = 1


def text(tok, *texts, max_length, eos=None):
  if not isinstance(tok, Tokenizer):
    tok = Tokenizer(tok, SpecialTokens(eos=eos))
  return render_many(tok, [{'text': t} for t in texts], max_length=max_length)


def complete(tok, *pairs, max_length, eos=None):
  if not isinstance(tok, Tokenizer):
    tok = Tokenizer(tok, SpecialTokens(eos=eos))
  rows = [{'prompt': p, 'completion': c} for p, c in pairs]
  return render_many(tok, rows, max_length=max_length)


def learned(bytewise, example):
  return bytewise.decode(
    example['tokens'][example['supervised']].tolist(), skip_special_tokens=False
  )


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.integers(2, 12))
def test_blocks_learn_every_token_but_the_first_once(bytewise, texts, max_length):
  if not any(texts):
    with pytest.raises(InputError, match='is empty in all'):
      text(bytewise, *texts, max_length=max_length, eos=EOS)
    return
  result = text(bytewise, *texts, max_length=max_length, eos=EOS)
  documents = [[*bytewise.encode(t).ids, EOS] for t in texts if t]
  assert result.empty == len(texts) - len(documents)
  targets = [t for e in result.examples for t in e['tokens'][e['supervised']].tolist()]
  assert targets == [token for document in documents for token in document[1:]]
  assert all(2 <= len(e['tokens']) <= max_length for e in result.examples)
  assert not any(e['supervised'][0] for e in result.examples)
  heads = iter(documents)
  for previous, example in zip([None, *result.examples], result.examples, strict=False):
    if previous is None or previous['tokens'][-1] == EOS:
      assert example['tokens'][0] == next(heads)[0]
    else:
      assert example['tokens'][0] == previous['tokens'][-1]


def test_text_without_special_tokens(bytewise, begun):
  result = text(bytewise, 'abcde', 'x', '', max_length=3)
  assert [learned(bytewise, e) for e in result.examples] == ['bc', 'de']
  assert (result.truncated, result.empty, result.unlearned) == (0, 1, 1)
  assert len(text(begun, 'x', max_length=3).examples) == 1
  with pytest.raises(InputError, match='no document has the 2 tokens'):
    text(bytewise, 'x', max_length=3)


def test_text_adds_no_special_tokens_of_the_tokenizer(wordpiece):
  result = text(wordpiece, 'word ' * 200, max_length=101)
  assert np.unique(np.concatenate([e['tokens'] for e in result.examples])).tolist() == [
    wordpiece.token_to_id('word')
  ]
  assert [len(e['tokens']) for e in result.examples] == [101, 100]


def test_completions(bytewise, begun):
  result = complete(begun, ('ab', 'cd'), max_length=9)
  (example,) = result.examples
  assert bytewise.decode(example['tokens'].tolist(), skip_special_tokens=False) == '<bos>abcd<eos>'
  assert example['supervised'].tolist() == [False, False, False, True, True, True]
  assert learned(bytewise, example) == 'cd<eos>'
  assert (example['tokens'].dtype, example['supervised'].dtype) == (np.int32, np.bool_)


def test_completions_are_cut_and_counted(bytewise):
  pairs = [('ab', 'cd'), ('abcde', 'f'), ('a', ''), ('', 'xyz'), ('', 'x')]
  result = complete(bytewise, *pairs, max_length=3, eos=EOS)
  assert [learned(bytewise, e) for e in result.examples] == ['c', 'yz', '<eos>']
  assert (result.truncated, result.unlearned, result.empty) == (3, 1, 1)
  assert complete(bytewise, ('ab', 'cd'), max_length=5, eos=EOS).truncated == 0


def test_zero_supervised_tokens(bytewise):
  with pytest.raises(
    InputError, match='2 rows 1 have an empty comple.*, and 1 lose all .* 4; raise'
  ):
    complete(bytewise, ('abcd', 'e'), ('a', ''), max_length=4, eos=EOS)
  with pytest.raises(InputError, match='no supervised token'):
    complete(bytewise, ('', 'x'), max_length=4)
  for max_length in (0, -2):
    with pytest.raises(InputError, match='no supervised token'):
      complete(bytewise, ('', 'xyz'), max_length=max_length)


def test_no_room_to_learn(bytewise):
  with pytest.raises(InputError, match='or max_length, 1, has no room'):
    text(bytewise, 'abc', max_length=1)
  with pytest.raises(InputError, match='no records'):
    text(bytewise, max_length=4)
