"""A digest tells parameters apart by any bit, and not by where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import train


def params():
  rng = np.random.default_rng(0)
  return {
    'a': jnp.asarray(rng.normal(size=(8, 6)), jnp.float32),
    'b': {'c': jnp.asarray(rng.normal(size=16), jnp.bfloat16), 'd': jnp.arange(8, dtype=jnp.int4)},
    'e': jnp.asarray([True, False]),
    'f': jnp.asarray(rng.normal(size=(3, 2)), jnp.float8_e4m3fn),
    'g': jnp.float32(1.0),
  }


def test_is_the_same_on_every_mesh_and_for_numpy():
  found = train.digest(params())
  assert len(found) == 32 and found == train.digest(params())
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('x', 'y'))
  for spec in (PartitionSpec('x', 'y'), PartitionSpec(('x', 'y')), PartitionSpec(None, 'y')):
    placed = {**params(), 'a': jax.device_put(params()['a'], NamedSharding(mesh, spec))}
    assert train.digest(placed) == found
  assert train.digest(jax.tree.map(np.asarray, params())) == found


@pytest.mark.parametrize('path', ['a', 'b/c', 'b/d', 'e', 'f', 'g'])
def test_changes_with_any_bit(path):
  found = params()
  *parents, name = path.split('/')
  node = found[parents[0]] if parents else found
  x = np.asarray(node[name]).reshape(-1).copy()
  if x.dtype == bool or x.dtype.name == 'int4':
    x[-1] = not x[-1]
  else:
    x.view(np.uint8)[-x.dtype.itemsize] ^= 1  # the lowest bit of the last element
  node[name] = jnp.asarray(x).reshape(node[name].shape)
  assert node[name].dtype == x.dtype
  assert train.digest(found) != train.digest(params())


def test_changes_with_order_shape_type_and_path():
  x = jnp.arange(6.0)
  others = [x[::-1], x.reshape(2, 3), x.astype(jnp.int32), jnp.roll(x, 1), -x]
  digests = {train.digest({'x': other}) for other in (x, *others)}
  assert len({*digests, train.digest({'y': x}), train.digest({'x': {'x': x}})}) == 8


def test_exchanged_rows_of_what_was_narrower_are_found():
  # Their low bits are all zero, and a sum of bits times places would not see it.
  x = jnp.zeros((4, 1 << 16), jnp.float32).at[1, 0].set(1.0)
  assert train.digest({'x': x}) != train.digest({'x': x[jnp.asarray([0, 2, 1, 3])]})
