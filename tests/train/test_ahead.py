"""A batch that is made ahead changes nothing but when it is made."""

import numpy as np
import pytest

from jaxtune import data
from jaxtune.train.ahead import Ahead, tokens_of
from jaxtune.typing import InputError


def batches():
  examples = [{'tokens': np.full(n % 5 + 1, n, np.int32)} for n in range(20)]
  return data.batches(examples, 3, max_length=6, seed=0)


def test_batches_and_places_are_those_of_the_batches_themselves():
  plain, ahead = batches(), Ahead(batches(), lambda batch: batch)
  for turn in range(12):
    expected = next(plain)
    batch, tokens = next(ahead)
    np.testing.assert_array_equal(batch['tokens'], expected['tokens'])
    assert tokens == tokens_of(expected) == expected['mask'].sum()
    for _ in range(turn % 3):
      ahead.look()
    assert ahead.get_state() == plain.get_state()


def test_going_to_a_place_and_closing_forget_what_was_made():
  inner = batches()
  ahead = Ahead(inner, lambda batch: batch)
  first = ahead.get_state()
  seen = [next(ahead)[0]['tokens'] for _ in range(3)]
  ahead.look()
  behind = ahead.get_state()
  ahead.close()
  assert inner.get_state() == behind
  ahead.look()
  ahead.set_state(first)
  for tokens in seen:
    np.testing.assert_array_equal(next(ahead)[0]['tokens'], tokens)


def test_an_error_comes_with_the_batch_that_it_is_of():
  def place(batch):
    if batch['tokens'].max() == 19:
      raise InputError('no place')
    return batch

  whole = batches()
  good = next(n for n in range(20) if next(whole)['tokens'].max() == 19)
  ahead = Ahead(batches(), place)
  for _ in range(good):
    next(ahead)
    ahead.look()
  with pytest.raises(InputError, match='no place'):
    next(ahead)
