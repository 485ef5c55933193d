"""Batches lose nothing, keep documents apart, and continue exactly where they were."""

import collections
import itertools
import json

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.data import batches, eval_batches, steps_per_epoch
from jaxtune.typing import InputError

T = 12


def documents(lengths):
  """Document i holds tokens 100 i + 1, 100 i + 2, ...; all are supervised, even the first."""
  return [
    {'tokens': np.arange(1, n + 1, dtype=np.int32) + 100 * i, 'supervised': np.ones(n, bool)}
    for i, n in enumerate(lengths)
  ]


def labelled(count):
  return [
    {'tokens': np.full(1 + i % T, i + 1, np.int32), 'label': np.asarray(i, np.int32)}
    for i in range(count)
  ]


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def same(a, b):
  assert len(a) == len(b)
  for left, right in zip(a, b, strict=True):
    assert left.keys() == right.keys()
    for key in left:
      np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def unpack(batch):
  """The documents of a packed batch, by its segments alone."""
  for row in range(len(batch['tokens'])):
    if not batch['weight'][row]:
      continue
    for segment in range(1, batch['segments'][row].max() + 1):
      inside = batch['segments'][row] == segment
      yield {key: batch[key][row][inside] for key in ('tokens', 'positions', 'supervised')}


def check_packed(batch, examples):
  """Each document is whole, contiguous, counted from 0, and its first token is not learned."""
  shape = batch['tokens'].shape
  assert {batch[k].shape for k in ('mask', 'supervised', 'segments', 'positions')} == {shape}
  assert {batch[k].dtype for k in ('tokens', 'segments', 'positions')} == {np.dtype(np.int32)}
  np.testing.assert_array_equal(batch['mask'], batch['segments'] > 0)
  assert not batch['tokens'][~batch['mask']].any() and not batch['supervised'][~batch['mask']].any()
  order = np.where(batch['mask'], batch['segments'], 10**6)
  assert (np.diff(order, axis=1) >= 0).all()  # segments ascend, padding is last
  for found in unpack(batch):
    original = examples[found['tokens'][0] // 100]['tokens'].tolist()
    assert found['tokens'].tolist() == original
    assert found['positions'].tolist() == list(range(len(original)))
    assert found['supervised'].tolist() == [i > 0 for i in range(len(original))]


@given(st.lists(st.integers(1, T), min_size=1, max_size=80), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_packing_keeps_every_document_whole(lengths, batch_size):
  examples = documents(lengths)
  result = eval_batches(examples, batch_size, max_length=T, pack=True)
  found = []
  for batch in result:
    assert batch['tokens'].shape == (batch_size, T)
    check_packed(batch, examples)
    found += [int(document['tokens'][0]) // 100 for document in unpack(batch)]
  assert sorted(found) == list(range(len(lengths)))
  rows = steps_per_epoch(examples, batch_size, max_length=T, pack=True) * batch_size
  assert round(rows) == sum(int(batch['weight'].sum()) for batch in result)


@given(st.lists(st.integers(1, T), min_size=1, max_size=40), st.integers(0, 2**40))
@settings(max_examples=10, deadline=None)
def test_endless_packing_gives_each_document_as_often_as_any_other(lengths, seed):
  examples = documents(lengths)
  counts = collections.Counter()
  for batch in take(batches(examples, 8, max_length=T, seed=seed, pack=True), 16):
    check_packed(batch, examples)
    assert batch['weight'].all()
    counts.update(int(document['tokens'][0]) // 100 for document in unpack(batch))
  # Two full groups of rows hold a stretch of the endless order: epochs, and a part of the last.
  assert max(counts.values()) - min(counts[i] for i in range(len(lengths))) <= 1


def test_full_and_sparse_packed_rows_are_spread_over_batches():
  examples = documents(np.random.default_rng(1).integers(1, T + 1, 500))
  stream = batches(examples, 32, max_length=T, seed=0, pack=True)
  sparse = [(batch['mask'].mean(axis=1) < 1).sum() for batch in take(stream, 2)]
  # First fit leaves room in its last rows: unshuffled, the first batch would have none of them.
  assert min(sparse) > 0.25 * sum(sparse) > 0


def test_an_epoch_is_a_permutation_and_the_next_is_another():
  stream = batches(labelled(10), 4, max_length=T, seed=3)
  labels = np.concatenate([batch['label'] for batch in take(stream, 10)]).reshape(4, 10)
  assert all(sorted(epoch) == list(range(10)) for epoch in labels.tolist())
  assert len({tuple(epoch) for epoch in labels.tolist()}) == 4
  other = batches(labelled(10), 4, max_length=T, seed=4)
  assert not np.array_equal(next(other)['label'], labels[0, :4])


def test_padding():
  examples = labelled(5)
  batch = next(batches(examples, 5, max_length=T, seed=0))
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    'tokens': ('int32', (5, T)),
    'mask': ('bool', (5, T)),
    'label': ('int32', (5,)),
    'weight': ('float32', (5,)),
  }
  for row, label in enumerate(batch['label']):
    tokens = examples[label]['tokens']
    np.testing.assert_array_equal(batch['tokens'][row][: len(tokens)], tokens)
    np.testing.assert_array_equal(batch['mask'][row], np.arange(T) < len(tokens))
  assert not batch['tokens'][~batch['mask']].any()


def test_padded_documents_never_learn_their_first_token():
  batch = next(batches(documents([3, 1]), 2, max_length=T, seed=0))
  assert batch['supervised'].sum() == 2 and not batch['supervised'][:, 0].any()


@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_examples_fill_a_large_batch(count):
  batch = next(batches(labelled(count), 7, max_length=T, seed=0))
  assert max(np.bincount(batch['label'], minlength=count)) - 7 // count <= 1
  packed = next(batches(documents([5] * count), 7, max_length=T, seed=0, pack=True))
  assert packed['weight'].all() and packed['mask'].any(axis=1).all()


@given(st.integers(0, 60), st.integers(1, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_saved_place_continues_exactly(steps, batch_size, pack):
  # 60 batches of 5 rows are several epochs, and with packing several groups of rows.
  examples = documents(np.random.default_rng(0).integers(1, T + 1, 50))
  make = lambda: batches(examples, batch_size, max_length=T, seed=7, pack=pack)  # noqa: E731
  stream = make()
  take(stream, steps)
  state = json.loads(json.dumps(stream.get_state()))
  ahead = take(stream, 20)
  fresh = make()
  fresh.set_state(state)
  same(take(fresh, 20), ahead)
  stream.set_state(state)
  same(take(stream, 20), ahead)
  assert len(json.dumps(state)) < 400


def test_grain_takes_it_for_one_of_its_own(tmp_path):
  stream = batches(labelled(9), 2, max_length=T, seed=0)
  take(stream, 3)
  handler = grain.checkpoint.CheckpointHandler()
  handler.save(tmp_path, stream)
  ahead = take(stream, 5)
  same(take(handler.restore(tmp_path, batches(labelled(9), 2, max_length=T, seed=0)), 5), ahead)


@pytest.mark.parametrize(
  ('change', 'name'),
  [
    ({'batch_size': 8}, 'batch_size=4, this run has batch_size=8'),
    ({'process_count': 2}, 'process_count=1, this run has process_count=2'),
    ({'seed': 1}, 'seed=0'),
    ({'max_length': T + 1}, f'max_length={T}'),
    ({'pack': True}, 'pack=False'),
    ({'examples': documents([3] * 9)}, 'examples=8, this run has examples=9'),
    ({'examples': documents([3] * 7 + [4])}, 'checksum='),
  ],
)
def test_a_place_in_something_else_is_refused(change, name):
  run = {'examples': documents([3] * 8), 'batch_size': 4, 'max_length': T, 'seed': 0}
  state = batches(**run).get_state()
  with pytest.raises(InputError, match=name):
    batches(**{**run, **change}).set_state(state)


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('count', [2, 3])
def test_processes_together_see_the_batches_of_one(pack, count):
  examples = documents([3, 12, 5, 7, 1, 9, 4, 8, 2, 6, 11])
  whole = take(batches(examples, 6, max_length=T, seed=5, pack=pack), 15)
  parts = [
    take(
      batches(examples, 6, max_length=T, seed=5, pack=pack, process_index=i, process_count=count),
      15,
    )
    for i in range(count)
  ]
  for i, part in enumerate(parts):
    same(part, [{key: value[i::count] for key, value in batch.items()} for batch in whole])
  whole = eval_batches(examples, 6, max_length=T, pack=pack)
  for i in range(count):
    part = eval_batches(examples, 6, max_length=T, pack=pack, process_index=i, process_count=count)
    same(part, [{key: value[i::count] for key, value in batch.items()} for batch in whole])


@given(st.integers(1, 20), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_evaluation_sees_each_example_once_and_in_order(count, batch_size):
  result = eval_batches(labelled(count), batch_size, max_length=T)
  assert {batch['tokens'].shape for batch in result} == {(batch_size, T)}
  assert all(batch['mask'].any(axis=1).all() for batch in result)  # no row without a token
  weight = np.concatenate([batch['weight'] for batch in result])
  labels = np.concatenate([batch['label'] for batch in result])
  assert labels[weight == 1].tolist() == list(range(count))
  assert weight.sum() == count and not weight[count:].any()
  assert len(result) == np.ceil(steps_per_epoch(labelled(count), batch_size, max_length=T))


def test_filling_rows_learn_nothing():
  (batch,) = eval_batches(documents([4]), 3, max_length=T)
  assert batch['supervised'].sum(axis=1).tolist() == [3, 0, 0]
  trained = next(batches(documents([4]), 3, max_length=T, seed=0))
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in trained.items()
  }


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'examples': []}, 'no examples'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'batch_size': -4}, 'batch_size is -4'),
    ({'batch_size': 3, 'process_count': 2}, 'batch_size is 3; .* number of processes, 2'),
    ({'process_index': 2, 'process_count': 2}, r'process_index is 2; .*\[0, 2\)'),
    ({'process_count': 0}, 'process_index is 0'),
    ({'max_length': 4}, 'max_length is 4, but an example has 5 tokens'),
    ({'seed': -1}, 'seed is -1'),
    ({'pack': True, 'examples': labelled(3)}, "'label' cannot be packed"),
  ],
)
def test_bad_arguments(change, message):
  run = {'examples': documents([5] * 8), 'batch_size': 4, 'max_length': T, 'seed': 0}
  with pytest.raises(InputError, match=message):
    batches(**{**run, **change})


def test_the_order_is_fixed_for_ever():
  """A run that resumes on another release must see the rest of the same epoch."""
  stream = batches(labelled(8), 8, max_length=T, seed=0)
  assert [batch['label'].tolist() for batch in take(stream, 2)] == [
    [3, 2, 1, 6, 0, 7, 4, 5],
    [7, 4, 5, 1, 6, 2, 0, 3],
  ]
