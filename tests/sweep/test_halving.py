"""Who goes on, beside the definitions of the papers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune import sweep
from jaxtune.typing import InputError

SCORES = st.dictionaries(
  st.integers(0, 30), st.floats(-5, 5) | st.just(-math.inf), min_size=1, max_size=30
)


@pytest.mark.parametrize(
  'steps, first, factor, expected',
  [
    (180, 20, 3, [20, 60, 180]),
    (180, 180, 3, [180]),
    (100, 10, 2, [10, 20, 40, 100]),
    (90, 40, 3, [40, 90]),
    (81, 1, 3, [1, 3, 9, 27, 81]),
  ],
)
def test_rungs(steps, first, factor, expected):
  assert sweep.rungs(steps, first, factor) == expected


@given(SCORES, st.sampled_from([2.0, 3.0, 4.0]))
def test_survivors_are_the_best(scores, factor):
  found = sweep.survivors(scores, factor)
  alive = {number for number, score in scores.items() if score > -math.inf}
  assert set(found) <= alive
  assert len(found) == min(len(alive), max(1, int(len(scores) // factor)))
  left = alive - set(found)
  assert all(scores[a] >= scores[b] for a in found for b in left)


def test_a_promotion_comes_from_the_highest_rung_first():
  low, high = {0: 1.0, 1: 2.0, 2: 3.0, 3: 0.0}, {2: 3.0, 1: 2.0}
  assert sweep.promotion([low, high, {}], 2) == (2, 2)
  assert sweep.promotion([low, high, {2: 3.0}], 2) is None
  assert sweep.promotion([low, {2: None}, {}], 2) == (1, 1)
  assert sweep.promotion([low, {1: None, 2: 3.0}, {}], 2) is None
  assert sweep.promotion([{0: 1.0}, {}], 2) is None
  assert sweep.promotion([{0: -math.inf, 1: -math.inf}, {}], 2) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.sampled_from([2.0, 3.0]))
def test_asha_sends_no_more_on_than_its_share(scores, factor):
  """Candidates one by one: those sent on are never more than came, over the factor."""
  results: list[dict[int, float]] = [{}, {}, {}]
  for number, score in enumerate(scores):
    results[0][number] = score
    while sent := sweep.promotion(results, factor):
      candidate, rung = sent
      results[rung][candidate] = scores[candidate]
    for below, above in zip(results, results[1:], strict=False):
      best = sorted(below.values(), reverse=True)
      if share := math.floor(len(below) / factor):
        assert set(above) >= {n for n in below if below[n] > best[share - 1]}
      assert len(above) <= len(below)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ((10, 0), 'first rung is at step 0; choose one from 1 to 10'),
    ((10, 11), 'first rung is at step 11'),
    ((10, 1, 1.0), 'it must be above 1'),
  ],
)
def test_bad_rungs(arguments, message):
  with pytest.raises(InputError, match=message):
    sweep.rungs(*arguments)
