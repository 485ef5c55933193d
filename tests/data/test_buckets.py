"""Batches of about one length: each example once an epoch, few widths, little padding."""

import itertools
import json

import numpy as np
import pytest

from jaxtune import data
from jaxtune.data import batches
from jaxtune.typing import InputError

T = 64
BUCKETS = (16, 32)


def labelled(count, seed=0):
  lengths = np.random.default_rng(seed).integers(1, T + 1, count)
  return [
    {'tokens': np.full(n, i + 1, np.int32), 'label': np.int32(i)} for i, n in enumerate(lengths)
  ]


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def same(a, b):
  for left, right in zip(a, b, strict=True):
    assert left.keys() == right.keys()
    for key in left:
      np.testing.assert_array_equal(left[key], right[key])


def test_each_batch_has_the_smallest_bucket_that_holds_it():
  examples = labelled(320)
  stream = take(batches(examples, 4, max_length=T, seed=0, buckets=BUCKETS), 80)
  widths = [batch['tokens'].shape[1] for batch in stream]
  assert set(widths) == {16, 32, T}
  for batch, width in zip(stream, widths, strict=True):
    longest = batch['mask'].sum(axis=1).max()
    assert width == next(w for w in (*BUCKETS, T) if w >= longest)
    for tokens, mask, label in zip(batch['tokens'], batch['mask'], batch['label'], strict=True):
      np.testing.assert_array_equal(tokens[mask], examples[label]['tokens'])
  # Little padding, and random: neither lengths nor widths are sorted.
  assert data.fill(stream) > 1.3 * data.fill(take(batches(examples, 4, max_length=T, seed=0), 80))
  assert widths[0] == T and widths[1:] != sorted(widths[1:]) != widths[1:][::-1]


def test_an_epoch_has_each_example_once():
  stream = batches(labelled(128), 4, max_length=T, seed=0, buckets=BUCKETS)
  epochs = np.concatenate([batch['label'] for batch in take(stream, 64)]).reshape(2, 128)
  assert all(sorted(epoch) == list(range(128)) for epoch in epochs.tolist())
  assert epochs[0].tolist() != epochs[1].tolist()


def test_a_saved_place_continues_exactly():
  def make(buckets=BUCKETS):
    return batches(labelled(50), 3, max_length=T, seed=7, buckets=buckets)

  whole = take(make(), 80)
  stream = make()
  for step in range(0, 70, 7):
    state = json.loads(json.dumps(stream.get_state()))
    fresh = make()
    fresh.set_state(state)
    same(take(fresh, 4), whole[step : step + 4])
    take(stream, 7)
  for buckets in ((16,), ()):
    with pytest.raises(InputError, match=r'buckets=\[16, 32, 64\]'):
      make(buckets).set_state(state)
  with pytest.raises(InputError, match='buckets=None, this run has buckets='):
    make().set_state(make(()).get_state())


def test_processes_see_one_width():
  examples = labelled(60)
  whole = take(batches(examples, 6, max_length=T, seed=5, buckets=BUCKETS), 20)
  for i in range(3):
    part = batches(
      examples, 6, max_length=T, seed=5, buckets=BUCKETS, process_index=i, process_count=3
    )
    same(take(part, 20), [{key: value[i::3] for key, value in batch.items()} for batch in whole])


def test_all_parts_of_an_example_have_one_width():
  part = lambda n: {'tokens': np.ones(n, np.int32)}  # noqa: E731
  examples = [{'chosen': part(5), 'rejected': part(n)} for n in (3, 20)]
  stream = take(batches(examples, 1, max_length=T, seed=0, buckets=BUCKETS), 8)
  widths = {(b['chosen']['tokens'].shape[1], b['rejected']['tokens'].shape[1]) for b in stream}
  assert widths == {(16, 16), (32, 32)}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'buckets': (16, 65)}, r'buckets are 16, 65; each must be in \[1, 64\], max_length'),
    ({'buckets': (0,)}, 'buckets are 0'),
    ({'buckets': (16,), 'pack': 'best_fit'}, "set pack='best_fit' or buckets"),
  ],
)
def test_bad_arguments(change, message):
  example = {'tokens': np.ones(3, np.int32)}
  with pytest.raises(InputError, match=message):
    batches([example], 4, max_length=T, seed=0, **change)
