"""Texts and targets: special tokens survive the cut, rows that break the rules are named."""

import numpy as np
import pytest

from jaxtune.data import (
  class_names,
  encode_classification,
  encode_multi_label,
  encode_regression,
  label_names,
  read,
)
from jaxtune.typing import InputError

ROWS = [
  {'text': 'good film', 'label': 'pos'},
  {'text': 'bad ' * 30, 'label': 'neg'},
  {'text': '  ', 'label': 'pos'},
  {'text': 'fine', 'label': 'pos'},
]
NAMES = ('neg', 'pos')


def classify(rows, tokenizer, *, label='label', names=NAMES, max_length=8):
  return encode_classification(
    rows, tokenizer, text='text', label=label, names=names, max_length=max_length
  )


def test_classification(wordpiece):
  result = classify(ROWS, wordpiece)
  word = wordpiece.token_to_id
  cls, sep = word('[CLS]'), word('[SEP]')
  tokens = [example['tokens'].tolist() for example in result.examples]
  assert tokens == [
    [cls, word('good'), word('film'), sep],
    [cls, *[word('bad')] * 6, sep],
    [cls, word('fine'), sep],
  ]
  assert [int(example['label']) for example in result.examples] == [1, 0, 1]
  assert {e['tokens'].dtype for e in result.examples} == {np.dtype(np.int32)}
  assert {e['label'].dtype for e in result.examples} == {np.dtype(np.int32)}
  assert (result.truncated, result.empty, result.names) == (1, 1, NAMES)


def test_prediction_keeps_every_row(wordpiece, bytewise):
  rows = [{'text': row['text']} for row in ROWS]
  result = classify(rows, wordpiece, label=None)
  assert len(result.examples) == 4 and result.empty == 1
  assert all(set(example) == {'tokens'} for example in result.examples)
  with pytest.raises(InputError, match=r"^the data: row 2: column 'text' is empty"):
    classify([{'text': 'a'}, {'text': ''}], bytewise, label=None)


def test_real_reviews_longer_than_the_file_of_the_tokenizer_asks(wordpiece, reviews):
  before = wordpiece.to_str()
  rows = read(reviews)[:200]
  result = classify(rows, wordpiece, names=('0', '1'), max_length=300)
  assert wordpiece.to_str() == before  # still cuts and pads to 128 for its owner
  plain = type(wordpiece).from_str(before)
  plain.no_padding()
  plain.no_truncation()
  whole = [plain.encode(row['text']).ids for row in rows]
  cut = [ids if len(ids) <= 300 else ids[:299] + ids[-1:] for ids in whole]
  assert [example['tokens'].tolist() for example in result.examples] == cut
  assert result.truncated == sum(len(ids) > 300 for ids in whole) > 0
  assert min(map(len, whole)) < 128 < max(map(len, cut))


def test_label_names_by_value_when_they_are_numbers():
  names = lambda *values: label_names([{'y': value} for value in values], 'y')  # noqa: E731
  assert names('10', '9', '2', '9') == ('2', '9', '10')
  assert names(10, 9, -1) == ('-1', '9', '10')
  assert names('b', 'a', '10', '9') == ('10', '9', 'a', 'b')
  assert names(True, False) == ('False', 'True')
  assert names(' a', 'a ', 'b') == ('a', 'b')


def test_bad_labels(wordpiece):
  with pytest.raises(InputError, match="one class only, 'pos', in all 2 rows"):
    label_names([ROWS[0], ROWS[3]], 'label')
  for empty in ('', ' ', None):
    with pytest.raises(InputError, match="row 2: column 'label' is empty"):
      label_names([ROWS[0], {'label': empty}], 'label')
  with pytest.raises(InputError, match=r"row 2 \('so so'\).*'meh'.*\(neg, pos\)"):
    classify([ROWS[0], {'text': 'so so', 'label': 'meh'}], wordpiece)
  many = [str(i) for i in range(40)]
  with pytest.raises(InputError, match=r'\(0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more\)'):
    classify(ROWS, wordpiece, names=many)


