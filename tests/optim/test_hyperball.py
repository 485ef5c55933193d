"""Matrices on the sphere of their first norm, beside NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.optim.hyperball import adam_h, hold_norms, muon_h, soap_h
from jaxtune.optim.matrices import Matrix
from jaxtune.optim.muon import scale_by_muon
from jaxtune.optim.soap import scale_by_soap
from jaxtune.typing import InputError


def numbers(seed, dtype=np.float64):
  rng = np.random.default_rng(seed)
  shapes = {
    'embed': {'tokens': (5, 4)},
    'decoder': {'0-2': {'mlp': {'up': (3, 4, 6)}, 'attn_norm': {'scale': (3, 4)}}},
    'dense': (4, 3),
    'dense_bias': (3,),
  }
  return jax.tree.map(
    lambda s: rng.standard_normal(s).astype(dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )


def run(tx, params, gradients):
  @jax.jit
  def step(params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params, state


def oracle(params, gradients, rate, rest, b1=0.9, b2=0.99, eps=1e-8):
  """AdamH, one matrix at a time: W <- R n(W - lr R n(u)), n(x) = x / ||x||."""
  flat, structure = jax.tree_util.tree_flatten_with_path(params)
  names = [path[-1].key for path, _ in flat]
  leaves = [x.copy() for _, x in flat]
  radii = [np.sqrt((x**2).sum(axis=(-2, -1))) if x.ndim > 1 else None for x in leaves]
  m, v = [np.zeros_like(x) for x in leaves], [np.zeros_like(x) for x in leaves]

  def normalize(x):
    return x / np.sqrt((x**2).sum())

  for t, gradient in enumerate(gradients, 1):
    for i, g in enumerate(jax.tree.leaves(gradient)):
      m[i] = b1 * m[i] + (1 - b1) * g
      v[i] = b2 * v[i] + (1 - b2) * g**2
      u = m[i] / (1 - b1**t) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
      if names[i] == 'up':
        for layer, radius in enumerate(radii[i]):
          w = leaves[i][layer] - rate(t - 1) * radius * normalize(u[layer])
          leaves[i][layer] = radius * normalize(w)
      elif names[i] == 'dense':
        leaves[i] = radii[i] * normalize(leaves[i] - rate(t - 1) * radii[i] * normalize(u))
      else:
        leaves[i] = leaves[i] - rest * u
  return jax.tree.unflatten(structure, leaves)


def test_adam_h_is_the_papers_equation_for_25_steps():
  params, gradients = numbers(0), [numbers(i + 1) for i in range(25)]

  def rate(step):
    return 0.05 / (1 + step)

  with jax.enable_x64(True):
    tx = adam_h(rate, b2=0.99, rest_learning_rate=0.01)
    got, _ = run(tx, jax.tree.map(jnp.asarray, params), gradients)
    want = oracle(params, gradients, rate, 0.01)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want)


CORES = {
  muon_h: lambda: scale_by_muon(0.9),
  soap_h: lambda: scale_by_soap(0.9, 0.9, every=3),
}


@pytest.mark.parametrize('rule', CORES)
def test_muon_h_and_soap_h_step_along_their_cores_for_20_steps(rule):
  """The direction hangs on gradients alone, so that of the core, run by itself, is the oracle's."""
  params, gradients = numbers(0), [numbers(i + 1) for i in range(20)]
  with jax.enable_x64(True):
    arguments = {muon_h: (0.9,), soap_h: (0.9, 0.9)}[rule]
    options = {'every': 3} if rule is soap_h else {}
    tx = rule(0.05, *arguments, rest=optax.identity(), rest_learning_rate=0.01, **options)
    got, _ = run(tx, jax.tree.map(jnp.asarray, params), gradients)
    core = CORES[rule]()
    only = {'up': params['decoder']['0-2']['mlp']['up'], 'dense': params['dense']}
    state, update = core.init(only), jax.jit(core.update)
    want = jax.tree.map(np.copy, params)
    for g in gradients:
      u, state = update({'up': g['decoder']['0-2']['mlp']['up'], 'dense': g['dense']}, state)
      ups = want['decoder']['0-2']['mlp']['up']
      for w, start, direction in (
        *zip(ups, only['up'], np.asarray(u['up']), strict=True),
        (want['dense'], only['dense'], np.asarray(u['dense'])),
      ):
        radius = np.linalg.norm(start)
        moved = w - 0.05 * radius * direction / np.linalg.norm(direction)
        w[:] = radius * moved / np.linalg.norm(moved)
      want['embed']['tokens'] -= 0.01 * g['embed']['tokens']
      want['dense_bias'] -= 0.01 * g['dense_bias']
      scale = g['decoder']['0-2']['attn_norm']['scale']
      want['decoder']['0-2']['attn_norm']['scale'] -= 0.01 * scale
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), got, want)


