"""Rules in the eigenbasis of the gradients: what turns, what stays, and what cannot matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.optim.eigenbasis import in_eigenbasis
from jaxtune.typing import InputError

ADAM = (0.9, 0.95, 1e-8)


def gradients(shape, steps, seed=0, dtype=np.float64):
  return np.random.default_rng(seed).standard_normal((steps, *shape)).astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def scanned(tx, gradients, params):
  def step(state, g):
    updates, state = tx.update(g, state, params)
    return state, updates

  return jax.lax.scan(step, tx.init(jax.tree.map(lambda g: g[0], gradients)), gradients)[1]


def run(tx, gradients, params=None):
  """The updates of a rule, one a step."""
  return jax.device_get(scanned(tx, gradients, params))


@pytest.mark.parametrize('skip_first', [False, True])
def test_with_identity_bases_it_is_the_rule_itself(skip_first):
  g = gradients((3, 4, 5), 6, dtype=np.float32)
  ours = run(in_eigenbasis(optax.scale_by_adam(*ADAM), max_size=3, skip_first=skip_first), g)
  adam = run(optax.scale_by_adam(*ADAM), g[skip_first:])
  np.testing.assert_array_equal(ours[skip_first:], adam)
  assert not (skip_first and np.any(ours[0]))


def test_a_side_above_the_maximum_keeps_the_identity():
  """And the other side is turned as it would be alone: rows of a long matrix."""
  x = {'long': jnp.ones((4, 9)), 'wide': jnp.ones((2, 9, 4))}
  state = in_eigenbasis(optax.scale_by_adam(), max_size=8).init(x)
  assert state.bases['long'].columns is None and state.bases['long'].rows.shape == (4, 4)
  assert state.bases['wide'].rows is None and state.factors['wide'].columns.shape == (2, 4, 4)


def orthogonal(n, seed):
  return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


EVERY_OTHER = {kl: in_eigenbasis(optax.scale_by_adam(*ADAM), every=2, kl=kl) for kl in (0, 1)}


@settings(max_examples=6, deadline=None, derandomize=True)
@given(shape=st.sampled_from([(2, 4, 5), (1, 2)]), kl=st.booleans(), seed=st.integers(0, 99))
def test_rotations_of_rows_and_columns_go_through(shape, kl, seed):
  """f(Q X P) = Q f(X) P in float64, from the first step that is made in an eigenbasis.

  Shapes whose first gradient leaves at most one direction unseen: the basis of more is free.
  """
  q, p = orthogonal(shape[-2], seed), orthogonal(shape[-1], seed + 1)
  with jax.enable_x64(True):
    g = gradients(shape, 7, seed)
    plain, turned = run(EVERY_OTHER[kl], g), run(EVERY_OTHER[kl], q @ g @ p)
  np.testing.assert_allclose(turned[1:], (q @ plain @ p)[1:], rtol=0, atol=1e-6)


INNER = {
  'adam': optax.scale_by_adam(*ADAM),
  'rms': optax.chain(optax.trace(0.9), optax.scale_by_rms(0.9)),
  'lion': optax.scale_by_lion(),
  'ademamix': optax.contrib.scale_by_ademamix(),
}


@pytest.mark.parametrize('name', INNER)
def test_linear_fields_turn_with_the_basis(name):
  """In the original space, a change of basis leaves every first moment where it was."""

  def moments(inner_state, bases):
    return [
      bases.rows @ x @ bases.columns.T
      for path, x in jax.tree_util.tree_flatten_with_path(inner_state)[0]
      if path[-1].name in ('mu', 'trace', 'm1', 'm2')
    ]

  with jax.enable_x64(True):
    inner = INNER[name]
    tx = in_eigenbasis(inner, every=1)
    state, update = tx.init(jnp.zeros((4, 4))), jax.jit(tx.update)
    for g in gradients((4, 4), 6):
      before = state
      _, state = update(jnp.asarray(g), state)
      _, unturned = inner.update(before.bases.rows.T @ g @ before.bases.columns, before.inner)
      now, then = moments(state.inner, state.bases), moments(unturned, before.bases)
      assert len(now) == (2 if name == 'ademamix' else 1)
      for x, y in zip(now, then, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9)


def test_identity_inside_returns_the_gradient_and_sees_turned_parameters():
  g = gradients((3, 4, 5), 5, dtype=np.float32)
  np.testing.assert_allclose(run(in_eigenbasis(optax.identity(), every=2), g), g, atol=2e-6)
  params = gradients((3, 4, 5), 1, 5, np.float32)[0]
  decayed = run(in_eigenbasis(optax.add_decayed_weights(0.5), every=2), g, params)
  np.testing.assert_allclose(decayed, g + 0.5 * params[None], atol=4e-6)


def test_the_bases_change_every_so_many_steps():
  tx = in_eigenbasis(optax.scale_by_adam(), every=3)
  state, update = tx.init(jnp.zeros((4, 4))), jax.jit(tx.update)
  changed = []
  for i, g in enumerate(gradients((4, 4), 8, dtype=np.float32)):
    before = state.bases
    _, state = update(jnp.asarray(g), state)
    changed.append(i) if np.any(before.rows != state.bases.rows) else None
    eye = state.bases.columns.T @ state.bases.columns
    np.testing.assert_allclose(eye, np.eye(4), atol=1e-5)
  assert changed == [0, 3, 6]


@pytest.mark.slow
def test_a_stack_is_its_layers_and_holes_and_tuples_are_kept():
  g = {
    'stack': gradients((3, 4, 5), 6, dtype=np.float32),
    'cut': (gradients((4, 3), 6, 2, np.float32),),
    'hole': None,
    'masked': optax.MaskedNode(),
  }
  tx = EVERY_OTHER[0]
  together = run(tx, g)
  assert jax.tree.structure(together) == jax.tree.structure(g)
  for i in range(3):
    np.testing.assert_allclose(together['stack'][:, i], run(tx, g['stack'][:, i]), atol=1e-4)
  np.testing.assert_allclose(together['cut'][0], run(tx, g['cut'][0]), atol=1e-4)
  for empty in ({}, {'a': None}):
    updates, _ = tx.update(empty, tx.init(empty))
    assert updates == empty


@pytest.mark.parametrize('kl', [False, True])
def test_low_rank_gradients_are_safe_and_padding_stays_zero(kl):
  """Zero gradients, rank one, and rows and columns that are padding, as a LoRA rank has."""
  tx = EVERY_OTHER[kl]
  g = gradients((2, 6, 9), 7, dtype=np.float32)
  for low in (np.zeros_like(g), np.ones_like(g), g[..., :1] * g[..., :1, :]):
    assert np.all(np.isfinite(run(tx, low)))
  g[..., 3:5, :] = 0
  g[..., 7:] = 0
  u = run(tx, g)
  assert not np.any(u[..., 3:5, :]) and not np.any(u[..., 7:]) and np.all(u[:, :, :3, :7] != 0)


def test_unseen_directions_do_not_hang_on_rounding():
  """Rank 2 in 6 x 9 leaves 4 and 7 directions free; what turns them may not be a rounding error."""
  rng = np.random.default_rng(0)
  low = (rng.standard_normal((6, 2)) @ rng.standard_normal((2, 9))).astype(np.float32)
  g = np.stack([low, *gradients((6, 9), 2, 1, np.float32)])
  nudged = g * (1 + 1e-7 * rng.standard_normal(g.shape)).astype(np.float32)
  tx = in_eigenbasis(optax.scale_by_adam(*ADAM))
  assert np.any(nudged != g)
  np.testing.assert_allclose(run(tx, nudged)[2], run(tx, g)[2], atol=2e-3)


def test_bfloat16_gradients_keep_float32_state():
  g = jnp.ones((4, 5), jnp.bfloat16)
  tx = EVERY_OTHER[0]
  u, state = jax.jit(tx.update)(g, tx.init(g), g)
  assert {x.dtype.name for x in jax.tree.leaves((u, state))} == {'float32', 'int32'}


def test_bad_input():
  tx = in_eigenbasis(optax.scale_by_adam())
  with pytest.raises(InputError, match=r"'a/bias' of shape \(3,\).*for_matrices"):
    tx.init({'a': {'bias': jnp.zeros(3)}})
  with pytest.raises(InputError, match='every is 0'):
    in_eigenbasis(optax.scale_by_adam(), every=0)
