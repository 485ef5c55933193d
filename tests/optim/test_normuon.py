"""NorMuon against float64 NumPy from Algorithm 1 of arXiv 2510.05491, and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.normuon import normuon, scale_by_neuron, scale_by_normuon
from jaxtune.typing import InputError

STEPS = 20


def newton_schulz(x, steps=5):
  x = x / np.linalg.norm(x)
  for _ in range(steps):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x


def oracle(w, gradients, *, rate, decay, nesterov, beta1=0.95, beta2=0.9, eps=1e-8):
  """Algorithm 1 for the paper's W = w.T of [out, in]; with nesterov as in the authors' code."""
  w = w.T
  m, v = np.zeros_like(w), np.zeros(len(w))
  for g in gradients:
    m = beta1 * m + (1 - beta1) * g.T
    o = newton_schulz(beta1 * m + (1 - beta1) * g.T if nesterov else m)
    v = beta2 * v + (1 - beta2) * np.mean(o * o, axis=1)
    even = o / (np.sqrt(v) + eps)[:, None]
    w = w - rate * decay * w - 0.2 * rate * np.sqrt(w.size) / np.linalg.norm(even) * even
  return w.T


@pytest.mark.parametrize('nesterov', [True, False])
def test_against_numpy_in_float64(nesterov):
  """A stack, single matrices of one shape, and a tall one."""
  shapes = {'decoder': {'0-1': {'w': (2, 4, 7)}}, 'a': (4, 7), 'b': (4, 7), 'tall': (9, 3)}
  rng = np.random.default_rng(0)

  def draw():
    return jax.tree.map(
      lambda s: jnp.asarray(rng.standard_normal(s)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )

  with jax.enable_x64(True):
    params, *gradients = (draw() for _ in range(STEPS + 1))
    tx = normuon(0.05, beta2=0.9, nesterov=nesterov, weight_decay=0.1)
    new, state, update = params, tx.init(params), jax.jit(tx.update)
    for g in gradients:
      updates, state = update(g, state, new)
      new = optax.apply_updates(new, updates)
  kwargs = {'rate': 0.05, 'decay': 0.1, 'nesterov': nesterov}

  def check(got, start, *gradients):
    for layer in np.ndindex(*start.shape[:-2]):
      want = oracle(np.asarray(start[layer]), [np.asarray(g[layer]) for g in gradients], **kwargs)
      np.testing.assert_allclose(got[layer], want, rtol=0, atol=1e-11)

  jax.tree.map(check, new, params, *gradients)


def test_updates_have_an_rms_of_0_2_and_at_first_even_neurons():
  rng = np.random.default_rng(0)
  g = {'w': jnp.asarray(rng.standard_normal((3, 12, 5)) * np.geomspace(1, 100, 5), jnp.float32)}
  tx = scale_by_normuon()
  state = tx.init(g)
  for seed in range(3):
    u, state = tx.update(g, state)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(u['w'] ** 2, (-2, -1))), 0.2, rtol=1e-5)
    if seed == 0:
      np.testing.assert_allclose(jnp.sqrt(jnp.mean(u['w'] ** 2, -2)), 0.2, rtol=1e-5)
    g = {'w': jnp.asarray(rng.standard_normal((3, 12, 5)), jnp.float32)}
  assert not np.allclose(jnp.sqrt(jnp.mean(u['w'] ** 2, -2)), 0.2, rtol=1e-2)


def test_state_is_a_number_an_output_neuron_in_float32():
  params = {'decoder': {'0-2': {'w': jnp.ones((3, 6, 4), jnp.bfloat16)}}, 'none': None}
  state = scale_by_normuon().init(params)
  nu = state[2].nu['decoder/0-2/w']
  assert nu.shape == (3, 1, 4) and nu.dtype == jnp.float32


def test_zeros_give_zeros():
  zeros = {'w': jnp.zeros((2, 3, 4)).at[1, 0, 0].set(1.0)}
  tx = scale_by_normuon()
  u, _ = jax.jit(tx.update)(zeros, tx.init(zeros))
  np.testing.assert_array_equal(u['w'][0], 0)
  assert np.all(np.isfinite(u['w'])) and np.any(u['w'][1])


def test_a_vector_is_no_matrix():
  with pytest.raises(InputError, match=r"'b' of shape \(3,\) is no matrix"):
    scale_by_neuron().init({'b': jnp.ones(3)})
