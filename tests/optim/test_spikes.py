"""Skipped steps leave nothing behind: not in the parameters, not in the state, not in the norm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import optim
from jaxtune.optim.spikes import skip_spikes
from jaxtune.typing import InputError

PARAMS = {'w': jnp.asarray([[1.0, -2.0], [0.5, 0.25]]), 'b': jnp.ones(2), 'hole': None}


def gradient(size):
  """A gradient of the norm `size`."""
  return {'w': jnp.full((2, 2), size / 2), 'b': jnp.zeros(2), 'hole': None}


@functools.cache
def rule():
  return skip_spikes(optax.adamw(1e-2, weight_decay=0.1), factor=3.0, decay=0.9, warmup=2)


@functools.cache
def stepper():
  def step(params, state, g):
    updates, state = rule().update(g, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(step)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def oracle(norms, factor=3.0, decay=0.9, warmup=2):
  """Which steps are taken, and the running norm, as the docstring says."""
  mean, taken, which = 0.0, 0, []
  for n in norms:
    good = abs(n) < 1e19 and (  # beyond, the sum of squares is infinite
      taken < warmup or mean == 0 or n <= factor * mean
    )
    which.append(good)
    if good:
      taken += 1
      mean += max(1 - decay, 1 / taken) * (n - mean)
  return which, mean


bad = st.sampled_from([np.nan, np.inf, -np.inf, 1e30])
norms = st.lists(st.floats(0.125, 20, width=32) | bad, min_size=1, max_size=12)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(norms)
def test_skipped_steps_are_as_if_they_had_not_been(values):
  """The run over all gradients is, bit for bit, that over the good ones alone."""
  which, mean = oracle(values)
  with np.errstate(all='ignore'):
    near = [abs(n / (3 * oracle(values[:i])[1] or 1) - 1) < 1e-5 for i, n in enumerate(values)]
  if any(near):
    return  # a tie within rounding
  carry, clean = (PARAMS, rule().init(PARAMS)), (PARAMS, rule().init(PARAMS))
  for n, good in zip(values, which, strict=True):
    carry = stepper()(*carry, gradient(n))
    clean = stepper()(*clean, gradient(n)) if good else clean
  assert_equal(
    carry, (clean[0], clean[1]._replace(skipped=carry[1].skipped, in_a_row=carry[1].in_a_row))
  )
  assert int(carry[1].skipped) == which.count(False)
  assert int(carry[1].in_a_row) == [*which[::-1], True].index(True)
  assert int(carry[1].taken) == which.count(True)
  np.testing.assert_allclose(carry[1].norm, mean, rtol=1e-5)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(carry))


def test_one_bad_number_in_one_leaf_is_enough():
  g = {**gradient(1.0), 'b': jnp.asarray([0.0, jnp.nan])}
  params, state = stepper()(PARAMS, rule().init(PARAMS), g)
  assert_equal(params, PARAMS)
  assert (int(state.skipped), int(state.taken)) == (1, 0)


def test_zero_gradients_do_not_lock_the_rule():
  carry = PARAMS, rule().init(PARAMS)
  for n in (0.0, 0.0, 0.0, 5.0):
    carry = stepper()(*carry, gradient(n))
  assert (int(carry[1].skipped), int(carry[1].taken)) == (0, 4)


def test_lanes_are_judged_apart_and_scan_is_a_loop():
  values = np.array([[1.0, 2, 50, 1], [1, np.nan, 2, 3]], np.float32)
  init = jax.tree.map(lambda x: jnp.stack([x, x]), (PARAMS, rule().init(PARAMS)))
  gs = jax.vmap(jax.vmap(gradient))(values)

  def lane(carry, g):
    return jax.lax.scan(lambda c, x: (stepper()(*c, x), None), carry, g)[0]

  lanes = jax.jit(jax.vmap(lane))(init, gs)
  np.testing.assert_array_equal(lanes[1].skipped, [1, 1])
  for i in range(2):
    carry = PARAMS, rule().init(PARAMS)
    for n in values[i]:
      carry = stepper()(*carry, gradient(n))
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), lanes, carry)


@pytest.mark.parametrize('name', ['muon', 'noisy_sgd', 'schedule_free_adamw'])
def test_any_rule_inside_even_one_that_holds_a_key(name):
  extra = {'key': jax.random.key(1)} if name == 'noisy_sgd' else {}
  tx = skip_spikes(optim.create(name, 1e-2, **extra))
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  state = tx.init(params)
  updates, new = jax.jit(tx.update)(gradient(np.nan), state, params)
  assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
  same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), new.inner, state.inner)
  assert all(jax.tree.leaves(same))
  updates, new = jax.jit(tx.update)(gradient(1.0), new, params)
  assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))
  assert any(np.any(u != 0) for u in jax.tree.leaves(updates))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )


def test_a_state_comes_back_from_a_checkpoint_bit_for_bit(tmp_path):
  _, state = stepper()(PARAMS, rule().init(PARAMS), gradient(0.3))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', {'opt': state})
    checkpointer.wait_until_finished()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {'opt': rule().init(PARAMS)})
    assert_equal(checkpointer.restore(tmp_path / 'state', target)['opt'], state)


@pytest.mark.parametrize('warmup', [0, -1, 1.5, True])
def test_a_warmup_that_is_no_count(warmup):
  with pytest.raises(InputError, match='warmup of skip_spikes is'):
    skip_spikes(optax.sgd(1.0), warmup=warmup)


def test_empty_trees():
  tx = skip_spikes(optax.adam(1e-3))
  assert tx.update({}, tx.init({}), {})[0] == {}
