"""What the tests of weight leaves share: their products are those of the dense matrices."""

import jax
import numpy as np

from jaxtune import ops


def check_stack(w, matrices, atol):
  """Products of every layer of a stack, one after the other under scan."""
  inputs, outputs = w.shape[-2:]
  rng = np.random.default_rng(9)
  x, y = (np.float32(rng.normal(size=(2, 4, n))) for n in (inputs, outputs))
  ids = rng.integers(0, inputs, (2, 4))

  @jax.jit
  def products(w):
    each = jax.lax.scan(
      lambda _, w: (None, (ops.dot(x, w), ops.dot_transposed(y, w), ops.take(w, ids))), None, w
    )[1]
    return *each, ops.materialize(w)

  turned = np.einsum('bto,lio->lbti', y, matrices)
  want = np.einsum('bti,lio->lbto', x, matrices), turned, matrices[:, ids], matrices
  for a, b in zip(products(w), want, strict=True):
    np.testing.assert_allclose(a, b, atol=atol)
  assert w.shape == matrices.shape


def check_products(w, matrix, atol):
  """Products of one matrix."""
  inputs, outputs = matrix.shape
  rng = np.random.default_rng(9)
  x, y = (np.float32(rng.normal(size=(2, 4, n))) for n in (inputs, outputs))
  ids = np.array([[0, 3], [5, 1]])
  np.testing.assert_allclose(ops.dot(x, w), x @ matrix, atol=atol)
  np.testing.assert_allclose(ops.dot_transposed(y, w), y @ matrix.T, atol=atol)
  np.testing.assert_allclose(ops.take(w, ids), matrix[ids], atol=atol)
  assert w.shape == matrix.shape


def check_scanned(w, matrices, atol):
  """A stack is dense as its layers are, and scanned like an array."""
  np.testing.assert_allclose(ops.materialize(w), matrices, atol=atol)
  x = np.float32(np.random.default_rng(8).normal(size=(4, matrices.shape[-2])))
  got = jax.lax.scan(lambda carry, w: (carry, ops.dot(x, w)), None, w)[1]
  np.testing.assert_allclose(got, x @ matrices, atol=atol)
