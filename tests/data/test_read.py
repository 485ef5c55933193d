"""Each format gives its rows and nothing else; a broken file gives one line naming the spot."""

import csv
import gzip
import itertools
import json
import sys

import pytest

from jaxtune.data import lines, read, stream
from jaxtune.typing import InputError


def write(folder, name, content):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


@pytest.mark.parametrize(
  ('name', 'content', 'records'),
  [
    ('a.csv', 'text,label\n"a, ""b""\nc",1\n\nd,0\n', [('a, "b"\nc', '1'), ('d', '0')]),
    ('a.csv', '\ufefftext,label\r\na,1\r\n', [('a', '1')]),
    ('a.TSV', 'text\tlabel\na, b\t1\n', [('a, b', '1')]),
    ('a.jsonl', '{"text": "a\u2028b", "label": 1}\n\n{"text": "c", "label": null}', None),
    ('a.ndjson', '{"text": "a\u2028b", "label": 1}\r\n{"text": "c", "label": null}\r\n', None),
    ('a.json', '[{"text": "a\u2028b", "label": 1},\n {"text": "c", "label": null}]', None),
  ],
)
def test_tables(tmp_path, name, content, records):
  records = records or [('a\u2028b', 1), ('c', None)]
  expected = [{'text': text, 'label': label} for text, label in records]
  assert read(write(tmp_path, name, content)) == expected


def test_texts_are_one_record_a_file(tmp_path):
  write(tmp_path, 'b.txt', 'two\nlines\n')
  write(tmp_path, 'a.md', '# one')
  write(tmp_path, 'c.csv', 'ignored')
  assert read(tmp_path) == [{'text': '# one'}, {'text': 'two\nlines\n'}]
  assert read(tmp_path / 'b.txt') == [{'text': 'two\nlines\n'}]


def test_a_field_longer_than_the_csv_module_allows(tmp_path):
  before = csv.field_size_limit()
  assert read(write(tmp_path, 'a.csv', 'text\n' + 'x' * 200_000)) == [{'text': 'x' * 200_000}]
  assert csv.field_size_limit() == before


def test_real_reviews(reviews):
  records = read(reviews)
  assert len(records) == 33_530
  assert {tuple(record) for record in records} == {('text', 'label', 'source')}
  with open(reviews, encoding='utf-8', newline='') as file:
    assert records[20_000:20_010] == list(csv.DictReader(file))[20_000:20_010]


@pytest.mark.parametrize(
  ('name', 'content', 'parts'),
  [
    ('a.csv', 'text\nok\ncaf\xe9'.encode('latin1'), ['line 3', '0xe9', 'offset 11', 'UTF-8']),
    ('a.txt', 'wide'.encode('utf-16'), ['line 1', 'UTF-8']),
    ('a.csv', '', ['empty']),
    ('a.txt', ' \n', ['empty']),
    ('a.csv', 'text,label\n', ['no records']),
    ('a.json', '[]', ['no records']),
    ('a.csv', 'text,label\na,1\nb,c,1\n', ['line 3', '3 fields', 'has 2', 'text, label']),
    ('a.csv', 'text,label\na,1\nb\n', ['line 3', '1 fields', 'has 2']),
    ('a.csv', 'text,text\na,1\n', ['line 1', "'text'"]),
    ('a.csv', 'text,label\n"a,1\nb,1\n', ['lines 2 to 3', 'close every quote']),
    ('a.jsonl', '{"text": "a"}\n{"text": b}\n', ['line 2', 'column 10', '{"text": b}']),
    ('a.jsonl', '{"text": "a"}\n\n["b"]\n', ['line 3', '["b"]', 'not an object']),
    ('a.jsonl', '{"a": 1}\n{"a": [{"b": 1, "b": 2}]}', ['line 2', "the key 'b' twice"]),
    ('a.jsonl', '{"a": 1}\n{"b": "x\\ud800y"}', ['line 2', 'half a character', r'x\ud800y']),
    ('a.jsonl', '{"a": ' + '9' * 5000 + '}', ['line 1', 'Exceeds the limit']),
    ('a.jsonl', '[' * 100_000, ['line 1', 'recursion']),
    ('a.jsonl', b'{"a": 1}\n{"a": "\xed\xa0\x80"}', ['line 2', '0xed', 'UTF-8']),
    ('a.json', '[{"a": 1, "a": 2}]', ["the key 'a' twice"]),
    ('a.jsonl.gz', gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], ['after line', 'cut off']),
    ('a.csv.gz', b'text\na\n', ['Not a gzipped file', 'damaged']),
    ('a.txt.gz', b'text\na\n', ['Not a gzipped file', 'damaged']),
    ('a.arrow', b'ARROW1\0\0', ['damaged, cut off']),
    ('a.feather', b'FEA1', ['damaged, cut off']),
    ('a.arrow', b'', ['damaged, cut off']),
    ('a.parquet.gz', b'', ["'.gz'"]),
    ('a.json', '[{"a": 1},\n{"a": }]', ['not JSON', 'line 2', 'column 7']),
    ('a.json', '{"a": 1}', ['one dict', 'list']),
    ('a.json', '[{"a": 1}, 5]', ['item 2', "'5'"]),
    ('a.parquet', 'PAR1', ['damaged, cut off']),
    ('a.xls', 'x', ["'.xls'", '.csv, .tsv, .jsonl']),
    ('data', 'x', ['no suffix', '.csv']),
  ],
)
def test_bad_files(tmp_path, name, content, parts):
  path = write(tmp_path, name, content)
  with pytest.raises(InputError) as error:
    read(path)
  message = str(error.value)
  assert message.startswith(str(path)) and '\n' not in message
  assert [part for part in parts if part not in message] == []


