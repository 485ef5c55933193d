"""Batches of a stream are those of its records, wherever the run begins again."""

import collections
import functools
import itertools
import json
import subprocess
import sys

import grain
import jax
import numpy as np
import pytest
import tokenizers

from jaxtune import data
from jaxtune.data import encode, streamed
from jaxtune.typing import InputError

T = 16


@pytest.fixture(scope='module')
def tok() -> data.Tokenizer:
  """Words `0` to `99` are tokens 1 to 100."""
  words = {'?': 0} | {str(i): i + 1 for i in range(100)}
  encoder = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, '?'))
  encoder.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return data.Tokenizer(encoder)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Record i is the number i and then up to 11 more."""
  path = tmp_path_factory.mktemp('stream') / 'numbers.jsonl'
  rng = np.random.default_rng(0)
  records = [[i, *rng.integers(100, size=rng.integers(1, 12))] for i in range(90)]
  path.write_text(''.join(json.dumps({'text': ' '.join(map(str, r))}) + '\n' for r in records))
  return path


@pytest.fixture
def make(tok, file):
  def encode(records):
    return data.render_many(tok, records, max_length=T)

  options = {'max_length': T, 'seed': 0, 'pack': 'best_fit', 'window': 20}

  def make(source=file, batch_size=4, **changes):
    return data.stream_batches(data.stream(source), encode, batch_size, **options | changes)

  return make


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def same(a, b):
  for left, right in zip(a, b, strict=True):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def firsts(batch):
  """The number that each document of a batch begins with."""
  return (batch['tokens'][batch['mask'] & (batch['positions'] == 0)] - 1).tolist()


@pytest.mark.parametrize('pack', [False, 'first_fit', 'best_fit', 'concat'])
def test_a_saved_place_continues_exactly(make, pack):
  whole = take(make(pack=pack), 40)
  stream = make(pack=pack)
  for step in range(0, 30, 3):
    state = json.loads(json.dumps(stream.get_state()))
    assert len(json.dumps(state)) < 500
    fresh = make(pack=pack)
    fresh.set_state(state)
    same(take(fresh, 4), whole[step : step + 4])
    same(take(stream, 3), whole[step : step + 3])
  stream.set_state(state)
  same(take(stream, 5), whole[27:32])


def test_every_record_comes_once_an_epoch_in_an_order_of_its_own(make):
  def numbers(count, **options):
    stream = take(make(batch_size=5, pack=False, window=30, **options), count)
    return [int(n) - 1 for batch in stream for n in batch['tokens'][:, 0]]

  seen = numbers(36)
  epochs = [seen[:90], seen[90:]]
  assert all(sorted(epoch) == list(range(90)) for epoch in epochs)
  assert epochs[0] != epochs[1]
  # The first window holds the first records of the file, but not in order.
  assert sorted(seen[:30]) == list(range(30)) != seen[:30]
  assert numbers(6, seed=1) != seen[:30]


def test_packing_loses_no_record(make):
  counts = collections.Counter(n for batch in take(make(), 60) for n in firsts(batch))
  assert set(counts) == set(range(90))


def test_processes_together_see_the_batches_of_one(make):
  whole = take(make(), 6)
  for i in range(2):
    part = take(make(process_index=i, process_count=2), 6)
    same(part, [{key: value[i::2] for key, value in batch.items()} for batch in whole])


def test_large_records_make_small_windows(make, monkeypatch):
  whole = take(make(window=10), 10)
  monkeypatch.setattr(encode, '_ENCODED', 30)  # cuts what is encoded at a time: no difference
  same(take(make(window=10), 10), whole)
  monkeypatch.setattr(streamed, '_HELD', 60)
  records = [{'text': '7 ' * 40}, {'text': '8'}, {'text': '9'}]
  assert len(streamed._take(iter(records), 3)) == 1
  conversations = [{'messages': [{'role': 'user', 'content': 'a' * 25, 'n': 1}]}] * 5
  assert len(streamed._take(iter(conversations), 5)) == 2


def test_labels_in_buckets(tmp_path, tok):
  path = tmp_path / 'labels.jsonl'
  rng = np.random.default_rng(1)
  rows = [{'text': '5 ' * int(rng.integers(1, T)), 'label': i % 2} for i in range(50)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  encode = functools.partial(
    data.encode_classification, tokenizer=tok.encoder, max_length=T, names=('0', '1')
  )
  make = functools.partial(
    data.stream_batches, data.stream(path), encode, 2, max_length=T, seed=0, buckets=(4, 8)
  )
  stream = make()
  batches = take(stream, 20)
  assert {batch['tokens'].shape[1] for batch in batches} == {4, 8, T}
  state = stream.get_state()
  fresh = make()
  fresh.set_state(state)
  same(take(fresh, 5), take(stream, 5))


def test_a_bad_record_is_named_when_it_is_reached(make, file, tmp_path):
  lines = file.read_text().splitlines()
  lines[70] = '{"text": 5}'
  path = tmp_path / 'bad.jsonl'
  path.write_text('\n'.join(lines))
  stream = make(path)
  with pytest.raises(InputError, match=r'bad\.jsonl: line 71: .*5.* not a string'):
    take(stream, 60)
  path.write_text('\n'.join([*lines[:30], '{"text": "1'] + lines[31:]))
  with pytest.raises(InputError, match=r'bad\.jsonl: line 31: not JSON'):
    take(make(path), 60)


def test_another_file_or_tokenizer_is_refused(make, tok, file, tmp_path):
  state = make().get_state()
  other = tmp_path / 'other.jsonl'
  other.write_bytes(file.read_bytes())
  with pytest.raises(InputError, match='files of other names or sizes'):
    make(other).set_state(state)
  with pytest.raises(InputError, match='window=20, this run has window=21'):
    make(window=21).set_state(state)
  with pytest.raises(InputError, match='checksum='):
    encode = functools.partial(
      data.render_many, data.Tokenizer(tok.encoder, data.SpecialTokens(eos=5)), max_length=T
    )
    data.stream_batches(
      data.stream(file), encode, 4, max_length=T, seed=0, pack='best_fit', window=20
    ).set_state(state)


def test_grain_takes_it_for_one_of_its_own(make, tmp_path):
  stream = make()
  take(stream, 7)
  handler = grain.checkpoint.CheckpointHandler()
  handler.save(tmp_path, stream)
  same(take(handler.restore(tmp_path, make()), 5), take(stream, 5))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'seed': -1}, 'seed is -1'),
    ({'max_length': 4}, 'max_length is 4, but an example has'),
    ({'window': 0}, 'window is 0'),
    ({'buckets': (8,)}, 'buckets are for rows that are not packed'),
  ],
)
def test_bad_arguments(make, change, message):
  with pytest.raises(InputError, match=message):
    make(**change)


GROWTH = """
import itertools, json, sys
import tokenizers
from jaxtune import data, report
tok = data.Tokenizer(tokenizers.Tokenizer.from_file(sys.argv[2]), data.SpecialTokens(eos=102))
encode = lambda records: data.render_many(tok, records, max_length=512)
stream = data.stream_batches(
  data.stream(sys.argv[1]), encode, 16, max_length=512, seed=0, pack='best_fit'
)
peak = lambda: report.peak_rss() / 2**20
next(stream)
before, tokens = peak(), 0
while not stream.get_state()['cursor']['parent']['parent']['epoch']:
  tokens += int(next(stream)['mask'].sum())
print(json.dumps([before, peak(), tokens]))
"""


@pytest.mark.slow
def test_a_large_file_takes_little_memory(tmp_path, minilm, reviews):
  """50 MB in more than one window; the second and the last need no more than the first."""
  texts = [json.dumps({'text': row['text']}) + '\n' for row in data.read(reviews)]
  path = tmp_path / 'large.jsonl'
  with path.open('w') as out:
    for line in itertools.chain(texts, texts):
      if out.tell() > 50e6:
        break
      out.write(line)
  command = [sys.executable, '-c', GROWTH, str(path), str(minilm / 'tokenizer.json')]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  before, after, tokens = json.loads(done.stdout)
  assert tokens > 10e6
  assert after < before + 150 and after < 1000  # MiB