def test_bad_texts(wordpiece):
  with pytest.raises(InputError, match="column 'text' is empty in all 2 rows"):
    classify([{'text': ' ', 'label': 'pos'}, {'text': '', 'label': 'neg'}], wordpiece)
  with pytest.raises(InputError, match="row 2: 'text' is 5, which is not a string"):
    classify([ROWS[0], {'text': 5, 'label': 'pos'}], wordpiece)
  with pytest.raises(InputError, match='row 1: .text. holds half a character'):
    classify([{'text': 'a\ud83d', 'label': 'pos'}], wordpiece)
  with pytest.raises(InputError, match="no column 'text'; it has review, label"):
    classify([{'review': 'a', 'label': 'pos'}], wordpiece)


@pytest.mark.parametrize('max_length', [2, 1, 0, -3])
def test_a_limit_without_room_beside_the_special_tokens(wordpiece, max_length):
  with pytest.raises(InputError, match=f'max_length is {max_length}, .* 2 special.*at least 3'):
    classify(ROWS, wordpiece, max_length=max_length)
  assert len(classify(ROWS, wordpiece, max_length=3).examples[0]['tokens']) == 3


def test_regression(wordpiece):
  rows = [{'text': 'a', 'y': '1.5'}, {'text': 'b', 'y': -2}, {'text': '', 'y': 0}]
  result = encode_regression(rows, wordpiece, text='text', label='y', max_length=8)
  assert [float(example['label']) for example in result.examples] == [1.5, -2.0]
  assert {e['label'].dtype for e in result.examples} == {np.dtype(np.float32)}
  assert (result.empty, result.names) == (1, None)
  result = encode_regression(rows, wordpiece, text='text', label=None, max_length=8)
  assert len(result.examples) == 3


@pytest.mark.parametrize('bad', ['five', '', None, 'nan', float('inf'), 1e300, [1]])
def test_bad_targets(wordpiece, bad):
  rows = [{'text': 'a', 'y': 1}, {'text': 'bbb', 'y': bad}]
  with pytest.raises(InputError, match=r"row 2 \('bbb'\): column 'y' is .*not a finite number"):
    encode_regression(rows, wordpiece, text='text', label='y', max_length=8)


def test_several_labels(wordpiece):
  rows = [
    {'text': 'a', 'label': ['war', 'love']},
    {'text': 'b', 'label': []},
    {'text': '', 'label': ['war']},
    {'text': 'c', 'label': ['sea', 'sea']},
  ]
  result = encode_multi_label(rows, wordpiece, max_length=8)
  assert (result.names, result.empty) == (('love', 'sea', 'war'), 1)
  assert [e['label'].tolist() for e in result.examples] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
  assert {e['label'].dtype for e in result.examples} == {np.dtype(np.float32)}
  assert class_names([{'y': [10, 9]}, {'y': [9]}], 'y') == ('9', '10')
  result = encode_multi_label(rows, wordpiece, max_length=8, label=None, names=('a', 'b'))
  assert len(result.examples) == 4 and result.names == ('a', 'b')


def test_bad_lists_of_labels(wordpiece):
  def encode(label, **options):
    rows = [{'text': 'a', 'label': ['x']}, {'text': 'b', 'label': label}]
    return encode_multi_label(rows, wordpiece, max_length=8, **options)

  with pytest.raises(InputError, match="row 2: column 'label' is 'x', which is no list of classes"):
    encode('x')
  with pytest.raises(InputError, match=r"row 2 \('b'\): column 'label' is 'y', .*none of .*\(x\)"):
    encode(['y'], names=('x',))
  with pytest.raises(InputError, match="column 'label' is empty"):
    encode(['x', None])
  with pytest.raises(InputError, match="'y' names no class in any of 1 rows"):
    class_names([{'y': []}], 'y')
