"""A stream gives what `read` gives, and goes on exactly where its saved place is."""

import gzip
import json
import pickle

import grain
import pytest

from jaxtune.data import lines, read, stream
from jaxtune.typing import InputError

pyarrow = pytest.importorskip('pyarrow')
from pyarrow import feather, parquet  # noqa: E402

ROWS = [{'text': f'käse {n}\u2028"x",\ny', 'n': n, 'm': [{'role': 'user'}]} for n in range(700)]


def write(folder, name, rows=ROWS):
  path = folder / name
  kind = name.removesuffix('.gz').split('.')[-1]
  if kind == 'parquet':
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=300)
  elif kind == 'feather':
    feather.write_feather(pyarrow.Table.from_pylist(rows), path, chunksize=200)
  elif kind == 'arrow':  # a stream, as `datasets` saves
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), 'wb') as file, pyarrow.ipc.new_stream(file, table.schema) as out:
      out.write_table(table, max_chunksize=200)
  else:
    quoted = [row['text'].replace('"', '""') for row in rows]
    content = {
      'json': lambda: json.dumps(rows),
      'jsonl': lambda: '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in rows),
      'csv': lambda: '\ufefftext,n\r\n' + '\r\n'.join(f'"{t}",{n}' for n, t in enumerate(quoted)),
      'txt': lambda: '\n'.join(row['text'] for row in rows),
    }[kind]()
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  return path


@pytest.mark.parametrize(
  'name',
  ['a.jsonl', 'a.jsonl.gz', 'a.csv', 'a.csv.gz', 'a.json', 'a.parquet', 'a.feather', 'a.arrow'],
)
def test_a_stream_is_what_read_gives_from_any_place_on(tmp_path, name):
  path = write(tmp_path, name)
  expected = read(path)
  if 'csv' in name:
    assert expected == [{'text': row['text'], 'n': str(row['n'])} for row in ROWS]
  else:
    assert expected == ROWS
  records = iter(stream(path))
  states, got = [], []
  for record in records:
    got.append(record)
    states.append(json.loads(json.dumps(records.get_state())))
  assert got == expected
  assert [r.place for r in got] == [r.place for r in expected]
  for place in (0, 1, 254, 255, 299, 300, 511, 698, 699):
    fresh = iter(stream(path))
    fresh.set_state(states[place])
    rest = [next(fresh, None) for _ in range(3)]
    assert rest == [*expected[place + 1 : place + 4], None, None, None][:3]
    assert [r.place for r in rest if r] == [r.place for r in expected[place + 1 : place + 4]]


def test_places_name_lines_and_survive_a_pickle(tmp_path):
  row = read(write(tmp_path, 'a.jsonl'))[1]
  assert row.place == f'{tmp_path / "a.jsonl"}: line 3'
  assert pickle.loads(pickle.dumps(row)).place == row.place


def test_several_files_are_one_stream(tmp_path):
  for part in range(3):
    write(tmp_path, f'{part}.jsonl', ROWS[part * 2 : part * 2 + 2])
  for source in (tmp_path, tmp_path / '*.jsonl'):
    assert read(source) == ROWS[:6] == list(stream(source))
  records = iter(stream(tmp_path))
  for _ in range(4):
    next(records)
  other = iter(stream(tmp_path / '[0-2].jsonl'))
  other.set_state(records.get_state())
  assert list(other) == ROWS[4:6] == list(records)


def test_grains_own_transformations_build_on_it(tmp_path):
  dataset = stream(write(tmp_path, 'a.jsonl', ROWS[:10])).map(lambda row: row['n'])
  dataset = grain.experimental.RepeatIterDataset(dataset, num_epochs=2).batch(4)
  batches = iter(dataset)
  first = [next(batches).tolist() for _ in range(2)]
  state = json.loads(json.dumps(batches.get_state()))
  rest = [batch.tolist() for batch in batches]
  assert first + rest == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
  batches = iter(dataset)
  batches.set_state(state)
  assert [batch.tolist() for batch in batches] == rest


def test_a_long_text_comes_in_pieces_between_lines(tmp_path, monkeypatch):
  monkeypatch.setattr(lines, 'PIECE', 1000)
  path = write(tmp_path, 'a.txt')
  pieces = list(stream(path))
  assert len(pieces) > 10
  assert ''.join(piece['text'] for piece in pieces) == read(path)[0]['text']
  assert {piece['text'][-1] for piece in pieces[:-1]} == {'\n'}
  assert pieces[1].place.endswith(f': line {pieces[0]["text"].count(chr(10)) + 1}')


def test_a_place_in_other_files_is_refused(tmp_path):
  records = iter(stream(write(tmp_path, 'a.jsonl', ROWS[:9])))
  next(records)
  state = records.get_state()
  records = iter(stream(write(tmp_path, 'a.jsonl', ROWS[:8])))
  with pytest.raises(InputError, match='a.jsonl is one in files of other names or sizes'):
    records.set_state(state)


def test_an_empty_file_is_no_endless_loop(tmp_path):
  with pytest.raises(InputError, match='a.jsonl: no records; it is empty'):
    next(iter(grain.experimental.RepeatIterDataset(stream(write(tmp_path, 'a.jsonl', [])))))