def norms(params):
  """Of every matrix that is held, in float64."""
  up = np.asarray(params['decoder']['0-2']['mlp']['up'], np.float64)
  dense = np.asarray(params['dense'], np.float64)
  return np.append(np.sqrt((up**2).sum(axis=(1, 2))), np.sqrt((dense**2).sum()))


@jax.jit
def path(params, gradients, rate):
  """The parameters after each of the steps of AdamH."""
  tx = adam_h(rate, rest_learning_rate=1e-3)

  def one(carry, g):
    updates, state = tx.update(g, carry[1], carry[0])
    params = optax.apply_updates(carry[0], updates)
    return (params, state), params

  return jax.lax.scan(one, (params, tx.init(params)), gradients)[1]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(rate=st.floats(1e-4, 2.0), size=st.sampled_from([1e-8, 1.0, 1e8]))
def test_held_norms_are_constant_to_1e_6_over_200_steps_in_float32(rate, size):
  params = numbers(0, np.float32)
  gradients = [numbers(i + 1, np.float32) for i in range(200)]
  stacked = jax.tree.map(lambda *x: np.float32(size) * np.stack(x), *gradients)
  reached = path(params, stacked, rate)
  for step in (0, 9, 99, 199):
    now = jax.tree.map(lambda x, i=step: x[i], reached)
    np.testing.assert_allclose(norms(now), norms(params), rtol=1e-6)
  assert np.abs(reached['dense'][-1] - params['dense']).max() > 1e-3


def test_the_step_is_an_angle_whatever_the_length_of_the_direction():
  """A direction at right angles to W turns it by arctan(lr)."""
  w = {'w': jnp.eye(2, dtype=jnp.float32) * 3}
  tx = hold_norms(optax.identity(), 0.1)
  for size in (1e-15, 1.0, 1e15):
    u = {'w': jnp.asarray([[0.0, size], [size, 0.0]], jnp.float32)}
    updates, _ = jax.jit(tx.update)(u, tx.init(w), w)
    new = w['w'] + updates['w']
    np.testing.assert_allclose(new[0, 1] / new[0, 0], -0.1, rtol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_no_rate_and_no_direction_change_nothing_bit_for_bit(dtype):
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), numbers(0))
  # A state whose norms are off by a rounding, as after many steps: still no change.
  gradient, zeros = numbers(1, np.float32), optax.tree.zeros_like(params)
  for rate, g in ((0.0, gradient), (0.1, zeros)):
    tx = hold_norms(optax.identity(), rate)
    state = jax.tree.map(lambda x: x * (1 + 1e-6) if x.dtype == jnp.float32 else x, tx.init(params))
    updates, new = jax.jit(tx.update)(g, state, params)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(params, updates), params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(new[1].matrices.norms))


def test_a_matrix_that_starts_at_zero_takes_plain_steps():
  params = {'b': jnp.zeros((2, 3)), 'a': jnp.ones((3, 2))}
  tx = hold_norms(optax.identity(), 0.1, rest_learning_rate=0.5)
  state = tx.init(params)
  for step in (1, 2):
    updates, state = tx.update({'b': jnp.ones((2, 3)), 'a': -jnp.ones((3, 2))}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params['b'], -0.5 * step)
  np.testing.assert_allclose(jnp.linalg.norm(params['a']), 6**0.5, rtol=1e-6)


def test_a_cut_matrix_has_a_norm_for_each_part():
  w = {'qkv': jnp.asarray(numbers(0)['decoder']['0-2']['mlp']['up'][0], jnp.float32)}
  tx = hold_norms(optax.identity(), 0.3, matrices=[('qkv', Matrix(cut=(2, 2, 2)))])
  updates, _ = tx.update({'qkv': jnp.flip(w['qkv'])}, tx.init(w), w)
  reached = optax.apply_updates(w, updates)['qkv']
  for new, old in zip(jnp.split(reached, 3, 1), jnp.split(w['qkv'], 3, 1), strict=True):
    assert np.abs(new - old).max() > 1e-2
    np.testing.assert_allclose(jnp.linalg.norm(new), jnp.linalg.norm(old), rtol=1e-6)


def test_parameters_are_needed():
  tx = adam_h(0.1)
  with pytest.raises(InputError, match='needs the parameters'):
    tx.update(numbers(0, np.float32), tx.init(numbers(0, np.float32)))
