"""Products of plain arrays; weight leaves are tested where they live (tests/adapt)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3))


@pytest.mark.parametrize('lead', [(), (5,), (2, 5)])
def test_products_with_arrays(lead):
  x, y = RNG.normal(size=(*lead, 4)), RNG.normal(size=(*lead, 3))
  w = jnp.asarray(W, jnp.float32)
  np.testing.assert_allclose(ops.dot(jnp.float32(x), w), x @ W, atol=1e-5)
  np.testing.assert_allclose(ops.dot_transposed(jnp.float32(y), w), y @ W.T, atol=1e-5)
  ids = RNG.integers(0, 4, lead)
  np.testing.assert_array_equal(ops.take(w, ids), W[ids].astype(np.float32))


def test_host_arrays_are_weights_too():
  got = jax.jit(lambda ids: ops.take(W, ids))(jnp.array([2, 0]))
  np.testing.assert_allclose(got, W[[2, 0]], rtol=1e-6)


def test_activations_choose_the_type():
  x, y = jnp.ones((2, 4), jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16)
  w = jnp.asarray(W, jnp.float32)
  assert ops.dot(x, w).dtype == jnp.bfloat16
  assert ops.dot_transposed(y, w).dtype == jnp.bfloat16


def test_arrays_are_dense_already():
  tree = {'w': jnp.asarray(W), 'b': jnp.zeros(3)}
  assert ops.materialize(tree['w']) is tree['w']
  dense = ops.materialize_all(tree)
  assert all(a is b for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(tree), strict=True))
