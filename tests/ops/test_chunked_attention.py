"""Attention in blocks beside the whole form, and what whole form it is beside float64 and JAX."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops
from jaxtune.ops import attention_kernels
from jaxtune.ops import chunked_attention as chunked

B, T, S, H, G, K = 2, 21, 23, 4, 2, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(chunked, 'QUERIES', 4)
  monkeypatch.setattr(chunked, 'KEYS', 8)
  monkeypatch.setattr(attention_kernels, 'LONG', 1)


def inputs(queries=T, keys=T, rows=B):
  rng = np.random.default_rng(0)
  shapes = [(rows, queries, H, K), (rows, keys, G, K), (rows, keys, G, K)]
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def oracle(q, k, v, seen, cap):
  """In float64, zeros for a query that sees nothing; `seen` `[B or 1, T, S]`."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  for b, h in itertools.product(range(len(q)), range(q.shape[2])):
    scores = q[b, :, h] @ k[b, :, h // (H // G)].T / np.sqrt(K)
    scores = cap * np.tanh(scores / cap) if cap else scores
    weights = np.where(seen[b % len(seen)], np.exp(scores), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    out[b, :, h] = weights / np.where(total > 0, total, 1.0) @ v[b, :, h // (H // G)]
  return out


def cases():
  real = np.arange(T)[None] < np.array([[T], [13]])
  left = np.arange(T)[None] >= np.array([[0], [9]])
  packed = np.repeat([[1, 2, 3, 0], [1, 2, 0, 0]], [7, 2, 9, 3], axis=1).astype(np.int32)
  yield 'all', ops.Visible(*[np.arange(T)[None]] * 2, None, None, *ops.reach(False)), 0.0
  yield 'causal', ops.visible(None, None, True, T), 0.0
  yield 'capped', ops.visible(None, None, True, T), 2.0
  yield 'padded', ops.visible(real, None, True, T), 0.0
  yield 'padded on the left', ops.visible(left, None, True, T), 0.0
  yield 'window', ops.visible(real, None, True, T, window=3), 0.0
  yield 'both sides', ops.visible(real, None, False, T, window=3), 0.0
  yield 'packed', ops.visible(packed > 0, packed, True, T), 0.0
  yield 'packed, window, capped', ops.visible(packed > 0, packed, True, T, window=5), 1.0


@pytest.mark.parametrize('seen, cap', [pytest.param(s, c, id=name) for name, s, c in cases()])
def test_blocks_are_the_oracle_and_their_gradients_those_of_all_scores(seen, cap):
  q, k, v = inputs()
  pairs = np.asarray(ops.allowed(seen))
  looks = np.broadcast_to(pairs.any(axis=-1), (B, T))[:, :, None, None]

  def total(q, k, v, bias):
    out = ops.attention(q, k, v, bias, cap=cap)
    return jnp.sum(jnp.where(looks, out, 0.0) ** 2), out

  run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
  got, out = run(q, k, v, seen)
  np.testing.assert_allclose(out, oracle(q, k, v, pairs, cap), atol=2e-6)
  for x, want in zip(got, run(q, k, v, ops.hidden(pairs))[0], strict=True):
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(x, want, atol=1e-5)


def test_is_jax_attention_with_the_queries_as_the_last_of_the_keys():
  q, k, v = inputs(T, S)
  whole = jnp.pad(q, ((0, 0), (S - T, 0), (0, 0), (0, 0)))
  want = jax.nn.dot_product_attention(whole, k, v, is_causal=True)[:, S - T :]
  np.testing.assert_allclose(ops.attention(q, k, v, causal=True), want, atol=2e-6)


def test_a_part_of_the_queries_at_a_place_known_later():
  """As where tokens are spread over devices: own queries, all keys."""
  q, k, v = inputs()
  seen = ops.visible(None, None, True, T)
  want = ops.attention(q, k, v, seen)

  @jax.jit
  def part(start):
    own = dataclasses.replace(
      seen, queries=jax.lax.dynamic_slice_in_dim(seen.queries, start, 7, axis=1)
    )
    return ops.attention(jax.lax.dynamic_slice_in_dim(q, start, 7, axis=1), k, v, own)

  got = jnp.concatenate([part(start) for start in (0, 7, 14)], axis=1)
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_documents_of_a_row_do_not_touch_each_other():
  """Neither output nor gradient of one changes by a bit with the other."""
  q, k, v = inputs(rows=1)
  packed = np.repeat(np.int32([[1, 2]]), [9, T - 9], axis=1)
  seen = ops.visible(packed > 0, packed, True, T)

  @jax.jit
  def first(q, k, v):
    run = lambda q, k, v: ops.attention(q, k, v, seen)[:, :9]  # noqa: E731
    out, back = jax.vjp(run, q, k, v)
    return [x[:, :9] for x in (out, *back(out))]

  changed = [jnp.where(packed[0, :, None, None] == 2, 3 * x + 1, x) for x in (q, k, v)]
  for x, want in zip(first(*changed), first(q, k, v), strict=True):
    np.testing.assert_array_equal(x, want)
  assert not np.array_equal(ops.attention(*changed, seen), ops.attention(q, k, v, seen))


def test_queries_that_see_nothing_are_finite():
  q, k, v = inputs()
  seen = ops.visible(np.zeros((B, T), bool), None, True, T)
  gradients = jax.jit(jax.value_and_grad(lambda *x: ops.attention(*x, seen).sum(), (0, 1, 2)))
  for x in jax.tree.leaves(gradients(q, k, v)):
    np.testing.assert_array_equal(x, 0.0)


def test_lanes_and_bfloat16():
  q, k, v = inputs()
  seen = ops.visible(None, None, True, T)
  run = jax.jit(jax.grad(lambda q, k, v: ops.attention(q, k, v, seen).sum(), argnums=1))
  lanes = jax.jit(jax.vmap(run, in_axes=(0, None, None)))(jnp.stack([q, -q]), k, v)
  np.testing.assert_allclose(lanes, [run(q, k, v), run(-q, k, v)], atol=2e-6)
  low = run(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(low.astype(np.float32), run(q, k, v), atol=0.05)


def test_memory_is_linear(monkeypatch):
  """Temporaries of a backward pass over 4,096 tokens and 8 heads beside those of all scores."""
  monkeypatch.undo()
  shapes = [jax.ShapeDtypeStruct((1, 4096, heads, 64), jnp.float32) for heads in (8, 4, 4)]

  def temporaries(attend):
    total = lambda q, k, v: attend(q, k, v).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  plain = temporaries(lambda *x: jax.nn.dot_product_attention(*x, is_causal=True))
  assert temporaries(lambda *x: ops.attention(*x, causal=True)) < 0.15 * plain
