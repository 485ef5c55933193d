"""Pairs, triplets and scored pairs to parts; halves of texts as pairs."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxtune import data
from jaxtune.data.row import Row
from jaxtune.typing import InputError

PAIRS = [
  {'anchor': 'good', 'positive': 'fine film'},
  {'anchor': 'bad ' * 30, 'positive': 'dull ' * 30},
  {'anchor': ' ', 'positive': 'film'},
  {'anchor': 'great', 'positive': 'fine film'},
]


def test_pairs_are_parts_with_special_tokens(wordpiece):
  encoded = data.encode_pairs(PAIRS, wordpiece, 8)
  word = wordpiece.token_to_id
  cls, sep = word('[CLS]'), word('[SEP]')
  first, second, last = encoded.examples
  assert first['anchor']['tokens'].tolist() == [cls, word('good'), sep]
  assert first['positive']['tokens'].tolist() == [cls, word('fine'), word('film'), sep]
  assert second['anchor']['tokens'].tolist() == [cls, *[word('bad')] * 6, sep]
  assert {part['tokens'].dtype for part in last.values()} == {np.dtype(np.int32)}
  assert (encoded.truncated, encoded.empty, encoded.repeated) == (2, 1, 1)


def test_they_become_batches(wordpiece):
  rows = [{**row, 'negative': 'no', 'label': i / 2} for i, row in enumerate(PAIRS)]
  (batch,) = data.eval_batches(data.encode_pairs(rows, wordpiece, 8).examples, 4, max_length=8)
  assert set(batch) == {'anchor', 'positive', 'negative', 'label', 'weight'}
  assert batch['negative']['tokens'].shape == batch['anchor']['mask'].shape == (4, 8)
  np.testing.assert_array_equal(batch['label'], np.float32([0, 0.5, 1.5, 1.5]))
  np.testing.assert_array_equal(batch['weight'], [1, 1, 1, 0])


@pytest.mark.parametrize(
  'rows, message',
  [
    ([], 'no records; at least one is needed'),
    ([{'anchor': 'a'}], "row 1 has no column 'positive'"),
    ([{'anchor': 'a', 'positive': 3}], "row 1: 'positive' is 3, which is not a string"),
    ([PAIRS[0] | {'negative': 'x'}, PAIRS[1]], "row 2 has no column 'negative'"),
    ([PAIRS[0] | {'label': 'high'}], "row 1: 'label' is 'high', which is not a finite number"),
    ([PAIRS[0] | {'label': 1.0}, PAIRS[0] | {'label': float('inf')}], "row 2: 'label' is inf"),
    ([Row(PAIRS[0] | {'label': None}, 'a.csv: line 2')], "^a.csv: line 2: 'label' is None"),
    ([PAIRS[2]], 'in all 1 rows anchor or positive is empty'),
  ],
)
def test_rows_that_break_the_rules_are_named(rows, message, wordpiece):
  with pytest.raises(InputError, match=message):
    data.encode_pairs(rows, wordpiece, 8)


def test_a_length_without_room_is_refused(wordpiece):
  with pytest.raises(InputError, match='max_length is 2, but the tokenizer adds 2 special tokens'):
    data.encode_pairs(PAIRS, wordpiece, 2)


def test_halves_end_with_a_sentence():
  rows = [
    {'text': 'It was long. "Why?" he asked. I left early, and slept.'},
    {'text': 'one sentence only.'},
    Row({'text': 'Never again! 7/10'}, 'r.csv: line 4'),
  ]
  pairs, dropped = data.halves(rows)
  assert pairs == [
    {'anchor': 'It was long. "Why?" he asked.', 'positive': 'I left early, and slept.'},
    {'anchor': 'Never again!', 'positive': '7/10'},
  ]
  assert dropped == 1 and pairs[1].place == 'r.csv: line 4'
  with pytest.raises(InputError, match="column 'text': none of the 1 texts has two sentences"):
    data.halves(rows[1:2])


@hypothesis.given(st.text('ab.!?" \n', max_size=40))
def test_halves_lose_nothing_but_space(text):
  try:
    ((pair,), _) = data.halves([{'text': text}])
  except InputError:
    return
  assert pair['anchor'] and pair['positive'] == pair['positive'].strip()
  assert (pair['anchor'] + pair['positive']).split() == text.split() or (
    f'{pair["anchor"]} {pair["positive"]}'.split() == text.split()
  )
