"""What a run learns from several files, and from files that it reads as it goes."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from experiments import build, inputs, sources
from jaxtune import report
from jaxtune.typing import InputError


@pytest.fixture
def written(tmp_path):
  """`written('a', 40)`: a file of so many texts, each of which begins with that letter."""

  def write(letter, count, start=0):
    path = tmp_path / f'{letter}.jsonl'
    rows = [{'text': f'{letter} film {i} was good'} for i in range(start, start + count)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)

  return write


def letters(config, count):
  """The first characters of what the first `count` steps learn from."""
  job = build.job(config)
  batches = itertools.islice(inputs.texts(job).batches, count)
  tokens = np.concatenate([batch['tokens'] for batch in batches])
  return [job.tok.encoder.decode([int(row[0])])[0] for row in tokens]


MIXTURE = {'data.weights': (3.0, 1.0), 'data.valid': 4.0, 'data.test': 4.0}


@pytest.mark.parametrize('stream', [False, True])
def test_every_file_has_its_share(configure, written, stream):
  a, b = written('a', 24), written('b', 40)
  values = {'data.path': a, 'data.also': (b,), 'data.stream': stream, **MIXTURE}
  config = configure('causal_lm', values)
  drawn = letters(config, 10)
  if stream:  # of 4,096 that are shuffled
    assert abs(drawn.count('a') - 60) < 20
    return
  assert drawn.count('a') == 60 and drawn.count('b') == 20
  config.data.weights = ()
  drawn = letters(config, 12)  # 16 and 32 rows
  assert drawn.count('a') == 32 and drawn.count('b') == 64
  config.data.temperature = 1000.0
  drawn = letters(config, 12)
  assert abs(drawn.count('a') - 48) <= 1


@pytest.mark.parametrize('stream', [False, True])
def test_what_is_held_out_of_any_file_is_not_learned(configure, written, stream):
  values = {'data.path': written('a', 24), 'data.also': (written('b', 24),), **MIXTURE}
  config = configure('causal_lm', values | {'data.stream': stream})
  job = build.job(config)
  held = {row['text'] for split in ('valid', 'test') for row in job.corpus.records[split]}
  assert len(held) == 16 and {text[0] for text in held} == {'a', 'b'}
  batches = itertools.islice(inputs.texts(job).batches, 24)
  learned = {
    job.tok.encoder.decode(row[mask].tolist())
    for batch in batches
    for row, mask in zip(batch['tokens'], batch['mask'], strict=True)
  }
  assert len(learned) == 32 and not learned & held


def test_rows_of_an_earlier_file_count_once(configure, written):
  a, b = written('a', 24), written('b', 24)
  with open(b, 'a') as file:
    file.write(json.dumps({'text': 'a film 3 was good'}) + '\n')
  rows = sources.read(configure('causal_lm', {'data.path': a, 'data.also': (b,), **MIXTURE}))
  assert sum(map(len, rows.splits.values())) == 48
  assert 'a.jsonl: 16 train, 4 valid, 4 test rows; 0 duplicates' in rows.notes[0]
  assert 'b.jsonl: 16 train, 4 valid, 4 test rows; 1 duplicates' in rows.notes[1]


@pytest.mark.parametrize(
  'values',
  [
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({'data.stream': True}, marks=pytest.mark.slow),
    {'data.stream': True, 'data.pack': 'concat'},
  ],
)
def test_resumes_bitwise(
  values, configure, written, launch, tmp_path, interrupt_at, assert_same_export, trained_steps
):
  values = {'data.path': written('a', 24), 'data.also': (written('b', 24),), **MIXTURE, **values}
  config = configure('causal_lm', values)
  assert launch(config, tmp_path / 'whole') == 0
  interrupt_at(2)
  assert launch(config, tmp_path / 'run') == 130
  interrupt_at(0)  # never
  assert launch(config, tmp_path / 'run') == 0
  assert trained_steps(tmp_path / 'run') == [1, 2, 3, 4]
  assert_same_export(tmp_path / 'whole', tmp_path / 'run')
  lines = report.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert any('test/loss' in line for line in lines)


@pytest.mark.parametrize('stream', [False, True])
def test_bad_rows_are_skipped_as_if_they_were_not_there(configure, written, stream):
  sizes = {'data.valid': 4.0, 'data.test': 4.0, 'data.stream': stream}
  path = pathlib.Path(written('a', 24))
  values = {'data.path': str(path), 'data.bad': 'skip', **sizes}
  clean = build.job(configure('causal_lm', values))
  assert not any('could not be used' in remark for remark in clean.corpus.remarks())
  batches = inputs.texts(clean).batches
  expected = [next(batches)['tokens'] for _ in range(4)]
  lines = path.read_text().splitlines()
  lines[1:1], lines[9:9] = ['{"text": 1}'], ['{"text": "half"', '{"other": "x"}']
  path.write_text('\n'.join(lines))
  dirty = build.job(configure('causal_lm', values))
  assert dirty.corpus.records == clean.corpus.records
  batches = inputs.texts(dirty).batches
  for tokens in expected:
    np.testing.assert_array_equal(next(batches)['tokens'], tokens)
  told = dirty.corpus.remarks()[-1]
  assert told.startswith('3 records could not be used and were left out: ')
  assert f'{path}: line 2: text is 1' in told and f'{path}: line 10: not JSON' in told
  for refused, match in (
    ({'data.bad': 'refuse'}, 'line (2|10)'),
    ({'data.bad_limit': 2.0}, 'than 2'),
  ):
    with pytest.raises(InputError, match=match):
      build.job(configure('causal_lm', values | refused))


def test_bad_labels_are_skipped(configure, tmp_path):
  path = tmp_path / 'films.csv'
  rows = [f'film {n} was {word},{word}' for n, word in enumerate(('good', 'bad') * 16)]
  path.write_text('\n'.join(['text,label', *rows, 'film 40 was odd,']))
  values = {'data.path': str(path), 'data.bad': 'skip', 'data.test': 4.0, 'data.valid': 4.0}
  corpus = build.job(configure('classification', values)).corpus
  assert corpus.names == ('bad', 'good') and sum(map(len, corpus.records.values())) == 32
  assert "line 34: column 'label' is empty" in corpus.remarks()[-1]
  rows = [f'{row.partition(",")[0]},{n}' for n, row in enumerate(rows)]
  path.write_text('\n'.join(['text,label', *rows, 'film 40 was odd,x']))
  corpus = build.job(configure('regression', values | {'data.label': 'label'})).corpus
  assert sum(map(len, corpus.records.values())) == 32
  assert 'line 34' in corpus.remarks()[-1] and 'finite number' in corpus.remarks()[-1]


STREAM = {'data.stream': True, 'data.valid': 4.0, 'data.test': 4.0}
BAD = {
  'a limit without skipping': ({'data.bad_limit': 5.0}, 'data.bad is refuse; set data.bad to skip'),
  'a limit of none': ({'data.bad': 'skip', 'data.bad_limit': 0.0}, 'data.bad_limit is 0.0.*above'),
  'another policy': ({'data.bad': 'ignore'}, 'choose one of refuse, skip'),
  'a fraction of bad rows of a stream': (
    STREAM | {'data.bad': 'skip', 'data.bad_limit': 0.1},
    'data.bad_limit is 0.1.*count of rows',
  ),
  'a fraction of a stream': (STREAM | {'data.valid': 0.1}, 'data.valid is 0.1.*count of rows'),
  'a stream without steps': (STREAM | {'train.steps': 0}, 'set train.steps'),
  'streams without weights': (STREAM | {'data.also': ('b.jsonl',)}, 'give data.weights'),
  'all of a stream held out': (
    STREAM | {'data.valid': 20.0, 'data.test': 20.0},
    '24 rows are held out.*hold out fewer',
  ),
  'a file twice': ({'data.also': ('b.jsonl', 'b.jsonl')}, 'each file once'),
  'no path': ({'data.also': (1,)}, 'give paths'),
  'too few weights': ({'data.also': ('b.jsonl',), 'data.weights': (1.0,)}, 'for 2 files'),
  'a weight of zero': (
    {'data.also': ('b.jsonl',), 'data.weights': (1.0, 0.0)},
    "weight of 'b.jsonl' is 0.0",
  ),
  'a temperature of zero': ({'data.temperature': 0.0}, 'above zero'),
  'a temperature of one file': ({'data.temperature': 2.0}, 'name other files'),
  'a file that is gone': (
    {'data.also': ('gone.jsonl',)} | STREAM | {'data.stream': False},
    'gone.jsonl: no such file',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_values_are_one_clear_line(name, configure, written):
  values, message = BAD[name]
  with pytest.raises(InputError, match=message) as error:
    build.job(configure('causal_lm', {'data.path': written('a', 24), **values}))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('task', 'values', 'message'),
  [
    ('classification', {}, 'task is classification, which has to see all classes'),
    ('preference', {'objective.reference': 'cached'}, 'objective.reference is cached'),
    ('reinforcement', {'rollout.reward': 'near_length'}, 'task is reinforcement'),
  ],
)
def test_what_needs_all_rows_takes_no_stream(task, values, message, configure):
  with pytest.raises(InputError, match=message):
    build.job(configure(task, STREAM | values))
