"""Policy losses beside TRL's numbers and closed forms; batches cut anywhere give one gradient."""

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import losses
from jaxtune.losses.advantages import advantages, leave_one_out, overlong_penalty
from jaxtune.losses.grpo import grpo, grpo_loss, kl_estimate
from jaxtune.losses.log_probs import token_log_probs
from jaxtune.losses.rloo import rloo, rloo_loss
from jaxtune.typing import InputError
from scripts.golden_grpo import CASES

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / 'golden' / 'grpo.npz'))
RNG = np.random.default_rng(0)
B, T = 4, 6
# A language model of the last token alone compiles in no time.
MODEL = types.SimpleNamespace(
  features=lambda params, tokens, mask, **_: params['embed'][tokens],
  head=lambda params, features: features @ params['head'],
)
PARAMS = {
  'embed': RNG.normal(0, 1, (9, 4)).astype(np.float32),
  'head': RNG.normal(0, 1, (4, 9)).astype(np.float32),
}
BATCH = {
  'tokens': RNG.integers(0, 9, (B, T)).astype(np.int32),
  'mask': np.arange(T) < np.array([[6], [4], [5], [3]]),
  'supervised': np.arange(T) >= np.array([[2], [1], [4], [2]]),
  'advantages': np.array([1.0, -1.0, 0.5, -0.3], np.float32),
  'weight': np.array([1, 1, 1, 0], np.float32),
}
FACTORIES = {
  'token': lambda **more: grpo(MODEL, beta=0.1, **more),
  'sequence': lambda **more: grpo(MODEL, beta=0.1, aggregation='sequence', **more),
  'constant': lambda **more: grpo(MODEL, beta=0.1, aggregation='constant', max_tokens=5, **more),
  'rloo': lambda **_: rloo(MODEL),
}


def value_and_gradient(values, loss):
  def mean(log_probs):
    found = loss({**values, 'log_probs': log_probs})
    return found.total / found.weight

  return jax.value_and_grad(mean)(jnp.asarray(values['log_probs']))


@pytest.mark.parametrize('name', CASES)
def test_grpo_is_that_of_trl(name):
  options, _ = CASES[name]
  value, gradient = value_and_gradient(
    GOLDEN,
    lambda v: grpo_loss(
      v['log_probs'], v['old'], v['advantages'], v['mask'], reference=v['reference'], **options
    ),
  )
  np.testing.assert_allclose(value, GOLDEN[f'{name}_loss'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, GOLDEN[f'{name}_gradient'], rtol=1e-5, atol=1e-6)


def test_rloo_is_that_of_trl():
  def loss(v):
    sums = ((v[name] * v['mask']).sum(1) for name in ('log_probs', 'old'))
    return rloo_loss(*sums, v['advantages'])

  value, gradient = value_and_gradient(GOLDEN, loss)
  np.testing.assert_allclose(value, GOLDEN['rloo_loss'], rtol=1e-5)
  np.testing.assert_allclose(gradient, GOLDEN['rloo_gradient'], rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6))
def test_advantages_are_those_of_their_group(rewards):
  groups = np.array(rewards, np.float64).reshape(2, 3)
  centred = groups - groups.mean(1, keepdims=True)
  close = {'rtol': 1e-4, 'atol': 1e-4}
  scales = {
    'group': groups.std(1, ddof=1, keepdims=True) + 1e-4,
    'batch': groups.std(ddof=1) + 1e-4,
    'none': 1.0,
  }
  for scale, divisor in scales.items():
    found = advantages(rewards, 3, scale)
    # Rounding of the mean is as large as 1e-5 against a spread of zero.
    if np.min(divisor) > 1e-2:
      np.testing.assert_allclose(found, (centred / divisor).reshape(-1), **close)
  np.testing.assert_allclose(leave_one_out(rewards, 3), 1.5 * centred.reshape(-1), **close)


def test_answers_that_are_all_alike_teach_nothing():
  assert not advantages([2.0, 2.0, 0.0, 0.0], 2).any()
  assert not leave_one_out([2.0, 2.0, 0.0, 0.0], 2).any()


def test_long_answers_lose_up_to_one():
  found = overlong_penalty(np.array([0, 6, 7, 8, 10]), max_tokens=10, soft=4)
  np.testing.assert_allclose(found, [0, 0, -0.25, -0.5, -1])


