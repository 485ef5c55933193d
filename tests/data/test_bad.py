"""Bad records: refused with their file and line, or left out, counted and passed over alike."""

import json
import math
import re

import numpy as np
import pytest

from jaxtune import data
from jaxtune.data.row import RecordError
from jaxtune.typing import InputError

JSONL = [
  b'{"text": "one"}',
  b'{"text": "two"',
  b'[3]',
  b'{"text": "caf\xe9"}',
  b'{"text": "five", "text": "again"}',
  b'{"text": "half \\ud800"}',
  b'',
  b'{"text": "eight"}',
]
CSV = [
  b'text,n',
  b'one,1',
  b'two',
  b'"three,3',  # never closed: the lines behind it are records
  b'four,4',
  b'"five"x,5',
  b'"caf\xe9',
  b'more",6',
  b'"eight',
  b'more",8',
]
FILES = {
  'a.jsonl': (b'\n'.join(JSONL), ['one', 'eight'], [2, 3, 4, 5, 6]),
  'a.csv': (b'\n'.join(CSV), ['one', 'four', 'eight\nmore'], [3, 4, 6, 7]),
  'a.json': (b'[{"text": "one"}, 2, {"text": "three"}]', ['one', 'three'], [2]),
}


@pytest.fixture(params=FILES)
def dirty(request, tmp_path):
  content, good, bad = FILES[request.param]
  (tmp_path / request.param).write_bytes(content)
  return tmp_path / request.param, good, bad


def test_what_is_bad_is_left_out_and_named(dirty):
  path, good, bad = dirty
  read, streamed = data.Skipped(100), data.Skipped(100)
  records = data.read(path, read)
  assert [record['text'] for record in records] == good
  stream = [*data.stream(path, streamed)]
  assert stream == records and [r.place for r in stream] == [r.place for r in records]
  assert read.reasons == streamed.reasons and len(read.reasons) == len(bad)
  places = [re.match(rf'{re.escape(str(path))}: (lines?|item) (\d+)', why) for why in read.reasons]
  assert [int(place[2]) for place in places] == bad
  assert f'{len(bad)} records could not be used' in read.remark() and str(path) in read.remark()
  with pytest.raises(InputError) as error:
    data.read(path)
  assert str(error.value) == next(iter(read.reasons))


def test_a_stream_counts_from_a_saved_place_as_from_the_beginning(dirty):
  path, good, bad = dirty
  records = iter(data.stream(path, data.Skipped(len(bad))))
  states = [json.loads(json.dumps(records.get_state()))]
  states += [records.get_state() for _ in records]
  assert states[-1]['bad'] <= len(bad)  # those behind the last good one are not passed yet
  for taken, state in enumerate(states):
    again = iter(data.stream(path, data.Skipped(len(bad))))
    again.set_state(state)
    assert [record['text'] for record in again] == good[taken:]
    assert again.get_state()['bad'] == len(bad)
  few = iter(data.stream(path, data.Skipped(max(1, len(bad) - 1))))
  few.set_state(states[1])  # some went before
  if len(bad) > 1:
    with pytest.raises(InputError, match=f'more than {len(bad) - 1} records cannot be used'):
      list(few)


