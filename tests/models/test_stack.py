"""Cutting a stack, and computing it twice, change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import models
from jaxtune.models import stack
from jaxtune.typing import InputError

MODELS = {
  'encoder': models.encoder(
    models.EncoderConfig(
      vocabulary=20, width=8, hidden=12, layers=3, heads=2, positions=8, activation='relu'
    )
  ),
  'decoder': models.decoder(
    models.DecoderConfig(
      vocabulary=20,
      width=8,
      hidden=12,
      layers=3,
      heads=2,
      kv_heads=1,
      head_width=4,
    )
  ),
}
TOKENS = np.arange(10).reshape(2, 5)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)


def random(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(0.1, 0.4, x.shape).astype(np.float32), model.shapes())


def value_and_gradient(model):
  def total(params):
    return jnp.sum(model.features(params, TOKENS, MASK)[:, :, 0] ** 3)

  return jax.jit(jax.value_and_grad(total))


def close(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize('family', MODELS)
def test_cutting_and_recomputing_change_neither_values_nor_gradients(family):
  model = MODELS[family]
  params = random(model)
  value, gradient = value_and_gradient(model)(params)
  assert min(np.abs(x).max() for x in jax.tree.leaves(gradient[family])) > 0

  def cut(params):
    return {**params, family: models.cut(models.cut(params[family], 2), 1)}

  assert set(cut(params)[family]) == {'0-0', '1-1', '2-2'}
  remat = 'full' if family == 'encoder' else 'none'
  other = models.build(dataclasses.replace(model.config, remat=remat))
  close(value_and_gradient(other)(cut(params)), (value, cut(gradient)))


def test_what_is_kept_grows_from_full_to_none():
  """Temporary bytes of a backward pass."""

  def held(remat):
    model = models.build(dataclasses.replace(MODELS['decoder'].config, layers=8, remat=remat))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    compiled = value_and_gradient(model).lower(shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert held('full') < 0.9 * held('products') < 0.8 * held('none')


def test_an_unknown_name_of_remat_is_refused():
  with pytest.raises(InputError, match="remat is 'all'; choose one of none, products, full"):
    models.DecoderConfig(remat='all')


def test_segments_are_named_by_their_first_and_last_layer():
  layers = {'0-11': {'w': np.arange(12)}}
  two = models.cut(layers, 10)
  assert {name: leaf['w'].tolist() for name, leaf in two.items()} == {
    '0-9': list(range(10)),
    '10-11': [10, 11],
  }
  three = models.cut(two, 2)
  assert stack.segments(three) == ['0-1', '2-9', '10-11']
  assert three['10-11'] is two['10-11']


@pytest.mark.parametrize('at', [0, 4, 12])
def test_cutting_where_a_border_is_changes_nothing(at):
  layers = models.cut({'0-11': {'w': np.arange(12)}}, 4)
  assert models.cut(layers, at) == layers


@pytest.mark.parametrize('at', [-1, 13])
def test_there_is_no_such_layer(at):
  with pytest.raises(InputError, match=f'cannot cut before layer {at}.*layers 0 to 11'):
    models.cut({'0-11': {'w': np.arange(12)}}, at)


def test_segments_are_scanned_in_the_order_of_layers():
  """As names '10-11' would come before '2-9'."""

  def append(params, x, index, key):
    return x * 2 + params['w']

  layers = {'0-11': {'w': jnp.arange(12.0)}}
  want = stack.scan_stack(append, layers, jnp.zeros(()), None, remat='none')
  cut = models.cut(models.cut(layers, 2), 10)
  assert stack.scan_stack(append, cut, jnp.zeros(()), None, remat='none') == want
  assert want == sum(2.0 ** (11 - n) * n for n in range(12))


def test_every_layer_gets_a_key_of_its_own():
  def add(params, x, index, key):
    return x + params['one'] * jax.random.uniform(key)

  key = jax.random.key(0)
  layers = {'0-2': {'one': jnp.ones(3)}}
  want = sum(jax.random.uniform(jax.random.fold_in(key, n)) for n in range(3))
  got = stack.scan_stack(add, layers, jnp.zeros(()), key, remat='none')
  np.testing.assert_allclose(got, want, rtol=1e-6)
