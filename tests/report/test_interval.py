import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.report import wilson


# scipy.stats.binomtest(correct, total).proportion_ci(method='wilson')
@pytest.mark.parametrize(
  ('correct', 'total', 'low', 'high'),
  [
    (0, 10, 0.0, 0.27753279986288926),
    (10, 10, 0.7224672001371109, 1.0),
    (5, 10, 0.236593090512564, 0.7634069094874361),
    (1, 1, 0.20654931437723745, 1.0),
    (2379, 3000, 0.7781316884144889, 0.8071189062324702),
  ],
)
def test_known_values(correct, total, low, high):
  interval = wilson(correct, total)
  assert interval.value == correct / total
  assert interval.low == pytest.approx(low, abs=1e-12)
  assert interval.high == pytest.approx(high, abs=1e-12)


@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_solve_the_score_equation(counts):
  correct, total = counts
  p, low, high = wilson(correct, total)
  assert 0 <= low <= p <= high <= 1
  for end in (low, high):  # |p - end| = z sqrt(end (1 - end) / n)
    z = 1.959963984540054
    assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), abs=1e-8)


@pytest.mark.parametrize('counts', [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts(counts):
  with pytest.raises(ValueError, match='correct of'):
    wilson(*counts)
