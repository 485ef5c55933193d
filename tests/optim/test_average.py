"""Averages of the weights: Optax's debiased average, plain means, and what a run does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.typing import InputError

PARAMS = {'w': jnp.asarray([[1.0, -2.0], [0.5, 0.25]]), 'b': jnp.ones(2), 'hole': None}


def run(rule, steps, params=PARAMS):
  """The parameters after each step, and what `averaged` says then."""

  @jax.jit
  def step(params, state, g):
    updates, state = rule.update(g, state, params)
    params = optax.apply_updates(params, updates)
    return params, state, optim.averaged(state, params)

  state, seen, averages = rule.init(params), [], []
  rng = np.random.default_rng(0)
  for _ in range(steps):
    g = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), x.dtype), params)
    params, state, average = step(params, state, g)
    seen.append(params)
    averages.append(average)
  return seen, averages


def mean(trees):
  return jax.tree.map(lambda *x: np.mean(np.float64(x), axis=0), *trees)


def assert_close(a, b, rtol=1e-6):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


def test_with_a_decay_it_is_the_debiased_average_of_optax():
  seen, averages = run(optim.average_weights(optax.sgd(0.5), 0.7), 6)
  ema = optax.ema(0.7, debias=True)
  state = ema.init(PARAMS)
  for params, average in zip(seen, averages, strict=True):
    want, state = ema.update(params, state)
    assert_close(average, want)
  assert_close(averages[0], seen[0], rtol=0)


def test_the_mean_from_a_start_on_once_in_so_many_updates():
  rule = optim.average_weights(optax.sgd(0.5), None, start=2, every=2)
  seen, averages = run(rule, 8)
  for k, average in enumerate(averages, 1):
    counted = [seen[i - 1] for i in (4, 6, 8) if i <= k]
    assert_close(average, mean(counted) if counted else seen[k - 1])


def test_updates_and_the_state_inside_are_those_of_the_rule():
  inner = optim.create('adamw', 1e-2)
  rule = optim.average_weights(inner)
  g = jax.tree.map(jnp.ones_like, PARAMS)
  updates, state = rule.update(g, rule.init(PARAMS), PARAMS)
  want, want_state = inner.update(g, inner.init(PARAMS), PARAMS)
  assert_close(updates, want, rtol=0)
  assert_close(state.inner, want_state, rtol=0)
  assert set(optim.hyperparameters(state)) == {'learning_rate'}


def test_of_bfloat16_weights_the_average_is_finer_and_read_in_their_type():
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  rule = optim.average_weights(optim.create('sgd', 0.1), None)
  state = rule.init(low)
  assert {x.dtype for x in jax.tree.leaves(state.average)} == {jnp.dtype(jnp.float32)}
  seen, averages = run(rule, 3, low)
  assert {x.dtype for x in jax.tree.leaves(averages)} == {jnp.dtype(jnp.bfloat16)}
  want = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), mean(seen))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), averages[-1], want)


@pytest.mark.parametrize(
  'bad, message',
  [
    (lambda: optim.average_weights(optax.sgd(1.0), 1.0), r'decay of average_weights is 1.0; give'),
    (lambda: optim.average_weights(optax.sgd(1.0), start=-1), 'start of average_weights is -1'),
    (lambda: optim.average_weights(optax.sgd(1.0), every=0), 'every of average_weights is 0'),
    (lambda: optim.averaged(optax.sgd(1.0).init(PARAMS), PARAMS), 'holds 0 averages'),
    (
      lambda: optim.average_weights(optax.sgd(1.0)).update(
        PARAMS, optim.average_weights(optax.sgd(1.0)).init(PARAMS)
      ),
      'needs the parameters',
    ),
  ],
)
def test_bad_input(bad, message):
  with pytest.raises(InputError, match=message):
    bad()
