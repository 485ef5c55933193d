"""Shapes of the learning rate at their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import optim
from jaxtune.optim.schedules import NAMES
from jaxtune.typing import InputError


def at(name, when, **kwargs):
  shape = optim.schedule(name, **{'steps': 10, **kwargs})
  return [float(x) for x in jax.vmap(shape)(jnp.asarray(when))]


def test_values():
  close = np.testing.assert_allclose
  close(at('constant', range(4), warmup=2), [1 / 3, 2 / 3, 1, 1], rtol=1e-6)
  close(at('linear', (0, 5, 9, 10, 99)), [1, 0.5, 0.1, 0, 0], atol=1e-7)
  close(at('linear', (0, 1, 2, 6, 10), warmup=2), [1 / 3, 2 / 3, 1, 0.5, 0], atol=1e-7)
  close(at('cosine', (0, 5, 10, 99), end=0.2), [1, 0.6, 0.2, 0.2], rtol=1e-6)
  quarter = 0.5 * (1 + np.cos(np.pi / 4))
  close(at('cosine', (2, 4, 6), warmup=2), [1, quarter, 0.5], rtol=1e-6)
  fall = [1, 0.5 * (1 + np.cos(np.pi / 2))]
  close(at('cyclic', range(5), steps=4), [*fall, *fall, 0], atol=1e-7)
  close(at('cyclic', (2, 5, 6, 9), steps=10, warmup=2, cycles=2, end=0.2)[::2], [1, 1], rtol=1e-6)
  close(at('rsqrt', (0, 3, 4, 16, 99), warmup=4), [0.2, 0.8, 1, 0.5, (4 / 99) ** 0.5], rtol=1e-6)
  close(at('rsqrt', (4, 8, 24), warmup=4, timescale=4, end=0.5), [1, 0.5**0.5, 0.5], rtol=1e-6)
  close(at('rsqrt', (0, 3)), [1, 0.5], rtol=1e-6)
  wsd = at('wsd', range(11), warmup=0.2, decay=4, end=0.2)
  close(wsd, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
  st.sampled_from(NAMES),
  st.integers(1, 200),
  st.floats(0, 0.7),
  st.floats(0, 0.3),
  st.sampled_from([0.0, 0.1, 1.0]),
)
def test_every_step_learns_one_reaches_the_peak_and_the_end_is_the_end(
  name, steps, warmup, decay, end
):
  warm = min(round(warmup * steps), steps - 1)
  if name == 'wsd' and warm + round(decay * steps) > steps:
    return
  cycles = min(3, steps - warm)
  shape = optim.schedule(name, steps=steps, warmup=warmup, decay=decay, end=end, cycles=cycles)
  values = np.asarray(jax.jit(jax.vmap(shape))(jnp.arange(steps + 3)))
  assert values.dtype == np.float32
  assert values.min() >= 0 and values.max() <= 1
  assert (values[:steps] > 0).all()
  assert values[warm] == 1
  assert (values[:warm] < 1).all() and (np.diff(values[: warm + 1]) > 0).all()
  rises = (np.diff(values[warm:]) > 1e-7).sum()
  assert rises == (cycles - 1 if name == 'cyclic' and end < 1 and cycles < steps - warm else 0)
  if name == 'rsqrt':
    assert (values >= min(end, values[0])).all()
  if name in ('linear', 'cosine', 'cyclic'):
    np.testing.assert_allclose(values[steps:], end, atol=1e-7)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 20))
def test_cycles_start_at_exactly_one(steps, cycles):
  """Wherever a cycle starts on a step, even if its length is no whole number."""
  cycles = min(cycles, steps)
  values = at('cyclic', range(300), steps=steps, cycles=cycles)[:steps]
  starts = [s for s in range(steps) if s * cycles % steps == 0]
  assert [values[s] for s in starts] == [1.0] * len(starts)
  x = np.arange(steps) * cycles % steps / steps
  np.testing.assert_allclose(values, 0.5 * (1 + np.cos(np.pi * x)), atol=1e-6)


def test_a_count_and_a_fraction_agree():
  when = range(200)
  assert at('cosine', when, steps=200, warmup=12) == at('cosine', when, steps=200, warmup=0.06)


def test_it_multiplies_the_rate_and_is_that_of_optax_from_the_peak_on():
  shape = optim.schedule('cosine', steps=20, warmup=5)
  tx = optim.create('sgd', 0.5, schedule=shape)
  params = {'w': jnp.ones(())}
  state, rates = tx.init(params), []
  for _ in range(20):
    updates, state = tx.update({'w': jnp.ones(())}, state, params)
    assert optim.hyperparameters(state)['learning_rate'] == -updates['w']
    rates.append(-float(updates['w']))
  theirs = optax.cosine_decay_schedule(0.5, 15)
  np.testing.assert_allclose(rates[5:], [float(theirs(i)) for i in range(15)], rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'kwargs', 'says'),
  [
    ('cosin', {}, "did you mean 'cosine'"),
    ('linear', {'steps': 0}, 'steps is 0'),
    ('linear', {'steps': 1e3}, 'steps is 1000.0'),
    ('linear', {'warmup': 1.0}, 'warmup is 1.0'),
    ('linear', {'warmup': -1}, 'warmup is -1'),
    ('linear', {'warmup': float('nan')}, 'warmup is nan'),
    ('linear', {'warmup': True}, 'warmup is True'),
    ('linear', {'warmup': 10}, 'do not fit in 10 steps'),
    ('wsd', {'warmup': 5, 'decay': 6}, 'do not fit in 10 steps'),
    ('linear', {'end': 1.5}, 'end is 1.5'),
    ('rsqrt', {'timescale': 0}, 'timescale is 0'),
    ('rsqrt', {'timescale': 1e4}, 'timescale is 10000.0'),
    ('cyclic', {'cycles': 0}, 'cycles is 0'),
    ('cyclic', {'cycles': 2.0}, 'cycles is 2.0'),
    ('cyclic', {'cycles': 9, 'warmup': 2}, 'from 1 to 8'),
    ('cyclic', {'cycles': 3000, 'steps': 10**6}, 'cycles is 3000; .* to 2147'),
  ],
)
def test_bad_input(name, kwargs, says):
  with pytest.raises(InputError, match=says) as e:
    optim.schedule(name, **{'steps': 10, **kwargs})
  assert '\n' not in str(e.value)
