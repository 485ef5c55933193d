"""Hidden tokens: drawn as BERT draws them, alike in every batch, scored as logits in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import data, losses, models, train
from jaxtune.typing import InputError

RNG = np.random.default_rng(0)
V, MASK = 200, 3
B, T = 4, 12
TOKENS = RNG.integers(10, V, (B, T)).astype(np.int32)
REAL = np.arange(T)[None] < np.array([[12], [7], [4], [12]])
WORDS = np.where(REAL, np.maximum.accumulate(np.arange(T)[None] // 2, axis=1) - 1, 0)
WORDS[:, :2] = -1  # the first two are special
BATCH = {
  'tokens': TOKENS,
  'mask': REAL,
  'words': WORDS.astype(np.int32),
  'weight': np.array([1, 1, 0.5, 0], np.float32),
}


@functools.cache
def masked(rows=4096, whole_word=False, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(10, V, (rows, 16)).astype(np.int32)
  words = np.repeat(np.arange(-1, 7)[None], rows, 0).repeat(2, axis=1).astype(np.int32)
  batch = {'tokens': tokens, 'words': words}
  found = losses.mask_tokens(jax.random.key(seed), batch, MASK, V, whole_word=whole_word)
  return tokens, words, np.asarray(found.tokens), np.asarray(found.hidden)


@pytest.mark.parametrize('whole_word', [False, True])
def test_fifteen_in_a_hundred_are_hidden_and_of_those_most_become_the_mask(whole_word):
  tokens, words, seen, hidden = masked(whole_word=whole_word)
  assert not hidden[words < 0].any()
  assert (seen == tokens)[~hidden].all()
  # Four standard deviations of the shares; the tokens of a word share a draw.
  draws = hidden[:, 2:].size / (2 if whole_word else 1)
  assert abs(hidden[:, 2:].mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / draws)
  count = hidden.sum()
  mask, kept = (seen == MASK)[hidden].mean(), (seen == tokens)[hidden].mean()
  assert abs(mask - 0.8) < 4 * np.sqrt(0.16 / count)
  assert abs(kept - 0.1 - 0.1 / V) < 4 * np.sqrt(0.09 / count)
  other = seen[hidden & (seen != tokens) & (seen != MASK)]
  assert other.min() < 10 and other.max() > V - 10  # any token, special ones too
  pairs = hidden[:, 2:].reshape(len(hidden), -1, 2)
  assert (pairs[..., 0] == pairs[..., 1]).all() == whole_word


def test_a_text_is_masked_alike_in_every_row_batch_and_padding():
  mask = functools.partial(losses.mask_tokens, jax.random.key(5), mask_token=MASK, vocabulary=V)
  batch = {key: BATCH[key] for key in ('tokens', 'mask', 'words')}
  whole = mask(batch)
  part = mask({key: value[2:0:-1, :8] for key, value in batch.items()})
  np.testing.assert_array_equal(part.tokens, np.where(REAL, whole.tokens, TOKENS)[2:0:-1, :8])
  noise = mask({**batch, 'tokens': np.where(REAL, TOKENS, 7)})
  np.testing.assert_array_equal(noise.hidden, whole.hidden)
  assert not whole.hidden[~REAL].any()
  other = losses.mask_tokens(jax.random.key(6), BATCH, MASK, V)
  assert (other.hidden != whole.hidden).any()


def test_documents_of_a_packed_row_have_words_of_their_own():
  rng = np.random.default_rng(0)
  batch = {
    'tokens': rng.integers(10, V, (500, 8)).astype(np.int32),
    'words': np.tile(np.int32([0, 0, 1, 1]), (500, 2)),
    'segments': np.repeat(np.int32([[1, 2]]), 4, axis=1).repeat(500, 0),
  }
  hidden = losses.mask_tokens(jax.random.key(0), batch, MASK, V, 0.5, whole_word=True).hidden
  words = np.asarray(hidden).reshape(500, 4, 2)
  assert (words[..., 0] == words[..., 1]).all()
  same = (words[:, 0, 0] == words[:, 2, 0]).mean()  # the first words of both documents
  assert 0.4 < same < 0.6


@functools.cache
def built(**options):
  model = models.encoder(
    models.EncoderConfig(
      vocabulary=V, width=8, hidden=12, layers=1, heads=2, positions=T, masked_lm=True, dropout=0.1
    )
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.7, x.shape)), model.shapes())
  options = {'probability': 0.4, **options}
  return model, params, losses.masked_lm(model, MASK, **options)


PACKED = {
  'segments': np.where(REAL, 1 + (np.arange(T)[None] >= 4), 0).astype(np.int32),
  'positions': (np.arange(T, dtype=np.int32)[None] % 4).repeat(B, 0),
}


@pytest.mark.parametrize('chunk, packed', [(None, {}), (5, PACKED)])
def test_the_loss_is_that_of_the_hidden_tokens(chunk, packed):
  model, params, objective = built(chunk=chunk)
  batch = {**BATCH, **packed}
  loss = jax.jit(objective)(params, batch)
  seen, hidden = losses.mask_tokens(jax.random.key(0), batch, MASK, V, 0.4)
  logits = np.float64(jax.jit(model.apply)(params, seen, REAL, **packed))
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nats = -np.take_along_axis(log_p, TOKENS[..., None], -1)[..., 0]
  weights = np.asarray(hidden) * BATCH['weight'][:, None]
  assert weights.sum() > 3
  np.testing.assert_allclose(loss.total, (nats * weights).sum(), rtol=1e-5)
  assert loss.weight == weights.sum()
  right = (logits.argmax(-1) == TOKENS) * weights
  np.testing.assert_allclose(loss.metrics['accuracy'], right.sum())


@pytest.mark.slow
def test_steps_hide_other_tokens_and_have_gradients():
  _, params, objective = built()

  @jax.jit
  def run(key):
    return jax.value_and_grad(lambda p: objective(p, BATCH, key).total)(params)

  (one, gradient), (other, _) = run(jax.random.key(1)), run(jax.random.key(2))
  assert one != other
  assert all(jnp.isfinite(g).all() and g.any() for g in jax.tree.leaves(gradient['head']))


def test_an_evaluation_does_not_depend_on_the_batch():
  _, params, objective = built()
  rng = np.random.default_rng(3)
  lengths = rng.integers(5, T, 9)
  examples = [
    {'tokens': rng.integers(10, V, n).astype(np.int32), 'words': np.arange(n, dtype=np.int32)}
    for n in lengths
  ]
  evaluation = jax.jit(train.make_evaluation(objective))
  nothing = jax.tree.map(lambda x: None, params)
  found = [
    train.evaluate(
      evaluation,
      params,
      nothing,
      data.eval_batches(examples, rows, max_length=T),
      measure=objective.measure,
    )
    for rows in (9, 4)
  ]
  assert found[0] == pytest.approx(found[1], rel=1e-5)
  assert found[0]['perplexity'] == pytest.approx(np.exp(found[0]['loss']))


def test_bad_options():
  model = built()[0]
  for probability in (0, 1, -1, float('nan')):
    with pytest.raises(InputError, match='probability is .*; it must be between 0 and 1'):
      losses.masked_lm(model, MASK, probability=probability)
  with pytest.raises(InputError, match='mask_token is 200, which is none of the 200 tokens'):
    losses.masked_lm(model, 200)
  whole = losses.masked_lm(model, MASK, whole_word=True)
  with pytest.raises(InputError, match='whole_word is set, but the batch has no words'):
    whole(built()[1], {'tokens': TOKENS})
