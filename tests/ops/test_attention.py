"""Attention beside loops in float64 NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops

B, T, H, K = 2, 5, 4, 6
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
SEGMENTS = np.array([[1, 1, 2, 2, 0], [1, 2, 2, 3, 3]], np.int32)


def inputs(groups, dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = [(B, T, H, K), (B, T, groups, K), (B, T, groups, K)]
  return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def oracle(q, k, v, mask, segments, causal):
  """`[B, T, H, K]`, and NaN for a query that may look nowhere."""
  q, k, v = (x.astype(np.float64) for x in (q, k, v))
  share = H // k.shape[2]
  out = np.full(q.shape, np.nan)
  for b, t, h in itertools.product(range(B), range(T), range(H)):
    seen = [
      s
      for s in range(T)
      if (mask is None or mask[b, s])
      and (segments is None or segments[b, s] == segments[b, t])
      and (not causal or s <= t)
    ]
    if seen:
      scores = np.array([q[b, t, h] @ k[b, s, h // share] for s in seen]) / np.sqrt(K)
      weights = np.exp(scores - scores.max())
      out[b, t, h] = weights / weights.sum() @ v[b, seen, h // share]
  return out


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('mask', [None, MASK], ids=['whole', 'padded'])
@pytest.mark.parametrize('segments', [None, SEGMENTS], ids=['one', 'packed'])
def test_attention_is_the_oracle(groups, causal, mask, segments):
  q, k, v = inputs(groups)
  got = np.asarray(ops.attention(q, k, v, ops.visible(mask, segments, causal, T)))
  want = oracle(q, k, v, mask, segments, causal)
  looks = ~np.isnan(want)
  assert looks.sum() >= 0.7 * looks.size
  np.testing.assert_allclose(got[looks], want[looks], atol=2e-6)
  assert np.isfinite(got).all()


def test_nothing_to_say_when_all_may_look_everywhere():
  assert ops.visible(None, None, False, T) is None


def test_a_query_that_may_look_nowhere_is_finite_in_both_directions():
  mask = np.zeros((B, T), bool)
  mask[1] = True
  seen = ops.visible(mask, None, True, T)

  def total(q, k, v):
    return jnp.sum(ops.attention(q, k, v, seen) ** 2)

  q, k, v = inputs(2)
  value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
  assert np.isfinite(value)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
  out = ops.attention(q, k, v, seen)
  np.testing.assert_allclose(out[0, 0, 0], v[0, :, 0].mean(axis=0), atol=1e-6)


def test_bfloat16_stays_and_is_close():
  q, k, v = inputs(2)
  seen = ops.visible(MASK, None, True, T)
  low = ops.attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), seen)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(low.astype(np.float32), ops.attention(q, k, v, seen), atol=0.03)


def test_skipping_the_future_by_blocks_changes_nothing():
  rng = np.random.default_rng(5)
  length = 150  # blocks of 64, 64 and 22 queries
  q, k, v = (np.float32(rng.normal(size=(1, length, heads, K))) for heads in (H, 2, 2))
  segments = np.repeat([[1, 2, 0]], [70, 60, 20], axis=1)
  seen = ops.visible(segments > 0, segments, True, length)

  def total(q, k, v, causal):
    out = ops.attention(q, k, v, seen, causal=causal)[:, :130]  # the rest is padding
    return jnp.sum(out**2), out

  run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
  for got, want in zip(
    *map(jax.tree.leaves, (run(q, k, v, True), run(q, k, v, False))), strict=True
  ):
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_causal_without_a_bias_looks_only_backwards():
  q, k, v = inputs(2)
  seen = ops.visible(None, None, True, T)
  np.testing.assert_allclose(
    ops.attention(q, k, v, causal=True), ops.attention(q, k, v, seen), atol=1e-6
  )


def test_keys_before_those_of_the_queries_are_seen_by_every_block():
  """Of 70 keys 67 go with the queries, in two blocks; the last query sees all of them."""
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(1, n, 2, 4)).astype(np.float32) for n in (67, 70, 70))
  seen = ops.visible(None, None, causal=True, length=70)
  seen = dataclasses.replace(seen, queries=seen.queries[:, 3:])
  got = ops.attention(q, k, v, seen, causal=True)
  np.testing.assert_allclose(got, ops.attention(q, k, v, seen), atol=1e-6)
