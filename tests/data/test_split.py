"""A split is a partition of the records, the same on every machine; duplicates go before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.data import column, deduplicate, read, split
from jaxtune.typing import InputError


def rows(count):
  return [{'id': i} for i in range(count)]


@given(st.integers(3, 60), st.integers(0, 20), st.floats(0.05, 0.4), st.integers(0, 2**40))
def test_a_split_is_a_partition(count, valid, test, seed):
  test_count = round(test * count)
  if not test_count or valid + test_count >= count:
    with pytest.raises(InputError):
      split(rows(count), {'valid': valid, 'test': test}, seed)
    return
  sets = split(rows(count), {'valid': valid, 'test': test}, seed)
  assert list(sets) == ['train', 'valid', 'test']
  assert [len(s) for s in sets.values()] == [count - valid - test_count, valid, test_count]
  assert sorted(row['id'] for s in sets.values() for row in s) == list(range(count))
  assert sets == split(rows(count), {'valid': valid, 'test': test}, seed)


def test_the_order_is_shuffled_and_fixed_for_ever():
  ids = [row['id'] for row in split(rows(8), {}, seed=0)['train']]
  assert ids == [3, 7, 5, 2, 4, 1, 6, 0]
  assert ids != [row['id'] for row in split(rows(8), {}, seed=1)['train']]


@pytest.mark.parametrize(
  ('sizes', 'parts'),
  [
    ({'valid': -1}, ['valid', '-1']),
    ({'valid': 1.0}, ['valid', '1.0', 'fraction']),
    ({'valid': -0.5}, ['-0.5']),
    ({'valid': float('nan')}, ['nan']),
    ({'valid': '10'}, ["'10'"]),
    ({'valid': 0.01}, ['0.01 of 10', 'none']),
    ({'train': 5}, ['train']),
    ({'valid': 4, 'test': 6}, ['valid 4 + test 6 of 10', 'leaves 0']),
    ({'valid': 40}, ['valid 40 of 10']),
  ],
)
def test_bad_sizes(sizes, parts):
  with pytest.raises(InputError) as error:
    split(rows(10), sizes, seed=0)
  assert [part for part in parts if part not in str(error.value)] == []


def test_deduplicate_keeps_the_first():
  records = [{'t': 'a', 'n': 1}, {'t': 'b', 'n': 2}, {'t': 'a', 'n': 3}, {'t': ['a'], 'n': 4}]
  assert deduplicate(records, 't') == ([records[0], records[1], records[3]], 1)


def test_deduplicate_real_reviews(reviews):
  kept, dropped = deduplicate(read(reviews), 'text')
  assert (len(kept), dropped) == (33_434, 96)


def test_a_column_that_is_not_there():
  records = [{'text': 'a', 'stars': '5'}, {'stars': '4'}]
  assert column(records, 'stars') == ['5', '4']
  with pytest.raises(
    InputError, match=r"^a\.csv: row 1 has no column 'star'.*text, stars.*'stars'"
  ):
    column(records, 'star', 'a.csv')
  with pytest.raises(InputError, match="row 2 has no column 'text'; it has stars$"):
    deduplicate(records, 'text')
  with pytest.raises(InputError, match='no records'):
    column([], 'text')
