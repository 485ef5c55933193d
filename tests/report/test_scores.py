import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxtune.report import scores

TRUE = [0, 0, 0, 1, 1, 2, 2, 2, 2, 1]


# sklearn.metrics: f1_score(average='macro'), matthews_corrcoef, precision_recall_fscore_support
@pytest.mark.parametrize(
  'predicted, f1, matthews, precision, recall, each',
  [
    (
      [0, 1, 0, 1, 2, 2, 2, 0, 2, 1],
      0.6944444444444443,
      0.5454545454545454,
      (2 / 3, 2 / 3, 0.75),
      (2 / 3, 2 / 3, 0.75),
      (2 / 3, 2 / 3, 0.75),
    ),
    (
      [0, 1, 0, 1, 1, 1, 0, 0, 1, 1],  # one label is never predicted
      0.41269841269841273,
      0.3553345272593507,
      (0.5, 0.5, 0.0),
      (2 / 3, 1.0, 0.0),
      (0.5714285714285714, 2 / 3, 0.0),
    ),
  ],
)
def test_three_labels(predicted, f1, matthews, precision, recall, each):
  found = scores.classification(TRUE, predicted, ('a', 'b', 'c'))
  assert found.accuracy.value == pytest.approx(np.mean(np.equal(TRUE, predicted)))
  assert found.f1 == pytest.approx(f1, abs=1e-12)
  assert found.matthews == pytest.approx(matthews, abs=1e-12)
  labels = list(found.labels.values())
  assert list(found.labels) == ['a', 'b', 'c'] and [label.rows for label in labels] == [3, 3, 4]
  assert [label.precision for label in labels] == pytest.approx(precision)
  assert [label.recall for label in labels] == pytest.approx(recall)
  assert [label.f1 for label in labels] == pytest.approx(each)


def test_two_labels_and_one_that_never_occurs():
  found = scores.classification([0, 1, 1, 0], [0, 1, 0, 0], ('no', 'yes', 'never'))
  assert found.f1 == pytest.approx(0.7333333333333334)
  assert found.matthews == pytest.approx(0.5773502691896258)
  assert found.confusion == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_guessing_one_label_has_no_correlation():
  found = scores.classification([0, 1, 1, 0], [1, 1, 1, 1], ('no', 'yes'))
  assert found.accuracy.value == 0.5 and found.matthews == 0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2))
def test_matthews_of_two_labels_is_pearson(pairs):
  true, predicted = np.array(pairs, float).T
  found = scores.classification(true, predicted, ('a', 'b')).matthews
  pearson = scores.regression(true, predicted).pearson
  assert found == pytest.approx(0 if math.isnan(pearson) else pearson, abs=1e-9)


@pytest.mark.parametrize(
  'true, predicted', [([], []), ([0], [0, 1]), ([0, 2], [0, 1]), ([-1], [0])]
)
def test_labels_that_are_none(true, predicted):
  with pytest.raises(ValueError, match='labels'):
    scores.classification(true, predicted, ('a', 'b'))


def test_numbers_as_scipy_has_them():
  draw = np.random.default_rng(0)
  x = draw.normal(size=50).round(1)  # with ties
  y = (x + draw.normal(size=50)).round(1)
  found = scores.regression(x, y)
  assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
  assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
  assert found.mean_squared_error == pytest.approx(np.mean((x - y) ** 2))
  assert found.absolute_error == pytest.approx(np.mean(np.abs(x - y)))


def test_numbers_that_are_all_the_same_have_no_correlation():
  found = scores.regression([1, 2, 3], [5, 5, 5])
  assert math.isnan(found.pearson) and math.isnan(found.spearman)
  assert math.isnan(scores.regression([1], [1]).pearson)
  with pytest.raises(ValueError, match='above 0'):
    scores.regression([], [])


def test_mean_per_row_is_students_interval():
  x = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
  value, low, high = scores.mean_per(x, np.ones(5))
  assert value == pytest.approx(x.mean())
  wanted = stats.ttest_1samp(x, 0).confidence_interval()
  assert (low, high) == pytest.approx((wanted.low, wanted.high))


def test_mean_per_token_covers_the_true_ratio():
  draw = np.random.default_rng(1)
  covered = 0
  for _ in range(400):
    tokens = draw.integers(5, 60, size=40)
    nats = tokens * 3.0 + draw.normal(size=40) * tokens  # rows differ as a whole
    found = scores.mean_per(nats, tokens)
    covered += found.low <= 3.0 <= found.high
  assert 0.92 < covered / 400 < 0.98


def test_mean_per_token_of_one_row_is_not_certain():
  assert scores.mean_per([6.0], [2]) == (3.0, -math.inf, math.inf)
  with pytest.raises(ValueError, match='above 0'):
    scores.mean_per([1.0], [0])
