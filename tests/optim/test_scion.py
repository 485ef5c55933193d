"""Scion beside NumPy in float64, and its balls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.optim.matrices import Matrix
from jaxtune.optim.scion import SCION, Ball, scale_by_lmo, scion
from jaxtune.typing import InputError

SHAPES = {
  'embed': {'tokens': (7, 4)},
  'decoder': {'0-1': {'mlp': {'up': (2, 4, 6)}, 'mlp_norm': {'scale': (2, 4)}}},
  'head': {'dense': (4, 7), 'dense_bias': (7,)},
}


def numbers(seed, dtype=np.float64):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: rng.standard_normal(s).astype(dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
  )


def run(tx, params, gradients):
  @jax.jit
  def step(params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params


def polar(g, steps=5):
  """The standard Newton-Schulz iteration of Muon on one matrix `[in, out]`."""
  x = g / np.sqrt((g**2).sum())
  for _ in range(steps):
    y = x @ x.T
    x = 3.4445 * x + (-4.775 * y + 2.0315 * y @ y) @ x
  return x


def corners(d):
  """-lmo of the table `SCION`, leaf by leaf, from table 2 of the paper with W^T for W."""
  up = d['decoder']['0-1']['mlp']['up']
  scale = d['decoder']['0-1']['mlp_norm']['scale']
  bias = d['head']['dense_bias']
  return {
    'embed': {'tokens': 3000 * np.sign(d['embed']['tokens']) / 4},
    'decoder': {
      '0-1': {
        'mlp': {'up': 50 * (6 / 4) ** 0.5 * np.stack([polar(layer) for layer in up])},
        'mlp_norm': {'scale': 50 * np.stack([x / np.sqrt((x**2).mean()) for x in scale])},
      }
    },
    'head': {
      'dense': 3000 * np.sign(d['head']['dense']) / 4,
      'dense_bias': 50 * bias / np.sqrt((bias**2).mean()),
    },
  }


@pytest.mark.parametrize('constrained', [True, False])
def test_20_steps_are_the_papers_algorithms(constrained):
  """Algorithm 2 (constrained) and 1: d <- (1 - a) d + a g, x <- (1 - gamma) x + gamma lmo(d)."""
  params, gradients = numbers(0), [numbers(i + 1) for i in range(20)]
  gamma = 2.0**-8
  x, d = params, jax.tree.map(np.zeros_like, params)
  for g in gradients:
    d = jax.tree.map(lambda d, g: 0.9 * d + 0.1 * g, d, g)
    shrunk = jax.tree.map(lambda x: (1 - gamma) * x, x) if constrained else x
    x = jax.tree.map(lambda x, corner: x - gamma * corner, shrunk, corners(d))
  with jax.enable_x64(True):
    tx = scion(gamma, constrained=constrained)
    got = run(tx, jax.tree.map(jnp.asarray, params), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), got, x)


def norm_of(ball, w):
  """The norm of the unit ball: of `[in, out]`, by the definitions of table 2 and section 5.1."""
  if ball.transposed:
    w = w.T
  inputs, outputs = w.shape
  return {
    'spectral': lambda: np.linalg.norm(w, 2) * (inputs / outputs) ** 0.5,
    'sign': lambda: np.abs(w).max() * inputs,
    'per_output': lambda: np.sqrt((w**2).sum(axis=0)).max() * inputs**0.5,
    'per_input': lambda: np.sqrt((w**2).mean(axis=1)).max(),
    'rms': lambda: np.sqrt((w**2).mean()),
  }[ball.norm]()


@pytest.mark.parametrize(
  'ball',
  [
    Ball('sign', 3.0),
    Ball('sign', 3.0, transposed=True),
    Ball('per_output', 0.5),
    Ball('per_output', 0.5, transposed=True),
    Ball('per_input', 2.0),
    Ball('per_input', 2.0, transposed=True),
    Ball('rms', 7.0),
    Ball('spectral', 2.0),
  ],
)
def test_the_corner_is_on_the_ball_and_no_other_point_of_it_is_further_along_the_gradient(ball):
  g = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
  tx = scale_by_lmo([('', ball)], steps=12, coefficients='polar_express')
  u = np.asarray(tx.update({'w': jnp.asarray(g)}, tx.init({'w': g}))[0]['w'], np.float64)
  tolerance = 0.02 if ball.norm == 'spectral' else 1e-5  # the iteration is approximate
  np.testing.assert_allclose(norm_of(ball, u), ball.radius, rtol=tolerance)
  rng = np.random.default_rng(1)
  for _ in range(200):
    other = rng.standard_normal(g.shape)
    other *= ball.radius / norm_of(ball, other)
    assert (g * other).sum() <= (g * u).sum() * (1 + tolerance)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(power=st.integers(-12, 12))
def test_the_length_of_a_gradient_is_of_no_effect(power):
  g = numbers(0, np.float32)
  tx = scale_by_lmo()
  u, _ = UPDATE(g, tx.init(g))
  v, _ = UPDATE(jax.tree.map(lambda x: x * 2.0**power, g), tx.init(g))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), u, v)


UPDATE = jax.jit(lambda g, state: scale_by_lmo().update(g, state))


def test_constrained_parameters_stay_in_their_balls():
  """From inside; the iteration's singular values are up to 1.2, so is the spectral ball."""
  inside = jax.tree.map(lambda x: x * 1e-3, numbers(0, np.float32))
  reached = run(scion(0.2), inside, [numbers(i + 1, np.float32) for i in range(30)])
  up = np.asarray(reached['decoder']['0-1']['mlp']['up'])
  assert all(norm_of(Ball('spectral'), layer) <= 50 * 1.2 for layer in up)
  assert np.abs(reached['head']['dense']).max() * 4 <= 3000 * (1 + 1e-5)
  scale = np.asarray(reached['decoder']['0-1']['mlp_norm']['scale'])
  assert (np.sqrt((scale**2).mean(axis=1)) <= 50 * (1 + 1e-5)).all()


