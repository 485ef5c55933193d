"""Placement: by logical names, refused where it does not divide, states like their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxtune import adapt, models, shard
from jaxtune.typing import InputError


def model():
  config = models.DecoderConfig(
    vocabulary=64, width=32, hidden=48, layers=2, heads=4, kv_heads=2, head_width=8
  )
  model = models.decoder(config)
  return model, model.init(jax.random.key(0))


def test_mesh_takes_all_devices():
  one = dict.fromkeys(shard.AXES, 1)
  assert dict(shard.mesh().shape) == {**one, 'data': 8}
  assert dict(shard.mesh({'fsdp': 4, 'data': -1}).shape) == {**one, 'data': 2, 'fsdp': 4}
  assert dict(shard.mesh({'tensor': 2, 'sequence': -1}).shape) == {
    **one,
    'sequence': 4,
    'tensor': 2,
  }


@pytest.mark.parametrize(
  'sizes',
  [{'data': 3}, {'data': -1, 'fsdp': 3}, {'data': 0}, {'data': -1, 'fsdp': -1}, {'tensor': 16}, {}],
  ids=str,
)
def test_mesh_that_does_not_fit(sizes):
  with pytest.raises(InputError, match='does not fit 8 device'):
    shard.mesh(sizes)


def test_unknown_axis():
  with pytest.raises(InputError, match="unknown mesh axis 'tensr'"):
    shard.mesh({'tensr': 8})


def test_one_axis_of_every_weight_is_spread():
  spec, params = model()
  params = adapt.lora(jax.random.key(1), params, 4)
  mesh = shard.mesh({'fsdp': 8, 'data': 1})
  shardings = shard.param_shardings(mesh, params, spec.axes(params))
  layer = shardings['decoder']['0-1']
  assert layer['attn']['q'].base.spec == P(None, 'fsdp', None)
  assert layer['attn']['q'].a.spec == P(None, 'fsdp', None)
  assert layer['attn']['q'].b.spec == P(None, None, None)
  assert layer['attn']['q'].scale.spec == P(None)
  assert layer['mlp']['down'].base.spec == P(None, None, 'fsdp')
  assert shardings['embed']['tokens'].spec == P(None, 'fsdp')
  placed = jax.device_put(params, shardings)
  np.testing.assert_array_equal(placed['embed']['tokens'], params['embed']['tokens'])


def test_axis_that_does_not_divide_is_named():
  spec, params = model()
  mesh = shard.mesh({'fsdp': 8, 'data': 1})
  params['embed']['tokens'] = jnp.zeros((64, 36))
  with pytest.raises(InputError, match=r"embed/tokens: axis 'embed' has 36.*fsdp=8"):
    shard.param_shardings(mesh, params, spec.axes(params))


def test_heads_stay_whole():
  spec, params = model()
  mesh = shard.mesh({'tensor': 4, 'data': 2})
  axes = spec.axes(params)
  with pytest.raises(InputError, match=r"attn/k: axis 'kv_heads' has 2 .*tensor=4 .*replicate"):
    shard.param_shardings(mesh, params, axes, units=spec.units)
  placed = shard.param_shardings(mesh, params, axes, units=spec.units, replicate=['kv_heads'])
  layer = placed['decoder']['0-1']
  assert layer['attn']['k'].spec == P(None, None, None)
  assert layer['attn']['q'].spec == P(None, None, 'tensor')
  assert layer['attn']['o'].spec == P(None, 'tensor', None)
  assert layer['mlp']['down'].spec == P(None, 'tensor', None)
  assert placed['embed']['tokens'].spec == P('tensor', None)
  with pytest.raises(InputError, match="unknown axis 'kv'; known: embed, heads"):
    shard.param_shardings(mesh, params, axes, replicate=['kv'])


def test_state_lies_where_its_parameters_do():
  spec, params = model()
  mesh = shard.mesh({'fsdp': 8, 'data': 1})
  shardings = shard.param_shardings(mesh, params, spec.axes(params))
  state = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params)
  states = shard.state_shardings(mesh, state, params, shardings)
  moments = states[1][0]
  assert moments.mu['decoder']['0-1']['mlp']['up'].spec == P(None, 'fsdp', None)
  assert moments.nu['embed']['tokens'].spec == P(None, 'fsdp')
  assert moments.count.spec == P()


def test_factored_moments_are_replicated():
  spec, params = model()
  mesh = shard.mesh({'fsdp': 8, 'data': 1})
  shardings = shard.param_shardings(mesh, params, spec.axes(params))
  state = optax.adafactor(1e-3, min_dim_size_to_factor=8).init(params)
  states = shard.state_shardings(mesh, state, params, shardings)
  jax.device_put(state, states)  # every sharding fits its leaf


def test_batch_that_does_not_divide():
  mesh = shard.mesh()
  placed = shard.place_batch(mesh, {'tokens': np.zeros((16, 4), np.int32)})
  assert placed['tokens'].addressable_shards[0].data.shape == (2, 4)
  with pytest.raises(InputError, match='batch of 12 rows cannot be spread over 8 devices'):
    shard.place_batch(mesh, {'tokens': np.zeros((12, 4), np.int32)})
