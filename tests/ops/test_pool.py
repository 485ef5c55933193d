"""Vectors of length one, also of what has no direction."""

import jax
import numpy as np

from jaxtune import ops


def test_rows_have_length_one_and_zeros_stay_zeros():
  x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]], np.float32)
  got = ops.normalize(x)
  np.testing.assert_allclose(got[:2], [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
  assert np.all(np.isfinite(got))


def test_zeros_have_a_finite_gradient():
  gradient = jax.grad(lambda x: ops.normalize(x).sum())(np.zeros((2, 3), np.float32))
  assert np.all(np.isfinite(gradient))


def test_half_precision_is_normalized_in_float32():
  got = ops.normalize(np.full((1, 3), 7, np.float16))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, 1 / np.sqrt(3), rtol=1e-6)
