"""Drawing tokens: filters beside their definitions, frequencies beside probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.models import Sampling, sample
from jaxtune.models.sample import filtered, penalize_repetition
from jaxtune.typing import InputError

WIDTH = 23
FILTERED = jax.jit(filtered)
ROWS = jax.random.split(jax.random.key(0), 3)


def softmax(x):
  p = np.exp(x - x.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def by_definition(logits, top_k, top_p, min_p):
  """Which tokens of one row stay, from the sorted probabilities in float64."""
  order = np.argsort(-logits, kind='stable')
  stays = order[: top_k or None]
  p = softmax(logits[stays])
  before = np.cumsum(p) - p
  stays = stays[before < top_p - 1e-12] if top_p < 1 else stays
  p = softmax(logits[stays])
  kept = np.zeros(logits.shape, bool)
  kept[stays[p >= min_p * p.max()]] = True
  return kept


logits_of_one_value_each = st.integers(0, 2**31).map(
  lambda seed: (np.random.default_rng(seed).permutation(WIDTH) - 9.0).astype(np.float32) / 3
)


@settings(deadline=None, max_examples=60)
@given(
  logits_of_one_value_each,
  st.integers(0, WIDTH + 2),
  st.sampled_from([1e-6, 0.1, 0.5, 0.77, 0.95, 0.999, 1.0]),
  st.sampled_from([0.0, 0.03, 0.2, 1.0]),
)
def test_what_stays_is_what_the_definitions_keep(logits, top_k, top_p, min_p):
  out = np.asarray(FILTERED(logits, top_k, top_p, min_p))
  kept = by_definition(logits.astype(np.float64), top_k, top_p, min_p)
  np.testing.assert_array_equal(np.isfinite(out), kept)
  np.testing.assert_array_equal(out[kept], logits[kept])
  assert kept[logits.argmax()]


def test_equal_tokens_stay_or_go_together():
  logits = jnp.array([1.0, 3.0, 1.0, 1.0, 2.0, -jnp.inf])
  assert np.isfinite(filtered(logits, top_k=3)).tolist() == [True] * 5 + [False]
  assert np.isfinite(filtered(logits, top_p=0.9)).tolist() == [True] * 5 + [False]
  assert np.isfinite(filtered(logits, top_k=2)).tolist() == [False, True, False, False, True, False]


def test_a_vocabulary_of_any_size_keeps_all_without_a_filter():
  logits = jax.random.normal(jax.random.key(0), (2, 50_000)) * 4
  np.testing.assert_array_equal(filtered(logits), logits)


def test_tokens_are_as_frequent_as_they_are_probable():
  logits = jnp.array([0.0, 1.0, -1.0, 2.0, 0.5])
  drawn = sample(
    jax.random.split(jax.random.key(1), 20_000),
    jnp.broadcast_to(logits, (20_000, 5)),
    Sampling(temperature=0.7, top_k=4),
  )
  p = softmax(np.where(np.arange(5) == 2, -np.inf, np.asarray(logits, np.float64) / 0.7))
  shares = np.bincount(drawn, minlength=5) / 20_000
  np.testing.assert_allclose(shares, p, atol=4 * 0.5 / 20_000**0.5)
  assert shares[2] == 0


def test_temperature_0_takes_the_largest():
  logits = jax.random.normal(jax.random.key(2), (3, WIDTH))
  options = Sampling(top_k=2, top_p=0.5)
  np.testing.assert_array_equal(sample(ROWS, logits, options), logits.argmax(-1))
  cold = sample(ROWS, logits, options._replace(temperature=1e-4))
  np.testing.assert_array_equal(cold, logits.argmax(-1))


def test_a_row_depends_on_its_own_key_alone():
  logits = jax.random.normal(jax.random.key(3), (3, WIDTH))
  options = Sampling(temperature=1.0, top_p=0.9)
  together = sample(ROWS, logits, options)
  for row in range(3):
    alone = sample(ROWS[row : row + 1], logits[row : row + 1], options)
    assert alone[0] == together[row]
  mapped = jax.vmap(lambda key, row: sample(key[None], row[None], options)[0])(ROWS, logits)
  np.testing.assert_array_equal(mapped, together)


def test_other_numbers_do_not_compile_again():
  count = 0

  @jax.jit
  def draw(options):
    nonlocal count
    count += 1
    return sample(ROWS, jnp.zeros((3, WIDTH)), options)

  for options in (Sampling(), Sampling(1.0, 0.5, 3, 0.9, 0.1), Sampling(top_k=1, temperature=2.0)):
    draw(options)
  assert count == 1


def test_what_was_seen_becomes_less_likely():
  logits = jnp.array([[2.0, -2.0, 1.5, -3.0]])
  seen = jnp.array([[True, True, False, False]])
  np.testing.assert_allclose(penalize_repetition(logits, seen, 2.0), [[1.0, -4.0, 1.5, -3.0]])
  options = Sampling(repetition_penalty=2.0)
  assert sample(ROWS[:1], logits, options, seen).tolist() == [2]
  assert sample(ROWS[:1], logits, options).tolist() == [0]


@pytest.mark.parametrize(
  'values',
  [
    {'temperature': -0.1},
    {'temperature': float('nan')},
    {'temperature': float('inf')},
    {'top_k': -1},
    {'top_p': 0.0},
    {'top_p': 1.1},
    {'min_p': -0.1},
    {'min_p': 1.5},
    {'repetition_penalty': 0.0},
  ],
)
def test_values_outside_their_range_are_named(values):
  (name,) = values
  with pytest.raises(InputError, match=f'^{name} is .*; it must be'):
    Sampling(**values).check()
