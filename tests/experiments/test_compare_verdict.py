"""Who is better, and how sure that is: the statistics of a comparison against closed forms."""

import math

import numpy as np
import pytest

from experiments.comparison import verdict


@pytest.mark.parametrize('probability', [0.6, 0.9, 0.975, 0.9995])
def test_t_quantile_of_one_and_two_degrees(probability):
  one = math.tan(math.pi * (probability - 0.5))
  two = (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
  assert verdict.t_quantile(probability, 1) == pytest.approx(one, rel=1e-9)
  assert verdict.t_quantile(probability, 2) == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize(
  'freedom, quantile',  # Student's table, 0.975
  [(3, 3.182446), (4, 2.776445), (9, 2.262157), (10, 2.228139), (29, 2.045230)],
)
def test_t_quantile_of_the_table(freedom, quantile):
  assert verdict.t_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-7)


@pytest.mark.parametrize('freedom', [3, 4, 7, 12])
def test_the_density_integrates_to_the_probability_up_to_the_quantile(freedom):
  x = np.linspace(0, 2.5, 20001)
  scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
  density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
  area = np.sum((density[1:] + density[:-1]) / 2 * np.diff(x))
  assert verdict.t_quantile(0.5 + area, freedom) == pytest.approx(2.5, abs=2e-7)


def test_paired_interval_by_hand():
  # Differences 1, 2, 3: mean 2, standard deviation 1, and t of two degrees at 0.975 is 4.302653.
  interval = verdict.paired([0.0, 5.0, -1.0], [1.0, 7.0, 2.0])
  assert interval.value == 2
  assert interval.high - 2 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
  assert 2 - interval.low == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_what_the_seeds_share_does_not_widen_the_interval():
  draw = np.random.default_rng(0)
  own, shared = draw.normal(size=(2, 8)), draw.normal(scale=1e6, size=8)
  plain, offset = verdict.paired(*own), verdict.paired(*(own + shared))
  np.testing.assert_allclose(offset, plain, atol=1e-8)


@pytest.mark.parametrize('seeds', [2, 5])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(seeds):
  draw = np.random.default_rng(seeds)
  runs, truth, level = 3000, 0.3, 0.9
  first = draw.normal(size=(runs, seeds))
  second = first + truth + draw.normal(size=(runs, seeds))
  intervals = [verdict.paired(a, b, level) for a, b in zip(first, second, strict=True)]
  covered = np.mean([i.low <= truth <= i.high for i in intervals])
  assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / runs)


def test_among_equal_rules_a_verdict_is_as_rare_as_promised():
  draw = np.random.default_rng(1)
  runs = 1500
  wrong = 0
  for losses in draw.normal(size=(runs, 4, 5)):
    rules = dict(zip('abcd', losses, strict=True))
    wrong += any(v.better for v in verdict.verdicts(rules, 0.95))
  assert wrong / runs < 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)


def test_a_real_difference_is_found():
  draw = np.random.default_rng(2)
  base = draw.normal(size=10)
  losses = {'worse': base + 1 + 0.1 * draw.normal(size=10), 'better': base}
  (found,) = verdict.verdicts(losses, 0.95)
  assert (found.first, found.second, found.better) == ('better', 'worse', 'better')
  assert 0.8 < found.interval.low < found.interval.value < found.interval.high < 1.2


def test_no_verdict_where_the_interval_covers_zero():
  (found,) = verdict.verdicts({'a': np.array([1.0, 2, 3]), 'b': np.array([2.0, 1, 3.3])}, 0.95)
  assert found.interval.low < 0 < found.interval.high and found.better is None


def test_diverged_runs_are_kept_and_rank_last():
  curves = np.array([[2.0, 1.0], [2.0, np.nan], [2.0, 3.0], [2.0, np.inf]])
  np.testing.assert_array_equal(verdict.settled(curves), [1, np.inf, np.inf, np.inf])
  losses = {
    'all diverged': np.array([np.inf, np.inf]),
    'good': np.array([2.0, 2.1]),
    'one diverged': np.array([0.1, np.inf]),
    'bad': np.array([5.0, 5.1]),
  }
  assert verdict.ranked(losses) == ['good', 'bad', 'one diverged', 'all diverged']
  for found in verdict.verdicts(losses, 0.95):
    judged = {found.first, found.second} == {'good', 'bad'}
    assert (found.interval is not None) == (found.better is not None) == judged


@pytest.mark.parametrize('first, second', [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0])])
def test_an_interval_needs_two_seeds_of_both(first, second):
  with pytest.raises(ValueError, match='an interval needs'):
    verdict.paired(first, second)
