"""A batch that is made ahead changes nothing but when it is made."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxtune import data, train
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


def test_the_loop_makes_a_batch_after_the_step_before_and_reads_metrics_after_both():
  events = []

  class Stream:
    number = 0

    def __next__(self):
      self.number += 1
      events.append(f'make {self.number}')
      return {'mask': np.ones((2, 3), bool), 'number': self.number}

    def get_state(self):
      return self.number

    def set_state(self, number):
      self.number = number

  def step(state, frozen, batch):
    events.append(f'step {batch["number"]}')
    return state._replace(step=state.step + 1), {'loss': 0.0, 'grad_norm': 0.0}

  program = SimpleNamespace(step=step, frozen=None, place=lambda batch: batch)
  state = train.State(trainable=None, opt=None, step=0, key=None)
  stream = Stream()

  def run(state, steps, **options):
    return train.fit(
      program,
      stream,
      steps=steps,
      state=state,
      log=lambda line: events.append(f'log {line["step"]}'),
      **options,
    )

  state = run(state, 3)
  assert events == [
    'make 1',
    'step 1',
    'make 2',
    'step 2',
    'make 3',
    'log 1',
    'step 3',
    'log 2',
    'log 3',
  ]
  assert stream.number == 3
  run(state, 9, stop=lambda: True)  # after step 4, when 5 is made
  assert events[9:] == ['make 4', 'step 4', 'make 5', 'log 4'] and stream.number == 4
