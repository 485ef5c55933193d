"""A batch cut into calls of unlike weight is the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import optim
from jaxtune.optim.accumulate import accumulate_by_weight
from jaxtune.typing import InputError


def numbers(seed, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return {
    'w': jnp.asarray(rng.standard_normal((3, 4)), dtype),
    'b': jnp.asarray(rng.standard_normal(4), dtype),
    'hole': None,
  }


def rule(every):
  return accumulate_by_weight(optim.create('adamw', 1e-2, weight_decay=0.1), every)


def run(tx, params, gradients, weights):
  @jax.jit
  def step(params, state, g, w):
    updates, state = tx.update(g, state, params, weight=w)
    return optax.apply_updates(params, updates), state, updates

  state, seen = tx.init(params), []
  for g, w in zip(gradients, weights, strict=True):
    params, state, updates = step(params, state, g, w)
    seen.append(any(np.any(u != 0) for u in jax.tree.leaves(updates)))
  return params, state, seen


@settings(deadline=None, derandomize=True, max_examples=6)
@given(st.lists(st.integers(1, 2000), min_size=6, max_size=6))
def test_the_step_is_that_of_all_tokens_together(weights):
  gradients = [numbers(i + 1) for i in range(6)]
  ours, state, seen = run(rule(3), numbers(0), gradients, weights)
  assert seen == [False, False, True] * 2
  inner = optim.create('adamw', 1e-2, weight_decay=0.1)
  params, held = numbers(0), inner.init(numbers(0))
  for i in (0, 3):
    w = np.asarray(weights[i : i + 3], np.float64)
    mean = jax.tree.map(
      lambda *g, w=w: jnp.asarray(np.tensordot(w, np.stack(g), 1) / w.sum(), jnp.float32),
      *gradients[i : i + 3],
    )
    updates, held = inner.update(mean, held, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, params)
  assert int(state.inner.step) == 2 and int(state.calls) == 0 and float(state.weight) == 0


def test_means_of_means_are_not_it():
  """What `optax.MultiSteps` does, on purpose, to a batch of 1 and one of 9 tokens."""
  g = [{'w': jnp.asarray([1.0])}, {'w': jnp.asarray([0.0])}]
  params = {'w': jnp.asarray([0.0])}
  ours, _, _ = run(accumulate_by_weight(optax.sgd(1.0), 2), params, g, [1.0, 9.0])
  np.testing.assert_allclose(ours['w'], -0.1, rtol=1e-6)
  theirs = optax.MultiSteps(optax.sgd(1.0), 2)
  state = theirs.init(params)
  _, state = theirs.update(g[0], state, params)
  updates, _ = theirs.update(g[1], state, params)
  np.testing.assert_allclose(updates['w'], -0.5, rtol=1e-6)


def test_a_batch_without_weight_adds_nothing_whatever_its_gradient_is():
  nan = jax.tree.map(lambda x: x * jnp.nan, numbers(9))
  some = run(rule(2), numbers(0), [nan, numbers(1)], [0.0, 5.0])[0]
  one = run(rule(1), numbers(0), [numbers(1)], [5.0])[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), some, one)
  none = run(accumulate_by_weight(optax.sgd(1.0), 2), numbers(0), [nan, nan], [0.0, 0.0])[0]
  jax.tree.map(np.testing.assert_array_equal, none, numbers(0))


def test_a_broken_gradient_with_weight_shows():
  nan = jax.tree.map(lambda x: x * jnp.nan, numbers(9))
  params = run(rule(2), numbers(0), [nan, numbers(1)], [1.0, 5.0])[0]
  assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(params))


def test_the_inner_rule_gets_the_total_weight():
  def update(updates, state, params=None, *, weight):
    return updates, weight

  inner = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
  state = run(accumulate_by_weight(inner, 2), numbers(0), [numbers(1)] * 2, [3.0, 4.0])[1]
  assert float(state.inner) == 7


def test_bfloat16_gradients_are_summed_in_float32():
  params = numbers(0, jnp.bfloat16)
  tx = rule(2)
  state = tx.init(params)
  assert {x.dtype for x in jax.tree.leaves(state.total)} == {jnp.dtype('float32')}
  tiny = jax.tree.map(lambda p: jnp.full_like(p, 2.0**-9), params)
  ones = jax.tree.map(jnp.ones_like, params)
  state = jax.jit(tx.update)(ones, state, params, weight=1.0)[1]
  state = jax.jit(tx.update)(tiny, tx.init(params)._replace(total=state.total), params, weight=1.0)[
    1
  ]
  np.testing.assert_array_equal(state.total['w'], 1 + 2.0**-9)


def test_lanes_and_scan():
  tx, weights = rule(2), jnp.asarray([[1.0, 3, 2, 5], [4, 1, 1, 2]])
  gradients = [numbers(i) for i in range(4)]
  xs = jax.tree.map(lambda *g: jnp.stack(g), *gradients)

  def lane(w):
    def step(carry, x):
      updates, state = tx.update(x[0], carry[1], carry[0], weight=x[1])
      return (optax.apply_updates(carry[0], updates), state), None

    return jax.lax.scan(step, (numbers(0), tx.init(numbers(0))), (xs, w))[0][0]

  lanes = jax.jit(jax.vmap(lane))(weights)
  for i in range(2):
    alone = run(tx, numbers(0), gradients, weights[i])[0]
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), lanes, alone)


def test_a_state_in_the_middle_comes_back_from_a_checkpoint_bit_for_bit(tmp_path):
  state = run(rule(3), numbers(0), [numbers(1)], [2.0])[1]
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', {'opt': state})
    checkpointer.wait_until_finished()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {'opt': rule(3).init(numbers(0))})
    back = checkpointer.restore(tmp_path / 'state', target)['opt']
  jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize('every', [0, -1, 1.5, True])
def test_every_that_is_no_count(every):
  with pytest.raises(InputError, match='every of accumulate_by_weight is'):
    rule(every)


def test_a_missing_weight():
  tx = rule(2)
  with pytest.raises(InputError, match='needs the weight of each batch'):
    tx.update(numbers(1), tx.init(numbers(0)), numbers(0))
  assert tx.update({}, tx.init({}), {}, weight=1.0)[0] == {}
