"""PSGD with Kronecker factors against a NumPy version of its equations, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.kron import kron, scale_by_kron, thinning
from jaxtune.typing import InputError

LR, CLIP = 0.1, 1.1


def norm_bound(a):
  """Of a symmetric matrix: |A x| for x along A times its longest row."""
  x = a @ a[np.argmax(np.sum(a**2, 1))]
  return np.linalg.norm(a @ x / np.linalg.norm(x))


def reference(gradients, noises, due, diagonal=(False, False), scale=1.0):
  """The whitening rule dQ = E Q of arXiv 2402.04553 in triangular matrices, one layer."""
  q = [np.eye(n) * scale**0.5 for n in gradients[0].shape]
  for t, g in enumerate(gradients):
    if due(t):
      a = q[0] @ g @ q[1].T
      b = np.linalg.inv(q[0]).T @ noises[t] @ np.linalg.inv(q[1])
      for i, (x, y) in enumerate(((a, b), (a.T, b.T))):
        if diagonal[i]:
          up, down = np.sum(x**2, 1), np.sum(y**2, 1)
          q[i] = q[i] - LR * np.diag((up - down) / np.max(up + down)) @ q[i]
        else:
          up, down = x @ x.T, y @ y.T
          q[i] = q[i] - LR * np.triu(up - down) / norm_bound(up + down) @ q[i]
    u = q[0].T @ q[0] @ g @ q[1].T @ q[1]
    yield u * min(1, CLIP / (np.sqrt(np.mean(u**2)) + 1e-6))


def gradients(shape, steps=25, seed=0):
  rng = np.random.default_rng(seed)
  left, right = rng.standard_normal((shape[-2],) * 2), rng.standard_normal((shape[-1],) * 2)
  return left @ rng.standard_normal((steps, *shape)) @ right / 10


def noise(seed, step, shape):
  key = jax.random.fold_in(jax.random.key(seed), step)
  return np.broadcast_to(jax.random.normal(key, shape[-2:], jnp.float64), shape)


def run(tx, gradients):
  step = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
  scan = jax.jit(lambda g: jax.lax.scan(step, tx.init(jax.tree.map(lambda x: x[0], g)), g))
  return jax.device_get(scan(jax.tree.map(jnp.asarray, gradients)))


@pytest.mark.parametrize(('max_size', 'every'), [(99, 1), (5, 3)])
def test_kron_is_the_papers_algorithm(max_size, every):
  """25 steps of two layers and of a leaf before them; with max_size 5 six columns are diagonal."""
  g = {'a': gradients((3, 3), seed=1), 'b': gradients((2, 5, 6)), 'c': gradients((1, 4), seed=2)}
  tx = scale_by_kron(precond_lr=LR, every=every, max_size=max_size, init_scale=2.0, seed=7)
  with jax.enable_x64(True):
    state, ours = run(tx, g)
    draws = np.stack([noise(7, t, (2, 5, 6)) for t in range(25)])
    wide = np.stack([noise(7, t, (1, 4)) for t in range(25)])
  due = lambda t: (t + 1) % every == 0  # noqa: E731
  for i in range(2):
    theirs = reference(g['b'][:, i], draws[:, i], due, (False, max_size < 6), 2.0)
    np.testing.assert_allclose(ours['b'][:, i], np.stack(list(theirs)), rtol=1e-8, atol=1e-9)
  theirs = np.stack(list(reference(g['c'], wide, due, (True, False), 2.0)))
  np.testing.assert_allclose(ours['c'], theirs, rtol=1e-8, atol=1e-9)
  assert state.factors['c'].rows.shape == (1,) and state.factors['b'].rows.shape == (2, 5, 5)
  assert not np.any(np.tril(state.factors['b'].rows, -1))


def test_it_learns_to_whiten():
  """Gradients of one covariance, with singular values that are 200 to 1 apart, become alike."""
  rng = np.random.default_rng(0)
  left = np.diag([10, 3, 1, 0.5]) @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
  right = np.diag([2, 1, 0.2]) @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
  g = (left @ rng.standard_normal((3000, 4, 3)) @ right.T).astype(np.float32)
  tx = scale_by_kron(precond_lr=0.05, every=1, clip=9.0)
  _, u = run(tx, g)
  flat = u[1000:].reshape(2000, 12)
  spread = np.linalg.cond(np.cov(g[1000:].reshape(2000, 12).T))
  assert spread > 1e4 and np.linalg.cond(np.cov(flat.T)) < 5
  assert 0.7 < np.sqrt(np.mean(flat**2)) < 1.3


def test_the_factors_change_ever_more_rarely():
  assert [float(thinning(jnp.int32(t))) for t in (0, 500, 1500, 9000)] == pytest.approx(
    [1, 1, np.e, 1 / 0.03], rel=1e-6
  )
  tx = scale_by_kron(every=lambda step: jnp.where(step < 3, 1, 3))
  state, update = tx.init(jnp.zeros((3, 3))), jax.jit(tx.update)
  changed = []
  for t, g in enumerate(gradients((3, 3), 10).astype(np.float32)):
    before = state.factors
    _, state = update(jnp.asarray(g), state)
    changed.append(t) if np.any(before.rows != state.factors.rows) else None
  assert changed == [0, 1, 2, 5, 8]


@pytest.mark.slow
def test_low_rank_gradients_are_safe_and_padding_stays_zero():
  full = gradients((2, 6, 9), 6).astype(np.float32)
  padded = full.copy()
  padded[..., 3:5, :] = 0
  padded[..., 7:] = 0
  tx = scale_by_kron(every=1)
  for g in (full * 0, full * 0 + 1, full[..., :1] * full[..., :1, :], padded):
    state, u = run(tx, g)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((u, state)))
  assert not np.any(u[..., 3:5, :]) and not np.any(u[..., 7:]) and np.all(u[..., :3, :7] != 0)
  assert np.array_equal(run(tx, full * 0)[0].factors.rows, tx.init(full[0]).factors.rows)


def test_the_ready_chain_whitens_the_average_and_leaves_the_rest_to_adam():
  rng = np.random.default_rng(0)
  tree = {'bias': rng.standard_normal(5), 'w': rng.standard_normal((4, 5)), 'hole': None}
  params = jax.tree.map(jnp.float32, tree)
  g = jax.tree.map(lambda x: x**2, params)
  tx, adam = kron(1e-2, 0.8, weight_decay=0.1), optax.adam(1e-2)
  core = optax.chain(optax.ema(0.8), scale_by_kron())
  ours, theirs, alone = tx.init(params), adam.init(params), core.init(params['w'])
  update, update_alone = jax.jit(tx.update), jax.jit(core.update)
  for _ in range(3):
    a, ours = update(g, ours, params)
    b, theirs = adam.update(g, theirs, params)
    c, alone = update_alone(g['w'], alone)
  np.testing.assert_allclose(a['bias'], b['bias'], rtol=1e-5)
  np.testing.assert_allclose(a['w'], -1e-2 * (c + 0.1 * params['w']), rtol=1e-5)


def test_bfloat16_gradients_keep_float32_state():
  g = jnp.ones((4, 5), jnp.bfloat16)
  tx = scale_by_kron()
  u, state = jax.jit(tx.update)(g, tx.init(g))
  assert {x.dtype.name for x in jax.tree.leaves((u, state))} == {'float32', 'int32'}


def test_bad_input():
  with pytest.raises(InputError, match=r"'bias' of shape \(3,\).*for_matrices"):
    scale_by_kron().init({'bias': jnp.zeros(3)})
  with pytest.raises(InputError, match='every is 0'):
    scale_by_kron(every=0)
