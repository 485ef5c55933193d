"""Tags of words on the first of their tokens."""

import numpy as np
import pytest

from jaxtune.data import batches, encode_tags, tag_names
from jaxtune.typing import InputError

ROWS = [
  {'tokens': ['Tokenizations', 'of', 'x-ray'], 'tags': ['B-x', 'I-x', 'O']},
  {'tokens': [], 'tags': []},
  {'tokens': ['fine'], 'tags': ['O']},
]
NAMES = ('B-x', 'I-x', 'O')


def test_the_first_token_of_a_word_has_its_tag(wordpiece):
  found = encode_tags(ROWS, wordpiece, max_length=16)
  assert (found.names, found.empty, found.truncated) == (NAMES, 1, 0)
  first, second = found.examples
  tokens = [wordpiece.id_to_token(i) for i in first['tokens']]
  assert tokens == ['[CLS]', 'token', '##izations', 'of', 'x', '-', 'ray', '[SEP]']
  assert first['tags'].tolist() == [-100, 0, -100, 1, 2, -100, -100, -100]
  assert second['tags'].tolist() == [-100, 2, -100]
  assert first['tags'].dtype == first['tokens'].dtype == np.int32
  batch = next(batches(found.examples, 2, max_length=10, seed=0))
  assert batch['tags'].shape == batch['tokens'].shape == (2, 10)


def test_all_tokens_of_a_word_go_on_with_its_entity(wordpiece):
  found = encode_tags(ROWS, wordpiece, max_length=16, all_subwords=True)
  assert found.examples[0]['tags'].tolist() == [-100, 0, 1, 1, 2, 2, 2, -100]


def test_tags_as_numbers(wordpiece):
  rows = [{'tokens': ['a', 'b', 'c'], 'tags': [10, 2, 2]}]
  found = encode_tags(rows, wordpiece, max_length=8)
  assert found.names == tag_names(rows) == ('2', '10')
  assert found.examples[0]['tags'].tolist() == [-100, 1, 0, 0, -100]
  rows = [{'tokens': ['a', 'b'], 'tags': [2, 0]}]
  found = encode_tags(rows, wordpiece, max_length=8, names=NAMES)
  assert found.examples[0]['tags'].tolist() == [-100, 2, 0, -100]


def test_what_is_cut_and_what_is_left_without_a_tag(wordpiece):
  found = encode_tags(ROWS, wordpiece, max_length=4)
  assert found.truncated == 1
  assert found.examples[0]['tags'].tolist() == [-100, 0, -100, -100]
  rows = [{'tokens': ['\u200b'], 'tags': ['O']}, ROWS[0]]  # a word of no token
  assert encode_tags(rows, wordpiece, max_length=8, names=NAMES).unlearned == 1


def test_prediction_marks_the_first_token_of_every_word(wordpiece):
  rows = [{'tokens': row['tokens']} for row in ROWS]
  found = encode_tags(rows, wordpiece, max_length=16, tags=None, names=NAMES)
  assert [(e['tags'] == 0).sum() for e in found.examples] == [3, 0, 1]


def test_a_space_belongs_to_a_word_of_bytes(bytewise):
  (example,) = encode_tags(
    [{'tokens': ['ab', 'c'], 'tags': ['x', 'y']}], bytewise, max_length=9
  ).examples
  assert bytewise.decode(example['tokens'].tolist()) == 'ab c'
  assert example['tags'].tolist() == [0, -100, 1, -100]


BAD = [
  ({'tokens': ['a', 'b'], 'tags': ['O']}, 'row 2: 2 tokens but 1 tags; every word needs one tag'),
  ({'tokens': ['a'], 'tags': ['B-y']}, "row 2: the tag 'B-y' is none of B-x, I-x, O"),
  ({'tokens': ['a'], 'tags': [3]}, 'row 2: the tag 3 is none of'),
  ({'tokens': ['a'], 'tags': [-1]}, 'row 2: the tag -1 is none of'),
  ({'tokens': 'a b', 'tags': ['O', 'O']}, "row 2: 'tokens' is 'a b', which is no list"),
  ({'tokens': ['a'], 'tags': 'O'}, "row 2: 'tags' is 'O', which is no list; give one of tags"),
  ({'tokens': [5], 'tags': ['O']}, r"row 2: 'tokens' holds '5' \(int\); give a list of words"),
  ({'tokens': ['a'], 'tags': [None]}, r"row 2: 'tags' holds 'None' \(NoneType\)"),
  ({'tokens': ['a'], 'tags': [True]}, r"row 2: 'tags' holds 'True' \(bool\)"),
  ({'tokens': [''], 'tags': ['O']}, "row 2: 'tokens' holds an empty one"),
  ({'tokens': ['\ud800'], 'tags': ['O']}, 'holds half a character'),
  ({'words': ['a'], 'tags': ['O']}, "no column 'tokens'; it has words, tags"),
]


@pytest.mark.parametrize('row, message', BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_rows(wordpiece, row, message):
  with pytest.raises(InputError, match=message):
    encode_tags([ROWS[0], row], wordpiece, max_length=8, names=NAMES)


def test_nothing_to_learn(wordpiece):
  with pytest.raises(InputError, match="column 'tokens' is empty in all 1 rows"):
    encode_tags([ROWS[1]], wordpiece, max_length=8, names=NAMES)
  with pytest.raises(InputError, match="column 'tags' holds 1 different tags in 1 rows"):
    encode_tags([ROWS[2]], wordpiece, max_length=8)
