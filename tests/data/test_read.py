"""Each format gives its rows and nothing else; a broken file gives one line naming the spot."""

import csv
import json

import pytest

from jaxtune.data import read
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
    ('a.csv', 'text,label\n"a,1\nb,1\n', ['line 3', 'close every quote']),
    ('a.jsonl', '{"text": "a"}\n{"text": b}\n', ['line 2', 'column 10', '{"text": b}']),
    ('a.jsonl', '{"text": "a"}\n\n["b"]\n', ['line 3', '["b"]', 'not an object']),
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
