"""Cautious updates against float64 NumPy written from arXiv 2411.16085, 20 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.optim.cautious import cautious, cautious_adamw, cautious_lion
from jaxtune.typing import InputError

SHAPES = {'w': (4, 5), 'decoder/0-2': (3, 6), 'bias': (5,), 'c': ()}
STEPS = 20


def draw(seed):
  rng = np.random.default_rng(seed)
  return {k: rng.standard_normal(s) for k, s in SHAPES.items()}


def tree(flat):
  """The stack of three vectors under a path that says so."""
  return {
    **{k: flat[k] for k in ('w', 'bias', 'c')},
    'decoder': {'0-2': {'v': flat['decoder/0-2']}},
  }


def masked(u, g):
  """With the mean of the mask as in the authors' c_adamw.py, not the paper's d / (nnz + 1)."""
  phi = u * g > 0
  return u * phi / max(phi.mean(), 1e-3)


def layers(function, stacked, *arrays):
  if not stacked:
    return function(*arrays)
  return np.stack([function(*rows) for rows in zip(*arrays, strict=True)])


def adam(b1, b2, eps):
  m, v = ({k: np.zeros(s) for k, s in SHAPES.items()} for _ in range(2))

  def direction(k, g, t):
    m[k] = b1 * m[k] + (1 - b1) * g
    v[k] = b2 * v[k] + (1 - b2) * g**2
    return m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps)

  return direction


def lion(b1, b2):
  m = {k: np.zeros(s) for k, s in SHAPES.items()}

  def direction(k, g, t):
    u = np.sign(b1 * m[k] + (1 - b1) * g)
    m[k] = b2 * m[k] + (1 - b2) * g
    return u

  return direction


def reference(direction, rate, weight_decay):
  params = draw(0)
  for t in range(1, STEPS + 1):
    for k, g in draw(t).items():
      u = layers(masked, '0-2' in k, direction(k, g, t), g)
      decay = 0 if k == 'bias' else weight_decay
      params[k] = params[k] - rate * (u + decay * params[k])
  return tree(params)


@pytest.mark.parametrize(
  ('tx', 'direction'),
  [
    (cautious_adamw(0.1, 0.9, 0.99, 1e-6, weight_decay=0.2), lambda: adam(0.9, 0.99, 1e-6)),
    (cautious_lion(0.1, 0.9, 0.95, weight_decay=0.2), lambda: lion(0.9, 0.95)),
  ],
)
def test_float64(tx, direction):
  with jax.enable_x64(True):
    params, step = tree(draw(0)), jax.jit(tx.update)
    state = tx.init(params)
    for t in range(1, STEPS + 1):
      updates, state = step(tree(draw(t)), state, params)
      params = optax.apply_updates(params, updates)
    exact = reference(direction(), 0.1, 0.2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), params, exact)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1e-25, 1e25]))
def test_no_entry_goes_uphill_and_the_mean_step_stays(seed, scale):
  """Also where u * g leaves float32."""
  rng = np.random.default_rng(seed)
  u, g = (jnp.asarray(scale * rng.standard_normal(40), jnp.float32) for _ in range(2))
  given_direction = optax.stateless(lambda *_: {'w': u})
  tx = cautious(given_direction)
  out, _ = tx.update({'w': g}, tx.init({'w': g}))
  kept = np.sign(u) * np.sign(g) > 0
  assert ((np.asarray(out['w']) != 0) == kept).all()
  np.testing.assert_allclose(out['w'][kept], u[kept] / kept.mean(), rtol=1e-5)


def test_a_direction_that_disagrees_everywhere_or_is_zero_gives_no_step():
  for factor in (-1.0, 0.0):
    tx = cautious(optax.scale(factor))
    g = {'w': jnp.ones(3), 'hole': None}
    updates, _ = tx.update(g, tx.init(g))
    assert not updates['w'].any()


def test_the_state_is_the_rules_own_in_float32():
  params = {'w': jnp.ones(3, jnp.bfloat16)}
  state = cautious(optax.scale_by_adam()).init(params)
  assert isinstance(state, optax.ScaleByAdamState)
  assert state.nu['w'].dtype == jnp.float32


def test_bad_axes():
  with pytest.raises(InputError, match='give 0 to 1'):
    cautious(optax.scale_by_adam(), axes=[('', 2)]).init({'w': jnp.ones(3)})
