"""Shampoo against NumPy versions of its equations in float64, and grafted norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.optim.shampoo import graft, scale_by_shampoo, shampoo
from jaxtune.typing import InputError

B1, B2, EPS, EVERY = 0.9, 0.95, 1e-6, 3


def power(matrix, exponent):
  values, vectors = np.linalg.eigh(matrix)
  return vectors @ np.diag(np.maximum(values, EPS * values[-1]) ** exponent) @ vectors.T


def reference(gradients, average=True, columns_too=True):
  """Algorithm 2 of arXiv 2309.06497 without blocks and grafting, with eps as a relative floor."""
  rows, columns = gradients[0].shape
  m, left, right = 0, 0, 0
  for t, g in enumerate(gradients):
    kept, added = (B2, 1 - B2) if average else (1, 1)
    m = B1 * m + (1 - B1) * g
    left, right = kept * left + added * g @ g.T, kept * right + added * g.T @ g
    total = 1 - B2 ** (t + 1) if average else 1
    if t % EVERY == 0 and columns_too:
      roots = power(left / total, -1 / 4), power(right / total, -1 / 4)
    elif t % EVERY == 0:
      roots = power(left / total, -1 / 2), np.eye(columns)
    yield roots[0] @ (m / (1 - B1 ** (t + 1))) @ roots[1]


def gradients(shape, steps=25, seed=0):
  return np.random.default_rng(seed).standard_normal((steps, *shape))


@functools.partial(jax.jit, static_argnums=0)
def scanned(tx, gradients):
  step = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
  return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1]


def run(tx, gradients):
  with jax.enable_x64(True):
    return jax.device_get(scanned(tx, jnp.asarray(gradients)))


@pytest.mark.parametrize(('average', 'max_size'), [(True, 99), (True, 5), (False, 99)])
def test_shampoo_is_the_papers_algorithm(average, max_size):
  """25 steps of two layers; with max_size 5 the six columns are left out."""
  g = gradients((2, 5, 6))
  tx = scale_by_shampoo(B1, B2, eps=EPS, every=EVERY, max_size=max_size, average=average)
  ours = run(tx, g)
  for i in range(2):
    theirs = np.stack(list(reference(g[:, i], average, max_size > 5)))
    np.testing.assert_allclose(ours[:, i], theirs, rtol=1e-8, atol=1e-8)


GRAFTED = graft(scale_by_shampoo(B1, B2, every=2), optax.identity())


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99))
def test_rotations_of_rows_and_columns_go_through(seed):
  g = gradients((4, 5), 5, seed)
  q, _ = np.linalg.qr(gradients((4, 4), 1, seed)[0])
  p, _ = np.linalg.qr(gradients((5, 5), 1, seed + 1)[0])
  np.testing.assert_allclose(run(GRAFTED, q @ g @ p), q @ run(GRAFTED, g) @ p, atol=1e-9)


def test_one_step_from_a_full_rank_gradient_is_its_orthogonal_factor():
  g = gradients((4, 4), 1)
  u, _, v = np.linalg.svd(g[0])
  ours = run(scale_by_shampoo(eps=1e-12), g)
  np.testing.assert_allclose(ours[0], u @ v, atol=1e-6)


def test_a_graft_has_the_norm_of_one_rule_and_the_direction_of_the_other():
  g = {'a': gradients((3, 4, 5), 4), 'hole': None}
  shape = lambda rule: run(rule, g['a'])  # noqa: E731
  adam, plain = optax.scale_by_adam(B1, B2), scale_by_shampoo(B1, B2, every=2)
  ours, size, direction = shape(graft(plain, adam)), shape(adam), shape(plain)
  norm = lambda x: np.linalg.norm(x, axis=(-2, -1), keepdims=True)  # noqa: E731
  np.testing.assert_allclose(norm(ours), norm(size), rtol=1e-9)
  np.testing.assert_allclose(ours / norm(ours), direction / norm(direction), atol=1e-12)
  zero = run(graft(optax.scale(0.0), optax.identity()), g['a'])
  assert not np.any(zero)


def test_the_ready_chain_steps_as_far_as_adam():
  rng = np.random.default_rng(0)
  tree = {'w': rng.standard_normal((4, 5)), 'bias': rng.standard_normal(5), 'hole': None}
  grads = jax.tree.map(lambda x: x**2, tree)
  with jax.enable_x64(True):
    params, g = jax.tree.map(jnp.asarray, (tree, grads))
    tx, adam = shampoo(1e-2, B1, B2), optax.adam(1e-2, B1, B2)
    ours, theirs, update = tx.init(params), adam.init(params), jax.jit(tx.update)
    for _ in range(3):
      a, ours = update(g, ours, params)
      b, theirs = adam.update(g, theirs, params)
    np.testing.assert_allclose(a['bias'], b['bias'], rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(a['w']), np.linalg.norm(b['w']), rtol=1e-9)
    assert np.sum(np.asarray(a['w']) * grads['w']) < 0


def test_low_rank_gradients_are_safe_and_padding_stays_zero():
  tx = graft(scale_by_shampoo(every=2), optax.scale_by_adam())
  update = jax.jit(tx.update)
  full = gradients((2, 6, 9), 5).astype(np.float32)
  padded = full.copy()
  padded[..., 3:5, :] = 0
  padded[..., 7:] = 0
  for g in (full * 0, full * 0 + 1, full[..., :1] * full[..., :1, :], padded):
    state = tx.init(jnp.asarray(g[0]))
    for x in g:
      u, state = update(x, state)
      assert all(np.all(np.isfinite(y)) for y in jax.tree.leaves((u, state)))
  assert not np.any(u[..., 3:5, :]) and not np.any(u[..., 7:]) and np.all(u[:, :3, :7] != 0)


def test_bfloat16_gradients_keep_float32_state():
  g = jnp.ones((4, 5), jnp.bfloat16)
  tx = scale_by_shampoo()
  u, state = jax.jit(tx.update)(g, tx.init(g))
  assert {x.dtype.name for x in jax.tree.leaves((u, state))} == {'float32', 'int32'}


def test_bad_input():
  with pytest.raises(InputError, match=r"'bias' of shape \(3,\).*for_matrices"):
    scale_by_shampoo().init({'bias': jnp.zeros(3)})
  with pytest.raises(InputError, match='every is 0'):
    scale_by_shampoo(every=0)