def test_missing_file_suggests_its_neighbours(tmp_path):
  write(tmp_path, 'reviews.csv', 'text\na\n')
  with pytest.raises(InputError, match=r'no such file; did you mean reviews\.csv\?$'):
    read(tmp_path / 'review.csv')
  with pytest.raises(InputError, match='nothing like it in'):
    read(tmp_path / 'zzzzzz.json')
  with pytest.raises(InputError, match='does not exist either'):
    read(tmp_path / 'no' / 'a.csv')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='no .txt or .md file'):
    read(tmp_path / 'empty')


def test_nothing_is_unpickled(tmp_path):
  path = write(tmp_path, 'a.pkl', b'\x80\x04.')
  with pytest.raises(InputError, match="cannot read '.pkl'"):
    read(path)


def test_json_round_trip_keeps_types(tmp_path):
  rows = [{'a': 1, 'b': 2.5, 'c': True, 'd': None, 'e': [{'role': 'user'}]}]
  assert read(write(tmp_path, 'a.json', json.dumps(rows))) == rows


def parquet(path, rows):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
  return path


@pytest.mark.parametrize('left', [0, 3, 100, -300, -9, -1])
def test_a_truncated_parquet_is_one_line(tmp_path, left):
  path = parquet(tmp_path / 'a.parquet', [{'text': f'text {n}'} for n in range(300)])
  path.write_bytes(path.read_bytes()[:left])
  for door in (read, lambda path: list(stream(path))):
    with pytest.raises(
      InputError, match=r'a\.parquet: cannot be read \(.*damaged, cut off'
    ) as error:
      door(path)
    assert '\n' not in str(error.value)


def test_parquet_with_pages_overwritten_is_one_line(tmp_path):
  path = parquet(tmp_path / 'a.parquet', [{'text': f'text {n}'} for n in range(300)])
  content = bytearray(path.read_bytes())
  content[4:200] = bytes(196)
  path.write_bytes(content)
  with pytest.raises(InputError, match=r'a\.parquet: cannot be read'):
    read(path)


def test_a_parquet_text_that_is_no_text_and_columns_of_one_name(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  raw = pyarrow.array([b'ok', b'caf\xe9'], pyarrow.binary()).view(pyarrow.string())
  parquet.write_table(pyarrow.table({'text': raw}), tmp_path / 'a.parquet')
  with pytest.raises(InputError, match=r'a\.parquet: row 2: a text is not UTF-8'):
    read(tmp_path / 'a.parquet')
  table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=['a', 'a'])
  parquet.write_table(table, tmp_path / 'b.parquet')
  with pytest.raises(InputError, match=r"b\.parquet: two columns are named 'a'; rename one"):
    read(tmp_path / 'b.parquet')


@pytest.mark.parametrize('name', ['a.parquet', 'a.arrow'])
def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(InputError, match=r"takes pyarrow; pip install 'jaxtune\[data\]'$"):
    read(write(tmp_path, name, 'x'))