def test_zeros_holes_and_bfloat16_are_safe():
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), {**numbers(0), 'hole': None})
  tx = scale_by_lmo()
  updates, _ = jax.jit(tx.update)(optax.tree.zeros_like(params), tx.init(params), params)
  assert all((x == 0).all() and x.dtype == jnp.float32 for x in jax.tree.leaves(updates))
  assert updates['hole'] is None
  state = jax.eval_shape(scion(1e-3).init, params)
  assert {x.dtype for x in jax.tree.leaves(state[0].ema)} == {jnp.dtype(jnp.float32)}


def test_other_shapes_have_a_ball_too():
  """Scalars and leaves of three axes go by their root mean square, unless told their matrix."""
  g = {'a': jnp.asarray(-3.0), 'conv': jnp.ones((3, 2, 4)), 'head': jnp.full((5,), 2.0)}
  tx = scale_by_lmo()
  u, _ = tx.update(g, tx.init(g))
  np.testing.assert_allclose(u['a'], -50.0)
  np.testing.assert_allclose(u['conv'], jnp.full((3, 2, 4), 50.0), rtol=1e-6)
  np.testing.assert_allclose(u['head'], jnp.full((5,), 3000.0), rtol=1e-6)
  balls = [('conv', Ball('spectral', matrix=Matrix(rows=2))), *SCION]
  u, _ = scale_by_lmo(balls).update(g, scale_by_lmo(balls).init(g))
  singular = np.linalg.svd(np.asarray(u['conv']).reshape(6, 4), compute_uv=False)
  assert singular[0] < 1.25 * (4 / 6) ** 0.5 and (singular[1:] < 1e-2).all()


def test_bad_tables_are_named():
  for ball, message in (
    (Ball('frobenius'), "norm 'frobenius'; choose one of spectral"),
    (Ball('sign', 0.0), 'radius 0.0'),
    (Ball('spectral', transposed=True), 'transposes a spectral norm'),
  ):
    with pytest.raises(InputError, match=message):
      scale_by_lmo([('head', ball)])
  with pytest.raises(InputError, match='no rule covers'):
    scale_by_lmo([('head', Ball('sign'))]).init(numbers(0, np.float32))
  with pytest.raises(InputError, match='makes'):
    scion(0.1, balls=[('', Ball('spectral', matrix=Matrix(rows=3)))]).init(numbers(0, np.float32))
