"""Stochastic rounding: right on average, one of two neighbours, and landed on exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune import optim
from jaxtune.optim.stochastic_rounding import stochastic_round, stochastic_round_params
from jaxtune.typing import InputError

DRAWS = 4096
MOST = float(jnp.finfo(jnp.bfloat16).max)


@functools.cache
def rounded():
  return jax.jit(lambda x, seed: stochastic_round(jnp.full(DRAWS, x), jax.random.key(seed)))


def neighbours(x):
  """The bfloat16 numbers around a float32 one, by cutting its pattern; in float64."""
  pattern = np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)
  pair = np.array([pattern, pattern + np.uint32(0x10000)]).view(np.float32)
  return np.sort(pair.astype(np.float64))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
  st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: abs(x) > 1e-30), st.integers(0, 99)
)
def test_it_is_a_neighbour_and_unbiased(x, seed):
  low, high = neighbours(x)
  found = np.asarray(rounded()(x, seed), np.float64)
  if np.float32(x) in (low, high):
    assert set(found) == {np.float64(np.float32(x))}
    return
  assert set(found) <= {low, high}
  # Five standard deviations of a mean of Bernoulli draws.
  up = (x - low) / (high - low)
  slack = 5 * np.sqrt(up * (1 - up) / DRAWS) + 1 / DRAWS
  assert abs(np.mean(found == high) - up) < slack


@pytest.mark.parametrize('x', [0.0, 1.0, -1.5, MOST, -MOST, np.inf, -np.inf, np.nan])
def test_what_bfloat16_holds_stays(x):
  found = np.asarray(rounded()(np.float32(x), 0), np.float32)
  np.testing.assert_array_equal(found, np.full(DRAWS, x, np.float32))


def test_the_largest_numbers_stay_finite_and_a_full_nan_stays_one():
  assert np.all(np.asarray(rounded()(np.float32(3.4e38), 0), np.float32) == MOST)
  nan = np.uint32(0x7FFFFFFF).view(np.float32)  # with a carry it would become -0
  assert np.all(np.isnan(np.asarray(rounded()(nan, 1), np.float32)))


def moved(params, step):
  """What `apply_updates` makes of the updates for `optax.sgd(1)` on gradients `-step`."""
  tx = stochastic_round_params(optax.sgd(1.0))
  gradient = jax.tree.map(jnp.negative, step)
  updates, _ = tx.update(gradient, tx.init(params), params)
  return optax.apply_updates(params, updates)


sizes = st.floats(-18, 18)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes, sizes, st.integers(0, 2**31))
def test_updates_land_on_the_rounded_sum(a, b, seed):
  """Steps far smaller, alike (the sum cancels) and far larger than the parameters."""
  rng = np.random.default_rng(seed)
  p = jnp.asarray(2.0**a * rng.standard_normal(64), jnp.bfloat16)
  u = np.float32(2.0**b * rng.standard_normal(64))
  u[:8] = -np.asarray(p, np.float32)[:8] * np.float32(1 + 2.0**-18)
  new = moved({'w': p}, {'w': jnp.asarray(u)})['w']
  assert new.dtype == jnp.bfloat16
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
  target = stochastic_round(p.astype(jnp.float32) + u, key)
  np.testing.assert_array_equal(new, target)


def test_small_steps_add_up_on_average():
  """Rounded to nearest, 64 steps of 2^-12 from 1 go nowhere; here they go 2^-6 on average."""
  params, gradient = {'w': jnp.ones(4096, jnp.bfloat16)}, {'w': jnp.full(4096, -(2.0**-12))}

  def last(tx):
    def step(_, carry):
      params, state = carry
      updates, state = tx.update(gradient, state, params)
      return optax.apply_updates(params, updates), state

    return jax.jit(lambda: jax.lax.fori_loop(0, 64, step, (params, tx.init(params))))()[0]['w']

  assert np.all(last(optim.create('sgd', 1.0)) == 1)
  mean = np.mean(last(stochastic_round_params(optim.create('sgd', 1.0))).astype(jnp.float32))
  # A draw deviates by at most sqrt(64 * 2^-12 * 2^-7); five of them over sqrt(4096).
  assert abs(mean - 1 - 2.0**-6) < 5 * np.sqrt(64 * 2.0**-19) / 64


def test_other_dtypes_get_the_updates_of_the_rule():
  params = {'a': jnp.ones(3), 'b': jnp.ones(3, jnp.float16), 'c': jnp.ones(3, jnp.bfloat16)}
  gradient = jax.tree.map(lambda p: (p * 0.3).astype(p.dtype), params)
  inner, tx = optim.create('adamw', 1e-3), stochastic_round_params(optim.create('adamw', 1e-3))
  wanted, _ = inner.update(gradient, inner.init(params), params)
  updates, _ = tx.update(gradient, tx.init(params), params)
  for name in 'ab':
    np.testing.assert_array_equal(updates[name], wanted[name])
  assert np.any(updates['c'] != wanted['c'])


def test_the_rule_inside_computes_in_float32():
  params = {'w': jnp.ones(4, jnp.bfloat16)}
  state = stochastic_round_params(optax.adam(1e-3)).init(params)
  assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype('int32'), jnp.dtype('float32')}


def test_lanes_scans_and_shards_draw_alike_and_steps_and_leaves_do_not():
  tx = stochastic_round_params(optax.sgd(2.0**-10))
  rng = np.random.default_rng(0)
  params = {'a': jnp.asarray(rng.standard_normal((16, 8)), jnp.bfloat16)}
  params |= {'b': params['a'], 'hole': None}
  gradient = jax.tree.map(jnp.ones_like, params)

  def step(params, state):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  first = jax.jit(step)(params, tx.init(params))
  looped = jax.jit(step)(*first)
  scanned, _ = jax.lax.scan(lambda c, _: (step(*c), None), (params, tx.init(params)), length=2)
  lanes = jax.vmap(step)(*jax.tree.map(lambda x: jnp.stack([x, x]), (params, tx.init(params))))
  mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(AxisType.Auto,))
  spread = jax.device_put(params, NamedSharding(mesh, P('fsdp')))
  sharded = jax.jit(step)(spread, tx.init(params))
  assert not sharded[0]['a'].sharding.is_fully_replicated
  for found, wanted in (
    (scanned, looped),
    (jax.tree.map(lambda x: x[1], lanes), first),
    (sharded, first),
  ):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert np.any(first[0]['a'] != first[0]['b'])  # equal leaves, other draws
  again = jax.jit(step)(params, first[1])[0]
  assert np.any(again['a'] != first[0]['a'])


def test_gradients_that_are_not_finite_show():
  params = {'w': jnp.ones(4, jnp.bfloat16)}
  step = {'w': jnp.asarray([np.nan, np.inf, -np.inf, 0.0])}
  new = moved(params, step)['w'].astype(jnp.float32)
  np.testing.assert_array_equal(new, [np.nan, np.inf, -np.inf, 1])


def test_parameters_are_needed():
  tx = stochastic_round_params(optax.sgd(1.0))
  params = {'w': jnp.ones(4, jnp.bfloat16)}
  with pytest.raises(InputError, match='needs the parameters'):
    tx.update(params, tx.init(params))
  assert tx.update({}, tx.init({}), {})[0] == {}
