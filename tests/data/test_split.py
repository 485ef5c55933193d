"""A split is a partition of the records, the same on every machine; duplicates go before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune import data
from jaxtune.data import (
  check_classes,
  column,
  deduplicate,
  read,
  side_by_hash,
  split,
  split_by_hash,
  stream,
)
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


def texts(count, start=0):
  return [{'id': i, 'text': f'text {i % 70}'} for i in range(start, start + count)]


def test_duplicates_of_whole_records_nearly_the_same_and_of_other_sets():
  records = [{'t': 'A  b'}, {'t': 'a b\n'}, {'t': 'A  b'}, {'t': ['A b']}, {'t': 'c', 'n': 1}]
  assert deduplicate(records)[0] == [records[i] for i in (0, 1, 3, 4)]
  assert deduplicate(records, near=True)[0] == [records[i] for i in (0, 3, 4)]
  assert deduplicate(records, 't', beside=[{'t': 'c'}])[0] == [records[i] for i in (0, 1, 3)]
  kept, dropped = deduplicate(records, 't', near=True, beside=[{'t': 'a B'}, {'t': ['a b']}])
  assert (kept, dropped) == ([records[4]], 4)
  assert deduplicate([{'t': 1}, {'t': True}, {'t': '1'}, {'t': 1.0}])[1] == 0


@given(st.integers(1, 400), st.integers(0, 2**40), st.randoms())
def test_a_record_never_changes_sides(count, seed, random):
  side = side_by_hash({'valid': 0.2, 'test': 0.1}, seed, 'text')
  records = texts(count)
  before = [side(record) for record in records]
  assert set(before) <= {'train', 'valid', 'test'}
  grown = list(enumerate(texts(count) + texts(50, count)))
  random.shuffle(grown)
  for number, record in grown:
    if number < count:
      assert side({**record, 'more': 1}) == before[number]
    assert side(record) == side({'text': record['text']})


def test_hashing_is_fixed_for_ever_and_close_to_the_sizes():
  side = side_by_hash({'valid': 0.2, 'test': 0.1}, seed=7)
  sides = [side({'text': str(n)}) for n in range(12)]
  assert sides == [*['train'] * 9, 'valid', 'train', 'test']
  sets = split_by_hash([{'n': n} for n in range(5000)], {'valid': 0.2, 'test': 0.1}, seed=0)
  assert list(sets) == ['train', 'valid', 'test']
  assert sorted(row['n'] for rows in sets.values() for row in rows) == list(range(5000))
  for name, share in {'train': 0.7, 'valid': 0.2, 'test': 0.1}.items():
    assert abs(len(sets[name]) / 5000 - share) < 4 * (share * (1 - share) / 5000) ** 0.5
  assert sets != split_by_hash([{'n': n} for n in range(5000)], {'valid': 0.2, 'test': 0.1}, seed=1)


@pytest.mark.parametrize(
  ('sizes', 'parts'),
  [
    ({'valid': 100}, ['valid', '100', 'fraction']),
    ({'valid': 0.0}, ['valid', '0.0']),
    ({'train': 0.5}, ['train gets']),
    ({'valid': 0.5, 'test': 0.5}, ['leaves nothing']),
    ({'valid': 1e-9}, ['none of 10 records falls to valid']),
  ],
)
def test_bad_sizes_by_hash(sizes, parts):
  with pytest.raises(InputError) as error:
    split_by_hash(rows(10), sizes, seed=0)
  assert [part for part in parts if part not in str(error.value)] == []


def test_a_stream_is_split_by_the_same_hash(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(f'{{"id": {n}}}' for n in range(200)))
  side = side_by_hash({'test': 0.3}, seed=0)
  found = list(stream(path).filter(lambda record: side(record) == 'test'))
  assert found == split_by_hash(read(path), {'test': 0.3}, seed=0)['test']


def test_classes_missing_from_a_set():
  def labels(*names):
    return [{'label': name} for name in names]

  assert check_classes({'train': labels(1, 2), 'test': labels(2, 1)}, 'label') == []
  (remark,) = check_classes({'train': labels(1, [2, 3]), 'test': labels(2), 'valid': []}, 'label')
  assert remark.startswith("test has no row of '1', '3', of the 3 classes of 'label'")
  with pytest.raises(InputError, match="test has the class '3' of 'label', which train lacks"):
    check_classes({'train': labels(1, 2), 'test': labels(3)}, 'label')


def test_what_is_held_out_of_a_stream():
  held = [{'text': 'Good  film', 'id': 1}]
  rows = [{'text': 'good film', 'id': 2}, {'text': 'Good  film', 'id': 3}, {'text': 'bad', 'id': 1}]
  assert [data.absent_from(held, 'text')(row) for row in rows] == [True, False, True]
  assert [data.absent_from(held, 'text', near=True)(row) for row in rows] == [False, False, True]
  assert all(map(data.absent_from(held), rows)) and not data.absent_from(held)(held[0])
