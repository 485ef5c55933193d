"""The article's rules against float64 NumPy written from its equations, 20 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.optim.accumulated_norm import adagrad_norm

SHAPES = {'a': (3, 4), 'b': (5,), 'c': ()}


def gradients(steps=20):
  rng = np.random.default_rng(0)
  return [{k: rng.standard_normal(s) for k, s in SHAPES.items()} for _ in range(steps)]


def trajectory(tx, dtype):
  """Parameters after each step from the same gradients, starting at one."""
  params = {k: jnp.ones(s, dtype) for k, s in SHAPES.items()}
  state, out = tx.init(params), []
  for g in gradients():
    updates, state = tx.update(jax.tree.map(lambda x: jnp.asarray(x, dtype), g), state, params)
    params = optax.apply_updates(params, updates)
    out.append(params)
  return out


def descent(alpha):
  params = {k: np.ones(s) for k, s in SHAPES.items()}
  for g in gradients():
    params = {k: params[k] - alpha * g[k] for k in params}
    yield params


def averaged(alpha, beta):
  params = {k: np.ones(s) for k, s in SHAPES.items()}
  v = {k: np.zeros(s) for k, s in SHAPES.items()}
  for g in gradients():
    v = {k: beta * v[k] + (1 - beta) * g[k] for k in v}
    params = {k: params[k] - alpha * v[k] for k in params}
    yield params


def shrinking(alpha, beta):
  params, total = {k: np.ones(s) for k, s in SHAPES.items()}, 0.0
  for g in gradients():
    total += sum(np.sum(x**2) for x in g.values())
    params = {k: params[k] - alpha / (1 + beta * total) * g[k] for k in params}
    yield params


def ward_wu_bottou(eta, b0):
  """Algorithm 1 of arXiv 1806.01811, with the norm over all leaves."""
  params, b = {k: np.ones(s) for k, s in SHAPES.items()}, b0
  for g in gradients():
    b = np.sqrt(b**2 + sum(np.sum(x**2) for x in g.values()))
    params = {k: params[k] - eta / b * g[k] for k in params}
    yield params


CASES = {
  'gradient_descent': (lambda: optim.gradient_descent(0.1), lambda: descent(0.1)),
  'momentum': (lambda: optim.momentum(0.1, 0.8), lambda: averaged(0.1, 0.8)),
  'adaptive_rate': (lambda: optim.adaptive_rate(0.5, 0.05), lambda: shrinking(0.5, 0.05)),
  'adagrad_norm': (lambda: adagrad_norm(0.7, 2.0), lambda: ward_wu_bottou(0.7, 2.0)),
}


@pytest.mark.parametrize('name', CASES)
def test_float64(name):
  make, oracle = CASES[name]
  with jax.enable_x64(True):
    for ours, exact in zip(trajectory(make(), jnp.float64), oracle(), strict=True):
      for k in SHAPES:
        np.testing.assert_allclose(ours[k], exact[k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('name', CASES)
def test_float32(name):
  make, oracle = CASES[name]
  for ours, exact in zip(trajectory(make(), jnp.float32), oracle(), strict=True):
    for k in SHAPES:
      np.testing.assert_allclose(ours[k], exact[k], rtol=1e-5, atol=2e-6)


def test_by_name_they_are_the_same():
  for tx, named in (
    (optim.momentum(0.1, 0.8), optim.create('momentum', 0.1, beta=0.8)),
    (optim.adaptive_rate(0.5, 0.05), optim.create('adaptive_rate', 0.5, beta=0.05)),
  ):
    a, b = trajectory(tx, jnp.float32)[-1], trajectory(named, jnp.float32)[-1]
    for k in SHAPES:
      np.testing.assert_allclose(a[k], b[k], rtol=1e-6)


def test_no_step_of_adagrad_norm_is_longer_than_eta():
  tx = adagrad_norm(0.7, 1e-3)
  state = tx.init(gradients()[0])
  for g in gradients():
    updates, state = tx.update(jax.tree.map(jnp.asarray, g), state)
    assert optax.tree.norm(updates) <= 0.7 * (1 + 1e-6)


def test_sums_of_bfloat16_gradients_are_float32():
  """In bfloat16 a sum of ones stops at 256."""
  tx = optim.scale_by_accumulated_norm()
  g = {'w': jnp.ones((), jnp.bfloat16)}
  state = tx.init(g)
  state, _ = jax.lax.scan(lambda s, _: (tx.update(g, s)[1], None), state, length=1000)
  assert state.total.dtype == jnp.float32 and state.total == 1000


def test_momentum_of_bfloat16_parameters_does_not_stall():
  """0.001 g added to a bfloat16 average stops at a third of g."""
  tx = optim.momentum(1.0, 0.999)
  g = {'w': jnp.ones((), jnp.bfloat16)}
  step = lambda s, _: (tx.update(g, s)[1], None)  # noqa: E731
  state, _ = jax.lax.scan(step, tx.init(g), length=10_000)
  update, _ = tx.update(g, state)
  np.testing.assert_allclose(update['w'], -1.0, rtol=1e-3)
