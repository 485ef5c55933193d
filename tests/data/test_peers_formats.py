"""Datasets of Hugging Face are read as they are, and TRL makes the same of the same records."""

import copy
import itertools

import pytest

from jaxtune.data import normalize, read, stream
from jaxtune.typing import InputError

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]

datasets = pytest.importorskip('datasets')
data_utils = pytest.importorskip('trl.data_utils')

ROWS = [{'prompt': f'p {n}', 'completion': f'c {n}'} for n in range(2500)]


def turns(*contents):
  return [{'role': ('user', 'assistant')[n % 2], 'content': c} for n, c in enumerate(contents)]


@pytest.fixture(scope='module')
def dataset():
  return datasets.Dataset.from_list(ROWS)


def test_a_dataset_its_stream_and_its_saved_folder(dataset, tmp_path):
  dataset.save_to_disk(tmp_path / 'saved')
  dataset.to_parquet(tmp_path / 'a.parquet')
  dataset.to_json(tmp_path / 'a.jsonl')
  sources = [dataset, dataset.to_iterable_dataset(num_shards=3), tmp_path / 'saved']
  for source in [*sources, tmp_path / 'a.parquet', tmp_path / 'a.jsonl']:
    assert read(source) == ROWS
    records = iter(stream(source))
    assert list(itertools.islice(records, 1100)) == ROWS[:1100]
    fresh = iter(stream(source))
    fresh.set_state(records.get_state())
    assert list(fresh) == ROWS[1100:]
  with pytest.raises(InputError, match="has the splits 'train', 'test'; give one of them"):
    read(dataset.train_test_split(0.1))


def test_the_hub_without_a_network_is_one_line(monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  with pytest.raises(InputError, match=r'^hub://nobody/nothing: cannot be loaded \(') as error:
    read('hub://nobody/nothing')
  assert '\n' not in str(error.value)


PREFERENCES = [
  {'chosen': turns('q', 'a'), 'rejected': turns('q', 'b')},
  {'chosen': turns('q', 'a', 'r', 'c'), 'rejected': turns('q', 'a', 'r', 'd')},
  {'chosen': turns('q', 'a', 'r', 'c'), 'rejected': turns('q', 'b', 'r', 'c')},
  {'prompt': 'q', 'chosen': turns('q', 'a'), 'rejected': turns('q', 'b')},
  {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
  {'chosen': 'The sky is blue.', 'rejected': 'The sky is green.'},
]


@pytest.mark.parametrize('number', range(len(PREFERENCES)))
def test_prompts_are_extracted_as_by_trl(number):
  record = PREFERENCES[number]
  expected = data_utils.maybe_extract_prompt(copy.deepcopy(record))
  assert normalize([record]).records == [expected]


def test_sharegpt_becomes_what_trl_makes_of_it():
  record = {
    'conversations': [
      {'from': role, 'value': text}
      for role, text in (('system', 's'), ('user', 'q'), ('assistant', 'a'))
    ]
  }
  expected = data_utils.maybe_convert_to_chatml(copy.deepcopy(record))
  assert normalize([record]).records == [expected]


def test_columns_of_typed_tables_lose_their_nulls(dataset, tmp_path):
  call = {'type': 'function', 'function': {'name': 'f', 'arguments': {'x': 1}}}
  other = {'type': 'function', 'function': {'name': 'g', 'arguments': {'y': 'z'}}}
  rows = [
    {
      'messages': [
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'content': 'a', 'tool_calls': [one]},
        {'role': 'tool', 'content': 'b'},
        {'role': 'assistant', 'content': 'c'},
      ]
    }
    for one in (call, other)
  ]
  path = tmp_path / 'a.parquet'
  datasets.Dataset.from_list(rows).to_parquet(path)
  assert read(path)[0]['messages'][0]['tool_calls'] is None
  assert normalize(read(path)).records == rows
