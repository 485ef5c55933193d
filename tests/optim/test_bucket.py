"""Matrices of one shape run as one batch and come back where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune.optim import bucket
from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.orthogonalize import orthogonalize
from jaxtune.typing import InputError


def numbers(seed, dtype=jnp.float32):
  """Single matrices of two shapes, one shape twice transposed, stacks, cut leaves and holes."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), dtype)

  return {
    'decoder': {
      '0-2': {'q': draw(3, 4, 5), 'qkv': (draw(3, 4, 4), draw(3, 4, 4)), 'hole': None},
      '3-4': {'q': draw(2, 4, 5)},
      'experts': draw(2, 3, 4, 4),
    },
    'layers': [draw(4, 5), draw(4, 5), draw(5, 4), optax.MaskedNode(), draw(5, 4)],
    'last': draw(4, 4),
  }


def rule():
  """Depends on every argument that it gets, matrix by matrix, and leaves zeros zeros."""
  decay = optax.GradientTransformationExtraArgs(
    lambda p: optax.EmptyState(),
    lambda u, s, p=None, *, weight=1.0, **extra: (
      jax.tree.map(lambda u, p: u + weight * p, u, p),
      s,
    ),
  )
  return optax.chain(optax.trace(0.9, nesterov=True), orthogonalize(3), decay)


def run(tx, jit=True, dtype=jnp.float32):
  params = numbers(0, dtype)
  state = tx.init(params)
  update = jax.jit(tx.update) if jit else tx.update
  outs = []
  for seed in (1, 2):
    updates, state = update(numbers(seed, dtype), state, params, weight=0.3)
    outs.append(updates)
  return outs, state