def test_a_text_of_a_parquet_file_that_is_none(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  texts = [b'ok', b'caf\xe9', *[b'more'] * 300]
  raw = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
  parquet.write_table(pyarrow.table({'text': raw}), tmp_path / 'a.parquet')
  skipped = data.Skipped(1)
  assert len(data.read(tmp_path / 'a.parquet', skipped)) == 301
  assert 'a.parquet: row 2: a text is not UTF-8' in skipped.remark()


ROWS = [
  {'id': 1, 'prompt': 'a', 'completion': 'b'},
  {'id': 2, 'prompt': None, 'completion': 'b'},
  {'id': 3, 'completion': 'b'},
  {'id': 1, 'prompt': 'c', 'completion': 'd'},
  {'id': 4, 'prompt': ['e'], 'completion': 'f'},
  {'id': 5, 'prompt': 'g', 'completion': 'h'},
]


def test_records_of_another_form_are_left_out(tmp_path):
  skipped = data.Skipped(100)
  found = data.normalize(ROWS, skipped=skipped)
  assert found.records == [{'prompt': 'a', 'completion': 'b'}, {'prompt': 'g', 'completion': 'h'}]
  assert [why.split(':')[1] for why in skipped.reasons] == [f' row {n}' for n in (2, 3, 4, 5)]
  path = tmp_path / 'a.jsonl'
  lines = [json.dumps(row) for row in ROWS]
  path.write_text('\n'.join([lines[0], 'no record', *lines[1:]]))
  passed = data.Skipped(100)
  stream = data.normalize(data.stream(path, passed)).records
  assert [row['prompt'] for row in stream] == ['a', 'c', 'g']  # ids are compared in memory
  assert [why.split('line ')[1][0] for why in passed.reasons] == ['2', '3', '4', '6']


def test_limits(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "one"}\nbad\n{"text": "three"}\nworse\n')
  with pytest.raises(InputError, match='more than 1 records .*data.bad_limit.*line 2: not JSON'):
    data.read(path, data.Skipped(1))
  for share in (0.49, 0.5, math.inf):
    skipped = data.Skipped(share)
    kept = len(data.read(path, skipped))
    if share == 0.49:
      with pytest.raises(InputError, match='2 of 4 records .* more than 49.00%.*line 2'):
        skipped.check(kept)
    else:
      skipped.check(kept)
  path.write_text('bad\nworse\n')
  with pytest.raises(InputError, match='2 of 2 records cannot be used, which are all.*line 1'):
    data.read(path, data.Skipped(0.9))
  with pytest.raises(InputError, match='no records in the file'):
    (tmp_path / 'empty.jsonl').write_text('')
    data.read(tmp_path / 'empty.jsonl', data.Skipped(9))
  with pytest.raises(InputError, match='limit of bad records is 0'):
    data.Skipped(0)


def test_what_an_encoder_refuses_one_by_one_is_left_out():
  def use(rows):
    for row in rows:
      if row % 7 == 3:
        raise RecordError(f'row {row}')
    if len(rows) < 3:
      raise InputError('too few together')
    return sum(rows)

  skipped = data.Skipped(100)
  kept, made = data.usable(range(40), use, skipped)
  assert kept == [row for row in range(40) if row % 7 != 3] and made == sum(kept)
  assert list(skipped.reasons) == [f'row {row}' for row in range(3, 40, 7)]
  assert data.usable(range(4, 10), use, None) == (range(4, 10), 39)
  with pytest.raises(RecordError, match='row 3'):
    data.usable(range(40), use, None)
  with pytest.raises(InputError, match='1 of 1 records'):
    data.usable([3], use, data.Skipped(100))
  with pytest.raises(InputError, match='too few together'):
    data.usable([1, 2, 3], use, data.Skipped(100))


def test_batches_of_a_stream_resume_with_bad_records_between(tmp_path):
  path = tmp_path / 'a.jsonl'
  lines = [f'{{"n": {n}}}' if n % 5 else 'bad' for n in range(60)]
  path.write_text('\n'.join(lines))

  def encode(rows):
    if any(row['n'] % 7 == 0 for row in rows):
      raise RecordError(f'{rows[0]["n"]} is a multiple of 7')
    return data.Encoded([{'tokens': np.full(2, row['n'], np.int32)} for row in rows])

  def batches():
    skipped = data.Skipped(100)
    records = data.stream(path, skipped)
    made = data.stream_batches(
      records, lambda rows: data.usable(rows, encode, skipped)[1], 4, max_length=2, seed=0, window=9
    )
    return made, skipped

  whole, skipped = batches()
  states, expected = [], []
  for _ in range(25):  # more than one pass
    states.append(json.loads(json.dumps(whole.get_state())))
    expected.append(next(whole)['tokens'][:, 0].tolist())
  seen = {n for batch in expected for n in batch}
  assert seen == {n for n in range(60) if n % 5 and n % 7}
  assert len(skipped.reasons) == 60 - len(seen)
  for step in (3, 11, 20):
    again, _ = batches()
    again.set_state(states[step])
    assert [next(again)['tokens'][:, 0].tolist() for _ in range(25 - step)] == expected[step:]
