"""Independent and cautious weight decay against float64 NumPy, 20 steps, and their invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtune import optim
from jaxtune.optim.decay import add_cautious_decay, add_independent_decay

STEPS = 20


def draw(seed):
  rng = np.random.default_rng(seed)
  return {'w': rng.standard_normal((3, 4)), 'bias': rng.standard_normal(4)}


def run(tx):
  with jax.enable_x64(True):
    params, step = draw(0), jax.jit(tx.update)
    state = tx.init(params)
    for t in range(1, STEPS + 1):
      updates, state = step(draw(t), state, params)
      params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


def assert_close(ours, exact):
  for k in exact:
    np.testing.assert_allclose(ours[k], exact[k], rtol=1e-10)


def test_independent_decay():
  """Algorithm 2 of arXiv 1711.05101 with plain gradients: eta_t (alpha g + lambda theta)."""
  alpha, decay = 0.3, 0.05
  shape = lambda t: 1 - 0.025 * t  # noqa: E731
  tx = optax.chain(
    optax.scale_by_learning_rate(lambda t: alpha * shape(t)), add_independent_decay(decay, shape)
  )
  exact = draw(0)
  for t in range(STEPS):
    for k, g in draw(t + 1).items():
      own = 0 if k == 'bias' else decay
      exact[k] = exact[k] - shape(t) * (alpha * g + own * exact[k])
  assert_close(run(tx), exact)


def test_independent_decay_without_a_schedule_and_at_a_rate_of_zero():
  tx = optax.chain(optax.scale_by_learning_rate(0.0), add_independent_decay(0.1, mask=None))
  assert_close(run(tx), {k: 0.9**STEPS * w for k, w in draw(0).items()})


def test_cautious_decay():
  """Algorithm 1 of arXiv 2510.12402 over the heavy ball."""
  rate, decay = 0.1, 0.4
  tx = optax.chain(optax.trace(0.9), add_cautious_decay(decay), optax.scale_by_learning_rate(rate))
  exact, u = draw(0), {k: 0.0 for k in draw(0)}
  for t in range(1, STEPS + 1):
    for k, g in draw(t).items():
      u[k] = 0.9 * u[k] + g
      own = 0 if k == 'bias' else decay * (u[k] * exact[k] >= 0)
      exact[k] = exact[k] - rate * (u[k] + own * exact[k])
  assert_close(run(tx), exact)


finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
numbers = hnp.arrays(np.float32, 8, elements=finite)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numbers, numbers, st.floats(0, 1, width=32))
def test_cautious_decay_never_grows_a_weight_and_never_shortens_a_step(w, u, decay):
  """Bit by bit: zeros, signs and numbers whose product leaves float32 included."""
  tx = add_cautious_decay(decay, mask=None)
  out, _ = tx.update({'w': jnp.asarray(u)}, tx.init({'w': w}), {'w': jnp.asarray(w)})
  added = np.asarray(out['w'], np.float64) - u
  assert (np.sign(added) * np.sign(w) >= 0).all()  # subtracted, it pulls towards zero
  rounding = 1e-6 * (np.abs(u) + np.abs(w))
  assert (np.abs(added) <= decay * np.abs(w) + rounding).all()  # and not beyond it
  assert (np.sign(added) * np.sign(u) >= 0).all()  # the way of the update
  against = np.sign(u) * np.sign(w) < 0
  np.testing.assert_array_equal(np.asarray(out['w'])[against], u[against])


def test_a_weight_at_rest_decays_to_zero():
  tx = optax.chain(
    optax.scale_by_adam(), add_cautious_decay(0.5), optax.scale_by_learning_rate(1.0)
  )
  params = {'w': jnp.asarray([1.0, -2.0])}
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  np.testing.assert_array_equal(optax.apply_updates(params, updates)['w'], [0.5, -1.0])


def test_bfloat16_holes_and_masks():
  params = {'w': jnp.ones(3, jnp.bfloat16), 'bias': jnp.ones(3, jnp.bfloat16), 'hole': None}
  for tx in (add_cautious_decay(2**-10), add_independent_decay(-(2**-10))):
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates['w'].dtype == jnp.float32
    np.testing.assert_array_equal(updates['w'], 1 + 2**-10)  # 1 in bfloat16
    np.testing.assert_array_equal(updates['bias'], 1)
  everything = optim.decay_mask([('', True)])
  tx = add_cautious_decay(0.5, everything)
  np.testing.assert_array_equal(tx.update(params, tx.init(params), params)[0]['bias'], 1.5)