def assert_close(a, b, atol=2e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.shape == y.shape and x.dtype == y.dtype
    np.testing.assert_allclose(x, y, atol=atol)


@pytest.fixture(scope='module')
def plain():
  return run(rule())[0]


@pytest.mark.parametrize('jit', [True, False])
def test_bucketed_is_leaf_by_leaf(plain, jit):
  assert_close(run(bucket_by_shape(rule()), jit)[0], plain)


def test_what_is_stacked_and_what_keeps_its_path():
  state = bucket_by_shape(optax.trace(0.9)).init(numbers(0))
  shapes = {key: x.shape for key, x in state.trace.items()}
  assert shapes == {
    '4x5': (2, 4, 5),
    '5x4': (2, 5, 4),
    'decoder/0-2/q': (3, 4, 5),
    'decoder/0-2/qkv/0': (3, 4, 4),
    'decoder/0-2/qkv/1': (3, 4, 4),
    'decoder/3-4/q': (2, 4, 5),
    'decoder/experts': (2, 3, 4, 4),
    'last': (4, 4),
  }


def test_large_matrices_keep_their_path(monkeypatch):
  monkeypatch.setattr(bucket, 'SMALL', 19)
  state = bucket_by_shape(optax.trace(0.9)).init({'a': jnp.ones((4, 5)), 'b': jnp.ones((4, 5))})
  assert set(state.trace) == {'a', 'b'}


def test_each_matrix_is_read_and_written_once():
  """No leaf is concatenated but the small single ones, and the program has one loop a bucket."""
  tx = bucket_by_shape(orthogonalize())
  separate = {str(i): jnp.ones((8, 8)) for i in range(6)} | {'stack': jnp.ones((5, 8, 8))}

  def program(x):
    return str(jax.make_jaxpr(tx.update)(x, tx.init(x)))

  text = program(separate)
  assert text.count('concatenate[') == 1 and text.count('scan[') == 2
  assert 'concatenate[' not in program({'alone': jnp.ones((5, 8, 8))})


def test_dtypes_are_separate_and_low_precision_is_lifted():
  tx = bucket_by_shape(optax.trace(0.9))
  with jax.enable_x64(True):
    x = {str(i): jnp.ones((2, 3), d) for i, d in enumerate(('float64', 'float32', 'bfloat16') * 2)}
    updates, state = tx.update(x, tx.init(x))
    assert {k: (v.shape, str(v.dtype)) for k, v in state.trace.items()} == {
      '2x3': ((4, 2, 3), 'float32'),
      '2x3 float64': ((2, 2, 3), 'float64'),
    }
    assert [str(updates[k].dtype) for k in '012'] == ['float64', 'float32', 'float32']


@pytest.fixture
def mesh():
  return jax.make_mesh((4, 2), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize('axes', ['data', ('data', 'model')])
def test_sharded_is_unsharded(plain, mesh, axes):
  sharding = NamedSharding(mesh, PartitionSpec(axes))
  outs, state = run(bucket_by_shape(rule(), sharding))
  assert_close(outs, plain)
  count = 4 if axes == 'data' else 8
  padded = {key: x.shape[0] for key, x in state[0].trace.items()}
  wanted = {'4x5': 7, '5x4': 2, '4x4': 13}  # stacks and single matrices together
  assert padded == {key: -(-n // count) * count for key, n in wanted.items()}
  for new in (state, jax.jit(bucket_by_shape(rule(), sharding).init)(numbers(0))):
    for x in new[0].trace.values():
      assert x.addressable_shards[0].data.shape[0] == x.shape[0] // count


def test_sharding_costs_one_collective_a_batch(mesh):
  tx = bucket_by_shape(orthogonalize(1), NamedSharding(mesh, PartitionSpec('data')))
  whole = jax.device_put(numbers(0), NamedSharding(mesh, PartitionSpec()))
  text = jax.jit(tx.update).lower(whole, tx.init(whole)).compile().as_text()
  assert text.count(' all-gather(') == 3  # 4x5, 5x4 and 4x4
  assert 'all-to-all' not in text and 'collective-permute' not in text


def test_a_partition_spec_takes_the_mesh_that_is_set(plain, mesh):
  tx = bucket_by_shape(rule(), PartitionSpec('data'))
  with jax.set_mesh(mesh):
    assert_close(run(tx)[0], plain)
  with pytest.raises(InputError, match='give NamedSharding'):
    tx.init(numbers(0))


def test_a_sharding_of_more_than_the_axis_of_matrices(mesh):
  for spec in (PartitionSpec('data', 'model'), PartitionSpec(None), PartitionSpec('layers')):
    sharding = spec if spec == PartitionSpec('layers') else NamedSharding(mesh, spec)
    with pytest.raises(InputError, match='does not say how the one axis'):
      bucket_by_shape(optax.identity(), sharding).init(numbers(0))


@pytest.mark.slow
def test_lanes_are_separate_runs():
  tx = bucket_by_shape(orthogonalize(3))
  lanes = jax.tree.map(lambda *x: jnp.stack(x), numbers(1), numbers(2))
  both = jax.vmap(lambda g: tx.update(g, tx.init(g))[0])(lanes)
  second = tx.update(numbers(2), tx.init(numbers(2)))[0]
  assert_close(jax.tree.map(lambda x: x[1], both), second)


def test_a_mesh_with_explicit_axes():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Explicit,))
  with pytest.raises(InputError, match='make the mesh with axis_types'):
    bucket_by_shape(rule(), NamedSharding(mesh, PartitionSpec('x'))).init(numbers(0))


def test_empty_trees_and_vectors(mesh):
  for sharding in (None, NamedSharding(mesh, PartitionSpec('data'))):
    tx = bucket_by_shape(rule(), sharding)
    for empty in ({}, {'a': None, 'b': optax.MaskedNode()}):
      assert tx.update(empty, tx.init(empty), empty)[0] == empty
    with pytest.raises(InputError, match=r"'layers/1' of shape \(3,\) is no matrix"):
      tx.init({'layers': [jnp.ones((2, 2)), jnp.ones(3)]})
