"""Norms by label are those of NumPy, and are found wherever they lie in a state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxtune import optim
from jaxtune.optim.accumulate import accumulate_by_weight
from jaxtune.optim.describe import state_sharding
from jaxtune.optim.observe import observations, observe
from jaxtune.optim.quantize import quantize_state
from jaxtune.optim.spikes import skip_spikes
from jaxtune.typing import InputError

LABELS = [('attn', 'attention'), ('mlp', 'mlp/all'), ('', 'rest')]


def numbers(seed, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  shapes = {'attn': {'q': (4, 3), 'k': (4, 3), 'hole': None}, 'mlp': {'up': (3, 8)}, 'bias': (3,)}
  return jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s), dtype),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def norm(*leaves):
  return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in leaves))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_norms_by_label_are_those_of_numpy_and_updates_those_of_the_rule(dtype):
  params, g = numbers(0, dtype), numbers(1, dtype)
  inner = optim.create('adamw', 1e-2)
  tx = observe(inner, LABELS)
  assert all(v == 0 for v in observations(tx.init(params)).values())
  updates, state = jax.jit(tx.update)(g, tx.init(params), params)
  wanted, _ = jax.jit(inner.update)(g, inner.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, updates, wanted)
  found = observations(state)
  assert all(v.shape == () and v.dtype == jnp.float32 for v in found.values())
  groups = {
    'attention': lambda t: (t['attn']['q'], t['attn']['k']),
    'mlp/all': lambda t: (t['mlp']['up'],),
    'rest': lambda t: (t['bias'],),
  }
  expected = {}
  for label, take in groups.items():
    sizes = norm(*take(g)), norm(*take(updates)), norm(*take(params))
    expected |= {
      f'grad_norm/{label}': sizes[0],
      f'update_norm/{label}': sizes[1],
      f'param_norm/{label}': sizes[2],
      f'update_ratio/{label}': sizes[1] / sizes[2],
    }
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_parameters_of_zero_have_a_ratio_of_zero():
  params = {'w': jnp.zeros(3)}
  tx = observe(optax.sgd(1.0))
  _, state = tx.update({'w': jnp.ones(3)}, tx.init(params), params)
  assert float(observations(state)['update_ratio/all']) == 0


def test_found_anywhere_and_in_one_another():
  params = numbers(0)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0), skip_spikes(quantize_state(observe(optax.adam(1e-3))))
  )
  bad = jax.tree.map(lambda x: x * jnp.nan, params)
  _, state = tx.update(bad, tx.init(params), params)
  found = observations({'lost': [state]})
  assert list(found)[:3] == ['spikes/skipped', 'spikes/in_a_row', 'spikes/norm']
  assert len(found) == 7
  assert int(found['spikes/skipped']) == 1
  assert observations(optax.adam(1e-3).init(params)) == {}


def test_two_of_a_name_are_told_apart():
  params = {'a': jnp.ones(2), 'b': jnp.ones(2)}
  tx = optim.by_rules([('a', skip_spikes(optax.sgd(1.0))), ('b', skip_spikes(optax.sgd(1.0)))])
  _, state = tx.update({'a': jnp.ones(2), 'b': jnp.full(2, jnp.nan)}, tx.init(params), params)
  found = observations(state)
  assert {k: int(v) for k, v in found.items() if 'skipped' in k} == {
    'spikes/skipped': 0,
    'spikes/skipped.2': 1,
  }


def test_lanes_and_checkpoints(tmp_path):
  params = numbers(0)
  tx = observe(optax.adam(1e-3), LABELS)
  lanes = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
  _, state = jax.jit(jax.vmap(lambda p: tx.update(p, tx.init(p), p)))(lanes)
  rest = observations(state)['param_norm/rest']
  np.testing.assert_allclose(rest, norm(params['bias']) * np.array([1, 2]), rtol=1e-6)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', {'opt': state})
    checkpointer.wait_until_finished()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {'opt': state})
    back = checkpointer.restore(tmp_path / 'state', target)['opt']
  jax.tree.map(np.testing.assert_array_equal, back, state)


def test_wrappers_on_many_devices_are_wrappers_on_one():
  """All that this package wraps around a rule, at once."""
  tx = skip_spikes(observe(accumulate_by_weight(optax.adam(1e-2), 2)), warmup=1)
  mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
  params = {'w': jnp.ones((8, 16)), 'b': jnp.ones(3)}
  places = {'w': jax.NamedSharding(mesh, jax.P('fsdp')), 'b': jax.NamedSharding(mesh, jax.P())}
  states = state_sharding(tx, params, places)

  def step(params, state, g):
    updates, state = tx.update(g, state, params, weight=3.0)
    return optax.apply_updates(params, updates), state

  alone, spread = jax.jit(step), jax.jit(step, out_shardings=(places, states))
  a, b = (params, tx.init(params)), jax.device_put((params, tx.init(params)), (places, states))
  for size in (1.0, 2.0, jnp.nan, 0.5):
    g = jax.tree.map(lambda p, size=size: jnp.arange(p.size).reshape(p.shape) * size, params)
    a, b = alone(*a, g), spread(*b, jax.device_put(g, places))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), b, a)
  assert b[1].inner.inner.total['w'].addressable_shards[0].data.shape == (1, 16)
  assert int(b[1].skipped) == 1


def test_bad_input():
  with pytest.raises(InputError, match="no rule covers the parameter 'attn/k'"):
    observe(optax.sgd(1.0), [('mlp|bias', 'x')]).init(numbers(0))
  tx = observe(optax.sgd(1.0))
  with pytest.raises(InputError, match='observe needs the parameters'):
    tx.update(numbers(0), tx.init(numbers(0)))
  assert tx.update({}, tx.init({}), {})[0] == {}