@pytest.mark.parametrize('name', FACTORIES)
def test_cuts_and_rows_without_weight_change_nothing(name):
  objective = FACTORIES[name]()
  old = np.asarray(token_log_probs(MODEL, PARAMS, BATCH)) + 0.1
  batch = {**BATCH, 'old': old, 'reference': old - 0.2}

  @jax.jit
  def gradient(batch):
    def total(params):
      loss = objective(params, batch, None)
      return loss.total, loss

    return jax.grad(total, has_aux=True)(PARAMS)

  def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), a, b)

  whole = gradient(batch)
  halves = [
    gradient({key: x[rows] for key, x in batch.items()}) for rows in (slice(2), slice(2, 4))
  ]
  close(jax.tree.map(lambda a, b: a + b, *halves), whole)
  other = {key: np.concatenate([x[:3], x[:1]]) for key, x in batch.items() if key != 'weight'}
  close(gradient({**other, 'weight': batch['weight']}), whole)


def test_without_old_probabilities_the_gradient_is_that_of_reinforce():
  def reinforce(params):
    nats = token_log_probs(MODEL, params, BATCH)
    return -jnp.sum(BATCH['weight'] * BATCH['advantages'] * nats.sum(1))

  want = jax.jit(jax.grad(reinforce))(PARAMS)
  for objective in (grpo(MODEL), rloo(MODEL)):
    found = jax.jit(jax.grad(lambda p, loss=objective: loss(p, BATCH, None).total))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, want)


def test_a_reference_in_the_parameters_is_one_in_the_batch():
  base = jax.tree.map(lambda x: 0.9 * x, PARAMS)
  given = {**BATCH, 'reference': token_log_probs(MODEL, base, BATCH)}
  want = grpo(MODEL, beta=0.3)(PARAMS, given, None)
  both = {'policy': PARAMS, 'base': base}
  objective = grpo(MODEL, beta=0.3, reference=lambda p: (p['policy'], p['base']), chunk=7)
  found = jax.jit(objective)(both, BATCH, None)
  np.testing.assert_allclose(found.total, want.total, rtol=1e-5)
  assert found.metrics['kl'] > 0
  gradient = jax.jit(jax.grad(lambda p: objective(p, BATCH, None).total))(both)['base']
  assert not any(x.any() for x in jax.tree.leaves(gradient))


def test_the_estimate_of_the_divergence_is_right_in_the_mean():
  p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.1, 0.4])
  mean = np.sum(p * kl_estimate(jnp.log(p), jnp.log(q)))
  np.testing.assert_allclose(mean, np.sum(p * np.log(p / q)), rtol=1e-5)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: advantages([1.0, 2.0], 1), 'group is 1; an answer is compared'),
    (lambda: leave_one_out([1.0], 1), 'group is 1'),
    (lambda: advantages([1.0, 2.0, 3.0], 2), 'group is 2, which does not divide the 3 rewards'),
    (lambda: advantages([1.0, 2.0], 2, 'rows'), "scale is 'rows'; it must be"),
    (lambda: overlong_penalty([1], 4, 5), r'soft is 5; it must be in \[1, 4\]'),
    (lambda: grpo(MODEL, epsilon=0), 'epsilon is 0; it must be above 0'),
    (lambda: grpo(MODEL, epsilon_high=-1), 'epsilon_high is -1'),
    (lambda: grpo(MODEL, beta=-0.1), 'beta is -0.1'),
    (lambda: grpo(MODEL, temperature=0), 'temperature is 0; it must be a positive'),
    (lambda: rloo(MODEL, temperature=0), 'temperature is 0; it must be a positive'),
    (lambda: grpo(MODEL, aggregation='rows'), "aggregation is 'rows'; it must be"),
    (lambda: grpo(MODEL, aggregation='constant'), "'constant' divides by max_tokens"),
    (lambda: grpo(MODEL, beta=0.1)(PARAMS, BATCH, None), 'nothing gives the log-probabilities'),
  ],
)
def test_bad_input_is_one_line(call, message):
  with pytest.raises(InputError, match=message) as error:
    call()
  assert '\n' not in str(error.value)


def test_the_objectives_go_by_name():
  for name in ('grpo', 'rloo'):
    assert 'epsilon' in losses.options_of(name)
