"""Losses on labels and metrics beside TRL, transformers, torch and scikit-learn as they are now."""

import jax
import numpy as np
import pytest

from jaxtune import losses
from jaxtune.losses import metrics
from tests.losses import test_supervised as ours

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]


@pytest.fixture
def peer():
  pytest.importorskip('trl')
  from scripts import golden_supervised

  return golden_supervised


def test_the_golden_file_is_theirs(peer):
  found = peer.inputs()
  for name in peer.CASES:
    loss, gradient = peer.peer_loss(name, found)
    np.testing.assert_allclose(ours.GOLDEN[f'{name}_loss'], loss, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(ours.GOLDEN[f'{name}_gradient'], gradient, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('seed', [1, 2])
def test_other_rows(peer, seed):
  found = peer.inputs(seed)
  for name in peer.CASES:
    ours.compare(name, found, *peer.peer_loss(name, found))


def test_masked_tokens(peer):
  import torch
  from transformers.loss.loss_utils import ForMaskedLMLoss

  found = peer.inputs()
  batch = {key: found[key] for key in ('tokens', 'mask')}
  size = found['logits'].shape[-1]
  objective = losses.masked_lm(ours.given('masked_lm'), 0, vocabulary=size, probability=0.5)
  sums = objective({'logits': found['logits']}, batch)
  hidden = losses.mask_tokens(jax.random.key(0), batch, 0, size, 0.5).hidden
  labels = np.where(hidden, found['tokens'], -100)
  want = ForMaskedLMLoss(torch.tensor(found['logits']), torch.tensor(labels).long(), size)
  np.testing.assert_allclose(sums.total / sums.weight, float(want), rtol=1e-5)


def test_metrics_are_those_of_scikit_learn():
  sklearn = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  true, predicted = rng.integers(0, 4, (2, 200))
  several = rng.random((2, 50, 3)) < 0.4
  for average in ('macro', 'micro'):
    for sides in ((true, predicted), several):
      want = sklearn.f1_score(*sides, average=average)
      assert metrics.f1(*sides, average) == pytest.approx(want)
  want = sklearn.f1_score(true > 1, predicted > 1)
  assert metrics.f1(np.int32(true > 1), np.int32(predicted > 1), 'binary') == pytest.approx(want)
  want = sklearn.matthews_corrcoef(true, predicted)
  assert metrics.matthews(true, predicted) == pytest.approx(want)
  assert metrics.accuracy(true, predicted) == sklearn.accuracy_score(true, predicted)


def test_entities_are_those_of_seqeval():
  seqeval = pytest.importorskip('seqeval.metrics')
  rng = np.random.default_rng(0)
  names = np.array(['O', 'B-x', 'I-x', 'B-y', 'I-y'])
  true, predicted = names[rng.integers(0, 5, (2, 60, 9))].tolist()
  found = metrics.entity_f1(true, predicted)
  assert found['entity_f1'] == pytest.approx(seqeval.f1_score(true, predicted))
  assert found['entity_recall'] == pytest.approx(seqeval.recall_score(true, predicted))


def test_noise_on_embeddings_is_that_of_transformers():
  """Without padding: uniform, and of the same size; the draws are each library's own."""
  import torch
  from transformers.integrations.neftune import neftune_post_forward_hook

  from jaxtune.models.neftune import NoisyRows, _lengths

  length, width, alpha = 40, 16, 5.0
  tokens = np.zeros((50, length), np.int32)
  module = torch.nn.Embedding(1, width)
  module.neftune_noise_alpha = alpha
  theirs = neftune_post_forward_hook(module, None, torch.zeros(50, length, width)).numpy()
  scale = alpha / np.sqrt(np.asarray(_lengths(tokens, None, None)) * width)
  own = np.asarray(NoisyRows(np.zeros((1, width)), scale, jax.random.key(0)).take(tokens))
  for sample in (own, theirs):
    assert 0.999 * scale.max() < np.abs(sample).max() <= scale.max() * (1 + 1e-6)
    np.testing.assert_allclose(sample.std(), scale.max() / np.sqrt(3), rtol=0.02)
