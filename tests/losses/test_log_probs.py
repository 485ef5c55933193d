"""Log-probabilities of tokens: those of the language-modelling loss, in chunks or not."""

import jax
import numpy as np
import pytest

from jaxtune import losses, models
from jaxtune.losses.log_probs import learned_tokens, token_log_probs

RNG = np.random.default_rng(0)
MODEL = models.decoder(
  models.DecoderConfig(vocabulary=9, width=8, hidden=8, layers=1, heads=2, kv_heads=1)
)
PARAMS = jax.tree.map(lambda x: np.float32(RNG.normal(0, 0.5, x.shape)), MODEL.shapes())
BATCH = {
  'tokens': RNG.integers(0, 9, (3, 6)).astype(np.int32),
  'mask': np.arange(6) < np.array([[6], [4], [5]]),
  'supervised': RNG.random((3, 6)) < 0.7,
}
PACKED = {
  'tokens': BATCH['tokens'],
  'segments': np.array([[1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32),
  'positions': np.array([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5]], np.int32),
}


@pytest.mark.parametrize('batch', [BATCH, PACKED], ids=['padded', 'packed'])
def test_their_sum_is_minus_the_loss_of_language_modelling(batch):
  loss = losses.causal_lm(MODEL)(PARAMS, batch, None)
  nats = token_log_probs(MODEL, PARAMS, batch)
  np.testing.assert_allclose(-nats.sum(), loss.total, rtol=1e-6)
  assert learned_tokens(batch).sum() == loss.weight
  assert not nats[~learned_tokens(batch)].any() and (nats[learned_tokens(batch)] < 0).all()


def test_each_is_that_of_its_own_token():
  nats = token_log_probs(MODEL, PARAMS, BATCH, temperature=0.7)
  logits = np.asarray(MODEL.apply(PARAMS, BATCH['tokens'], BATCH['mask']), np.float64) / 0.7
  scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for row, at in np.argwhere(learned_tokens(BATCH)):
    np.testing.assert_allclose(
      nats[row, at], scores[row, at - 1, BATCH['tokens'][row, at]], rtol=1e-5
    )


@pytest.mark.slow
def test_chunks_change_neither_values_nor_gradients():
  weights = RNG.normal(0, 1, (3, 6)).astype(np.float32)

  def total(params, chunk):
    return (weights * token_log_probs(MODEL, params, BATCH, chunk)).sum()

  whole, cut = (jax.value_and_grad(total)(PARAMS, chunk) for chunk in (None, 5))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, cut)
