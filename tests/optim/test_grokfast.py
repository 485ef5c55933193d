"""Grokfast against float64 NumPy written from arXiv 2405.20233 and its reference code, 20 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune.optim.grokfast import amplify_slow_gradients, grokfast_adamw

SHAPES = {'w': (3, 4), 'bias': (4,)}
STEPS = 20


def draw(seed):
  rng = np.random.default_rng(seed)
  return {k: rng.standard_normal(s) for k, s in SHAPES.items()}


def reference(rate, b1, b2, alpha, lamb, eps, weight_decay):
  params, h = draw(0), draw(1)  # the average starts at the first gradient
  m, v = ({k: 0.0 for k in SHAPES} for _ in range(2))
  for t in range(1, STEPS + 1):
    for k, g in draw(t).items():
      h[k] = alpha * h[k] + (1 - alpha) * g
      g = g + lamb * h[k]
      m[k] = b1 * m[k] + (1 - b1) * g
      v[k] = b2 * v[k] + (1 - b2) * g**2
      u = m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
      params[k] = params[k] - rate * (u + (k != 'bias') * weight_decay * params[k])
  return params


def test_float64():
  tx = grokfast_adamw(0.1, 0.9, 0.95, 0.8, 3.0, 1e-6, weight_decay=0.2)
  with jax.enable_x64(True):
    params, step = draw(0), jax.jit(tx.update)
    state = tx.init(params)
    for t in range(1, STEPS + 1):
      updates, state = step(draw(t), state, params)
      params = optax.apply_updates(params, updates)
    exact = reference(0.1, 0.9, 0.95, 0.8, 3.0, 1e-6, 0.2)
    for k in SHAPES:
      np.testing.assert_allclose(params[k], exact[k], rtol=1e-10)


def test_a_constant_gradient_is_amplified_from_the_first_step_and_an_alternating_one_is_not():
  tx = amplify_slow_gradients(0.98, 2.0)
  params = {'slow': jnp.zeros(2), 'fast': jnp.zeros(2), 'hole': None}
  state = tx.init(params)
  for t in range(200):
    g = {'slow': jnp.ones(2), 'fast': jnp.full(2, (-1.0) ** t), 'hole': None}
    out, state = tx.update(g, state)
    np.testing.assert_allclose(out['slow'], 3.0, rtol=1e-5)
  np.testing.assert_allclose(out['fast'], -1.0, atol=0.1)


def test_the_average_of_bfloat16_gradients_does_not_stall():
  """0.001 g added to a bfloat16 average of about 1 is lost in rounding."""
  tx = amplify_slow_gradients(0.999, 1.0)
  one, two = ({'w': jnp.full((), x, jnp.bfloat16)} for x in (1, 2))
  _, state = tx.update(one, tx.init(one))
  state, _ = jax.lax.scan(lambda s, _: (tx.update(two, s)[1], None), state, length=10_000)
  assert state.average['w'].dtype == jnp.float32
  np.testing.assert_allclose(state.average['w'], 2.0, rtol=1e-3)
