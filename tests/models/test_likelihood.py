import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import models
from jaxtune.models import likelihood

KINDS = {
  'rotary': {},
  'learned positions': {'rope': None, 'learned_positions': True, 'tied': False},
  'window': {'window': 3, 'local': (True, False)},
}


@functools.cache
def make(kind):
  """A tiny language model whose logits are far from even, and its parameters."""
  config = models.DecoderConfig(
    vocabulary=40,
    width=16,
    hidden=24,
    layers=2,
    heads=4,
    kv_heads=2,
    positions=48,
    init_scale=0.4,
    **KINDS[kind],
  )
  spec = models.decoder(config)
  return spec, spec.init(jax.random.key(0)), jax.jit(spec.apply)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).integers(1, 40, shape).astype(np.int32)


def log_p(model, tokens):
  """`log p(next token)` `[T, V]` after each token of one row, in float64."""
  ahead = np.zeros((1, 16), np.int32)  # what comes later changes nothing; one shape compiles once
  ahead[0, : len(tokens)] = tokens
  logits = np.asarray(model[2](model[1], ahead), np.float64)[0, : len(tokens)]
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def padded(rows, left, width):
  """Tokens and mask `[B, width]`; what is padded is a token like others."""
  tokens, mask = np.full((len(rows), width), 7, np.int32), np.zeros((len(rows), width), bool)
  for i, row in enumerate(rows):
    place = slice(width - len(row), width) if left else slice(len(row))
    tokens[i, place], mask[i, place] = row, True
  return tokens, mask


@pytest.mark.parametrize(
  'kind, left, chunk',
  [
    ('rotary', False, 256),
    ('rotary', True, 5),
    ('learned positions', True, 5),
    ('window', True, 5),
  ],
)
def test_is_the_sum_over_supervised_tokens(kind, left, chunk):
  model = make(kind)
  rows = [draw(n, seed=n) for n in (12, 7, 2)]
  rows[1][-1] = log_p(model, rows[1])[-2].argmax()
  learned = [np.arange(12) % 3 == 0, np.arange(7) == 6, np.zeros(2, bool)]
  tokens, mask = padded(rows, left, 12)
  supervised = padded(learned, left, 12)[0].astype(bool)
  batch = {'tokens': tokens, 'mask': mask, 'supervised': supervised}
  score = functools.partial(likelihood.log_likelihood, model[0], chunk=chunk)
  found = jax.jit(score)(model[1], batch)
  for i, (row, scored) in enumerate(zip(rows, learned, strict=True)):
    oracle = log_p(model, row)
    wanted = sum(oracle[t - 1, row[t]] for t in range(1, len(row)) if scored[t])
    np.testing.assert_allclose(found.nats[i], wanted, rtol=1e-5, atol=1e-5)
    best = [oracle[t - 1].argmax() == row[t] for t in range(1, len(row)) if scored[t]]
    assert found.correct[i] == sum(best)
  np.testing.assert_array_equal(found.tokens, [3, 1, 0])
  assert found.correct[1] == 1


def test_documents_of_a_packed_row_are_apart():
  model = make('learned positions')
  first, second = draw(6, seed=1), draw(5, seed=2)
  batch = {
    'tokens': np.concatenate([first, second, [0]])[None].astype(np.int32),
    'segments': np.array([[1] * 6 + [2] * 5 + [0]], np.int32),
    'positions': np.array([[*range(6), *range(5), 0]], np.int32),
  }
  found = likelihood.log_likelihood(*model[:2], batch)
  wanted = sum(log_p(model, row)[np.arange(len(row) - 1), row[1:]].sum() for row in (first, second))
  np.testing.assert_allclose(found.nats, [wanted], rtol=1e-5)
  assert found.tokens == 9


@pytest.mark.parametrize(
  'kind, left, shared, words',
  [
    ('rotary', False, 0, [[3], [9], [4]]),
    ('rotary', True, 4, [[3, 9, 1], [3, 8], [4]]),
    ('learned positions', False, 4, [[3, 9, 1], [3, 8], [4]]),
    ('window', False, 4, [[3, 9, 1], [3, 8], [4]]),
  ],
)
def test_words_behind_rows_behind_what_they_share(kind, left, shared, words):
  model = make(kind)
  prefix, rows = draw(shared, seed=3), [draw(n, seed=n) for n in (8, 5, 1)]
  tokens, mask = padded(rows, left, 8)
  ids, real = padded([np.array(word) for word in words], False, max(map(len, words)))
  cache = likelihood.remember(*model[:2], jnp.asarray(prefix, jnp.int32), shared + 8 + ids.shape[1])
  score = jax.jit(functools.partial(likelihood.word_likelihood, model[0]))
  found = score(model[1], cache, tokens, mask, ids, real)
  assert found.shape == (3, 3)
  for i, row in enumerate(rows):
    for j, word in enumerate(words):
      whole = np.concatenate([prefix, row, word]).astype(np.int32)
      start = len(whole) - len(word)
      picked = log_p(model, whole)[np.arange(start - 1, len(whole) - 1), whole[start:]]
      np.testing.assert_allclose(found[i, j], picked.sum(), rtol=1e-5, atol=1e-5)


def test_has_a_gradient_whatever_the_chunk():
  model, batch = make('rotary'), {'tokens': draw(2, 8)}

  def gradient(chunk):
    def total(params):
      return likelihood.log_likelihood(model[0], params, batch, chunk=chunk).nats.sum()

    return jax.jit(jax.grad(total))(model[1])

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient(64), gradient(3)
  )
