"""MARS against float64 NumPy written from arXiv 2411.10438 and its reference code, 20 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.optim.mars import mars, scale_by_gradient_difference

SHAPES = {'w': (3, 4), 'stack': (3, 5), 'bias': (4,)}
STEPS = 20


def draw(seed, size=0.3):
  rng = np.random.default_rng(seed)
  return {k: size * rng.standard_normal(s) for k, s in SHAPES.items()}


def tree(flat):
  return {'w': flat['w'], 'bias': flat['bias'], 'decoder': {'0-2': {'v': flat['stack']}}}


def clipped(c, stacked):
  """To a norm of 1 per parameter; the layers of the stack are parameters."""
  if stacked:
    return np.stack([clipped(x, False) for x in c])
  return c / max(1.0, np.linalg.norm(c))


def reference(rate, b1, b2, gamma, eps, weight_decay):
  params, last = draw(0), {k: 0.0 for k in SHAPES}
  m, v = dict(last), dict(last)
  for t in range(1, STEPS + 1):
    for k, g in draw(t).items():
      c = clipped(g + gamma * b1 / (1 - b1) * (g - last[k]), k == 'stack')
      last[k] = g
      m[k] = b1 * m[k] + (1 - b1) * c
      v[k] = b2 * v[k] + (1 - b2) * c**2
      u = m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
      params[k] = params[k] - rate * (u + (k != 'bias') * weight_decay * params[k])
  return tree(params)


def test_float64():
  norms = [np.linalg.norm(x) for t in range(1, STEPS) for x in (*draw(t)['stack'], draw(t)['w'])]
  assert min(norms) < 0.5 and max(norms) > 1.2  # some are clipped
  tx = mars(0.1, 0.9, 0.95, 0.05, 1e-6, weight_decay=0.2)
  with jax.enable_x64(True):
    params, step = tree(draw(0)), jax.jit(tx.update)
    state = tx.init(params)
    for t in range(1, STEPS + 1):
      updates, state = step(tree(draw(t)), state, params)
      params = optax.apply_updates(params, updates)
    exact = reference(0.1, 0.9, 0.95, 0.05, 1e-6, 0.2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), params, exact)


def test_without_correction_and_clip_it_is_adamw():
  ours = mars(0.1, 0.9, 0.999, gamma=0.0, clip=float('inf'))
  theirs = optax.adam(0.1)
  params = jax.tree.map(jnp.asarray, tree(draw(0, size=5.0)))
  a, b = ours.init(params), theirs.init(params)
  for t in (1, 2, 3):
    g = jax.tree.map(jnp.asarray, tree(draw(t, size=5.0)))
    ua, a = ours.update(g, a, params)
    ub, b = theirs.update(g, b, params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ua, ub)


@pytest.mark.parametrize('axes', [optim.STACKED, [('', 0)]])
def test_the_clip_is_per_layer(axes):
  g = {'decoder': {'0-1': {'w': jnp.asarray([[3.0, 4.0], [0.3, 0.4]])}}}
  tx = scale_by_gradient_difference(gamma=0.0, clip=1.0, axes=axes)
  out = tx.update(g, tx.init(g))[0]['decoder']['0-1']['w']
  whole = np.asarray([[3.0, 4.0], [0.3, 0.4]]) / np.sqrt(25.25)
  layers = [[0.6, 0.8], [0.3, 0.4]]
  np.testing.assert_allclose(out, layers if axes is optim.STACKED else whole, rtol=1e-6)


def test_bfloat16_zeros_and_holes():
  g = {'w': jnp.zeros((2, 3), jnp.bfloat16), 'hole': None}
  tx = scale_by_gradient_difference()
  out, state = tx.update(g, tx.init(g))
  assert out['w'].dtype == jnp.float32 and not out['w'].any()
  assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
