"""Metrics of whole splits beside their definitions, SciPy, and counted entities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxtune.losses import metrics
from jaxtune.report import scores

RNG = np.random.default_rng(0)
LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(deadline=None)
@given(LABELS)
def test_scores_of_labels_are_those_of_the_confusion(rows):
  true, predicted = np.array(rows).T
  want = scores.classification(true, predicted, 'abcd')
  assert metrics.accuracy(true, predicted) == pytest.approx(want.accuracy.value)
  assert metrics.f1(true, predicted) == pytest.approx(want.f1)
  assert metrics.f1(true, predicted, 'micro') == pytest.approx(want.accuracy.value)
  assert metrics.f1(true, predicted, 'binary') == pytest.approx(want.labels['b'].f1)


def test_matthews_is_the_correlation_of_two_labels():
  true, predicted = RNG.integers(0, 2, (2, 40))
  want = np.corrcoef(true, predicted)[0, 1]
  assert metrics.matthews(true, predicted) == pytest.approx(want)
  assert metrics.matthews(true, 1 - true) == pytest.approx(-1)
  assert metrics.matthews(np.arange(5), np.arange(5)) == pytest.approx(1)
  assert metrics.matthews(true, np.ones(40)) == 0


def test_f1_of_several_labels_a_row():
  true = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]])
  predicted = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 1]])
  # By class: TP 2 FP 1; nothing; TP 1 FP 1 FN 1.
  assert metrics.f1(true, predicted) == pytest.approx((4 / 5 + 0 + 2 / 4) / 3)
  assert metrics.f1(true, predicted, 'micro') == pytest.approx(6 / 9)
  with pytest.raises(ValueError, match='binary is for labels'):
    metrics.f1(true, predicted, 'binary')
  with pytest.raises(ValueError, match="'middle'; known: macro, micro, binary"):
    metrics.f1(true, predicted, 'middle')


def test_correlations_are_those_of_scipy():
  x = RNG.normal(size=50)
  y = np.round(x + RNG.normal(size=50), 0)  # with ties
  assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
  assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
  assert metrics.spearman(x, np.exp(x)) == pytest.approx(1)
  assert np.isnan(metrics.pearson(x, np.ones(50))) and np.isnan(metrics.spearman(np.ones(50), x))


def test_perplexity_of_sums():
  assert metrics.perplexity(np.array([2.0, 4.0]), np.array([1, 2])) == pytest.approx(np.exp(2))


def test_ranks_count_what_stands_before_a_querys_own_document():
  documents = np.eye(4)
  queries = np.array([[1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0.0]])
  assert metrics.ranks(queries, documents).tolist() == [1, 2, 3]
  assert metrics.ranks(queries, documents, np.array([0, 0, 3])).tolist() == [1, 1, 4]
  assert metrics.ranks(queries, np.ones((4, 4))).tolist() == [4, 4, 4]  # ties stand before
  many = RNG.normal(size=(2100, 3))
  unit = many / np.linalg.norm(many, axis=1, keepdims=True)
  assert (metrics.ranks(unit, unit) == 1).all()


TAGGED = [
  ('O B-x I-x O', {(1, 3, 'x')}),
  ('B-x B-x I-x', {(0, 1, 'x'), (1, 3, 'x')}),
  ('I-x I-x O I-y', {(0, 2, 'x'), (3, 4, 'y')}),
  ('B-x I-y I-y', {(0, 1, 'x'), (1, 3, 'y')}),
  ('O O', set()),
  ('B-a-b I-a-b', {(0, 2, 'a-b')}),
]


@pytest.mark.parametrize('tags, want', TAGGED)
def test_entities_of_bio_tags(tags, want):
  assert metrics.entities(tags.split()) == want


def test_entities_are_right_as_a_whole():
  true = ['B-x I-x O B-y'.split(), 'B-x O'.split()]
  predicted = ['B-x O O B-y'.split(), 'B-x B-x'.split()]
  want = {'entity_precision': 2 / 4, 'entity_recall': 2 / 3, 'entity_f1': 4 / 7}
  assert metrics.entity_f1(true, predicted) == pytest.approx(want)
  assert set(metrics.entity_f1([['O']], [['O']]).values()) == {0.0}
  assert metrics.is_bio(['O', 'B-x', 'I-x']) and not metrics.is_bio(['B-x', 'I-x'])
  assert not metrics.is_bio(['O', 'NOUN'])
