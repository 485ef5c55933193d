import numpy as np
import pytest

from jaxtune.data.by_length import by_length, padded_length
from jaxtune.typing import InputError


def examples(*lengths):
  return [{'tokens': np.full(n, i, np.int32), 'label': np.int32(i)} for i, n in enumerate(lengths)]


def test_every_example_comes_once_the_longest_first():
  given = examples(3, 40, 1, 33, 64, 7)
  batches = list(by_length(given, 2))
  assert [batch['tokens'].shape for _, batch in batches] == [(2, 64), (2, 64), (2, 32)]
  places = np.concatenate([places for places, _ in batches])
  assert places.tolist() == [4, 1, 3, 5, 0, 2]
  for places, batch in batches:
    for place, tokens, mask in zip(places, batch['tokens'], batch['mask'], strict=True):
      np.testing.assert_array_equal(tokens[mask], given[place]['tokens'])


def test_the_last_batch_is_filled_with_rows_of_no_weight():
  ((places, batch),) = by_length(examples(5, 6, 7), 4)
  assert places.tolist() == [2, 1, 0]
  np.testing.assert_array_equal(batch['weight'], [1, 1, 1, 0])
  np.testing.assert_array_equal(batch['label'], [2, 1, 0, 0])
  assert batch['tokens'].shape == (4, 32)


def test_few_lengths_and_little_padding():
  widths = [padded_length(n) for n in range(1, 4097)]
  assert sorted(set(widths))[:9] == [32, 64, 96, 128, 192, 256, 384, 512, 768]
  assert all(n <= width <= max(32 * -(-n // 32), 1.5 * n) for n, width in enumerate(widths, 1))
  assert len(set(widths)) == 14


def test_padding_ends_at_the_limit():
  shapes = [batch['tokens'].shape[1] for _, batch in by_length(examples(70, 40, 3), 1, limit=77)]
  assert shapes == [77, 64, 32]


def test_no_rows_at_a_time():
  assert list(by_length([], 4)) == []
  with pytest.raises(InputError, match='batch_size is 0'):
    list(by_length(examples(3), 0))