@pytest.mark.parametrize(
  ('name', 'content', 'line'),
  [
    ('a.jsonl', '{"a": 1}\n{"a": "' + 'x' * 2000 + '"}\n', 2),
    ('a.csv', 'text\na\n"' + 'xx\n' * 1000 + '"\n', 3),
    ('a.csv', 'text\na\n"never closed\n' + 'xx\n' * 1000, 3),
    ('a.txt', 'a\n' + 'x' * 2000, 2),
  ],
)
def test_a_record_without_end(tmp_path, monkeypatch, name, content, line):
  monkeypatch.setattr(lines, 'LONGEST', 1000)
  records = iter(stream(write(tmp_path, name, content)))
  with pytest.raises(InputError, match=r'line \d+: a record of more than 0 MiB') as error:
    list(records)
  number = int(str(error.value).split('line ')[1].split(':')[0])
  assert line <= number <= line + 400  # in CSV the line that exceeds the limit


def test_a_line_of_100_mb_is_one_error_in_bounded_memory(tmp_path):
  import tracemalloc

  path = tmp_path / 'a.jsonl'
  with open(path, 'wb') as file:
    file.write(b'{"a": 1}\n{"a": "')
    for _ in range(100):
      file.write(b'x' * 10**6)
    file.write(b'"}\n')
  tracemalloc.start()
  with pytest.raises(InputError, match=r'line 2: a record of more than 64 MiB; put each record on'):
    list(stream(path))
  assert tracemalloc.get_traced_memory()[1] < 2.5 * lines.LONGEST
  tracemalloc.stop()


def test_a_folder_or_a_pattern_of_several_kinds(tmp_path):
  write(tmp_path, 'a.jsonl', '{"a": 1}')
  write(tmp_path, 'b.ndjson.gz', gzip.compress(b'{"a": 2}', mtime=0))
  write(tmp_path, 'README.md', 'about the files')
  write(tmp_path, 'dataset_info.json', '{}')
  assert read(tmp_path) == [{'a': 1}, {'a': 2}]
  assert read(tmp_path / '*.jsonl') == [{'a': 1}]
  write(tmp_path, 'c.csv', 'a\n3\n')
  with pytest.raises(
    InputError, match=r'several kinds \(\.csv, \.jsonl, \.ndjson\); name one kind'
  ):
    read(tmp_path)
  with pytest.raises(InputError, match=r'no file matches this pattern'):
    read(tmp_path / '*.tsv')
  with pytest.raises(InputError, match=r"c\.xls: cannot read '\.xls'"):
    write(tmp_path, 'c.xls', 'x')
    read(tmp_path / 'c*')


class Dataset:
  """What a Dataset of Hugging Face looks like."""

  column_names = ('text',)

  def __init__(self, rows):
    self.rows = rows

  def __iter__(self):
    return iter(self.rows)


def test_datasets_by_their_looks():
  rows = [{'text': str(n)} for n in range(5)]
  records = read(Dataset(rows))
  assert records == rows and records[1].place == 'the dataset: row 2'
  streamed = iter(stream(Dataset(rows)))
  assert list(itertools.islice(streamed, 3)) == rows[:3]
  fresh = iter(stream(Dataset(rows)))
  fresh.set_state(streamed.get_state())
  assert list(fresh) == rows[3:]
  with pytest.raises(InputError, match='the dataset has no rows'):
    read(Dataset([]))

  class Splits(dict):
    column_names = ('text',)

  with pytest.raises(InputError, match="splits 'train', 'test'; give one of them, as dataset"):
    read(Splits(train=1, test=2))


def test_names_on_the_hub(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  for door in (read, stream):
    with pytest.raises(InputError, match=r"takes datasets; pip install 'jaxtune\[datasets\]'$"):
      door('hub://owner/name')
    with pytest.raises(InputError, match=r'hub://name: is no name on the Hub; write hub://owner'):
      door('hub://name')

  class Module:
    asked = []

    def load_dataset(self, *args, **options):
      self.asked.append((*args, *options.values()))
      if 'bad' in args[0]:
        raise ConnectionError('no\nnetwork')
      return Dataset([{'text': 'a'}])

  monkeypatch.setitem(sys.modules, 'datasets', Module())
  assert read('hub://o/n') == read('hub://o/n:c/test') == list(stream('hub://o/n/test[:5%]'))
  assert Module.asked == [
    ('o/n', None, 'train', False),
    ('o/n', 'c', 'test', False),
    ('o/n', None, 'test[:5%]', True),
  ]
  with pytest.raises(
    InputError, match=r'hub://o/bad: cannot be loaded \(ConnectionError: no network'
  ):
    read('hub://o/bad')
