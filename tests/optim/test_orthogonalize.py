"""Newton-Schulz: the band of singular values that it states, its symmetries, and bad input."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from jaxtune.optim.orthogonalize import (
  POLAR_EXPRESS,
  SAFETY,
  STANDARD,
  newton_schulz,
  orthogonalize,
)
from jaxtune.typing import InputError

few = hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
run = jax.jit(newton_schulz, static_argnames=('steps', 'coefficients', 'dtype'))

# What newton_schulz states, for singular values in [0.002, 1] after the division by the norm.
BANDS = [
  ('standard', 5, 0.68, 1.21),
  ('standard', 9, 0.68, 1.21),
  ('polar_express', 5, 0.87, 1.13),
  ('polar_express', 6, 0.99, 1.01),
  ('polar_express', 8, 0.9999, 1.0001),
]
SHAPES = [
  (1, 1),
  (1, 7),
  (7, 1),
  (5, 5),
  (33, 12),
  (2, 3, 12, 33),
  (64, 64),
  (512, 128),
  (128, 512),
]


def orthogonal(rng, *shape):
  """Orthonormal columns: the Q factor of a normal matrix."""
  return np.linalg.qr(rng.standard_normal(shape))[0]


def with_singular_values(rng, shape, smallest):
  """Random matrices whose singular values, divided by their norm, span [smallest, about 1]."""
  k = min(shape[-2:])
  values = np.geomspace(smallest, 1, k) if k > 1 else np.ones(1)
  values[:-1] *= np.sqrt(1 - smallest**2) / max(np.linalg.norm(values[:-1]), 1)  # norm at most 1.42
  values = np.maximum(values / np.linalg.norm(values), smallest)
  left = orthogonal(rng, *shape[:-2], shape[-2], k)
  right = orthogonal(rng, *shape[:-2], shape[-1], k)
  return (left * values) @ np.swapaxes(right, -1, -2)


def polynomial(values, rows):
  for a, b, c in rows:
    values = a * values + b * values**3 + c * values**5
  return values


@pytest.mark.parametrize(('coefficients', 'steps', 'low', 'high'), BANDS)
def test_the_stated_band_is_that_of_the_polynomials(coefficients, steps, low, high):
  """And is no wider than it must be for 5 steps: its ends are reached within 0.01."""
  table, margin = (STANDARD, 1.0) if coefficients == 'standard' else (POLAR_EXPRESS, SAFETY)
  rows = [table[min(i, len(table) - 1)] for i in range(steps)]
  out = polynomial(np.geomspace(0.002, 1, 200_001) / margin, rows)
  assert low <= out.min() and out.max() <= high
  if steps == 5:
    assert out.min() <= low + 0.01 and out.max() >= high - 0.01
  below = polynomial(np.linspace(0, 0.002, 10_001) / margin, rows)
  assert below.min() == 0 and below.max() <= high


@pytest.mark.parametrize('shape', SHAPES)
def test_singular_values_come_out_in_the_stated_band(shape):
  x = with_singular_values(np.random.default_rng(0), shape, 0.002)
  for coefficients, steps, low, high in BANDS[::2]:
    out = run(jnp.asarray(37 * x, jnp.float32), steps=steps, coefficients=coefficients)
    values = np.linalg.svd(np.asarray(out), compute_uv=False)
    assert low - 1e-3 <= values.min() and values.max() <= high + 1e-3


@few
@hypothesis.given(
  rows=st.integers(1, 9),
  columns=st.integers(1, 9),
  seed=st.integers(0, 2**31),
  scale=st.floats(-9, 9),
)
def test_band_of_random_matrices(rows, columns, seed, scale):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(10.0**scale * rng.standard_normal((2, rows, columns)), jnp.float32)
  before = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
  before /= np.linalg.norm(before, axis=-1, keepdims=True)
  hypothesis.assume(before.min() > 0.002 and 10.0**scale > 1e-6)
  for coefficients, steps, low, high in BANDS[::2]:
    after = np.linalg.svd(np.asarray(newton_schulz(x, steps, coefficients)), compute_uv=False)
    assert low - 1e-3 <= after.min() and after.max() <= high + 1e-3


@few
@hypothesis.given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_rotations_of_either_side_go_through(rows, columns, seed):
  with jax.enable_x64(True):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, rows, columns))
    q, p = orthogonal(rng, rows, rows), orthogonal(rng, columns, columns)
    np.testing.assert_allclose(
      newton_schulz(jnp.asarray(q @ x @ p)),
      q @ np.asarray(newton_schulz(jnp.asarray(x))) @ p,
      atol=1e-9,
    )


def test_against_the_polynomial_of_singular_values_in_float64():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).standard_normal((2, 6, 9))
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s /= np.linalg.norm(s, axis=-1, keepdims=True)
    table = ((3.0, -3.2, 1.2), (1.875, -1.25, 0.375))
    for rows, given, margin in (
      (STANDARD * 5, 'standard', 1.0),
      (POLAR_EXPRESS[:5], 'polar_express', 1.01),
      ((table[0], *[table[1]] * 4), table, 1.0),  # the last row repeats
    ):
      want = (u * polynomial(s / margin, rows)[:, None, :]) @ vt
      got = newton_schulz(jnp.asarray(x), 5, given)
      assert got.dtype == jnp.float64
      np.testing.assert_allclose(got, want, atol=1e-12)
      np.testing.assert_allclose(
        newton_schulz(jnp.asarray(x), 5, given, scale=0.3), 0.3 * want, atol=1e-12
      )
      np.testing.assert_allclose(
        newton_schulz(jnp.asarray(x).mT, 5, given), want.swapaxes(1, 2), atol=1e-12
      )


def test_the_safety_factor_of_polar_express_is_the_papers():
  """Rows from the listing of arXiv 2505.16932 with 1.01 to the power of each degree, rounded."""
  want = [(8.2051, -22.9019, 16.4607), (4.0664, -2.8612, 0.5184), (3.9096, -2.8234, 0.5250)]
  np.testing.assert_allclose(POLAR_EXPRESS[:3], want, atol=6e-5)
  assert POLAR_EXPRESS[7] == (1.875, -1.25, 0.375) and len(POLAR_EXPRESS) == 8


def test_zeros_give_zeros_and_noise_shrinks():
  x = jnp.zeros((2, 3, 5)).at[1].set(jnp.eye(3, 5))
  for eps in (1e-7, 0.0):
    out = newton_schulz(x, eps=eps)
    np.testing.assert_array_equal(out[0], 0)
    assert jnp.linalg.norm(out[1]) > 1
  gradient = jax.grad(lambda x: newton_schulz(x, eps=1e-7)[1].sum())(x)
  assert np.all(np.isfinite(gradient[1]))
  assert (
    jnp.linalg.norm(newton_schulz(1e-12 * x)) < 1e-2 < 1 < jnp.linalg.norm(newton_schulz(1e-6 * x))
  )


@pytest.mark.parametrize('coefficients', ['standard', 'polar_express'])
def test_bfloat16_factors_stay_near(coefficients):
  x = with_singular_values(np.random.default_rng(1), (3, 48, 64), 0.002)
  _, _, low, high = next(band for band in BANDS if band[:2] == (coefficients, 5))
  out = run(jnp.asarray(x, jnp.float32), coefficients=coefficients, dtype=jnp.bfloat16)
  assert out.dtype == jnp.float32
  values = np.linalg.svd(np.asarray(out), compute_uv=False)
  assert low - 0.01 <= values.min() and values.max() <= high + 0.01
  exact = run(jnp.asarray(x, jnp.float32), coefficients=coefficients)
  assert 1e-4 < jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact) < 0.08
  assert newton_schulz(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_the_transformation_maps_leaves_and_keeps_holes():
  rng = np.random.default_rng(0)
  x = {
    'a': jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.bfloat16),
    'b': (jnp.asarray(rng.standard_normal((4, 3))), optax.MaskedNode()),
    'c': None,
  }
  tx = orthogonalize(coefficients='polar_express', steps=6)
  out, state = jax.jit(tx.update)(x, tx.init(x))
  assert state == optax.EmptyState() and jax.tree.structure(out) == jax.tree.structure(x)
  assert out['a'].dtype == jnp.float32
  np.testing.assert_allclose(out['b'][0].mT @ out['b'][0], np.eye(3), atol=0.03)
  assert tx.update({}, tx.init({})) == ({}, optax.EmptyState())


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'steps': 0}, 'steps is 0; give a whole number'),
    ({'steps': 2.0}, 'steps is 2.0'),
    ({'coefficients': 'jordan'}, "coefficients is 'jordan'; choose one of standard, polar_express"),
    ({'coefficients': (3.4, -4.8, 2.0)}, 'rows of three finite numbers'),
    ({'coefficients': [(3.4, -4.8)]}, 'rows of three finite numbers'),
    ({'coefficients': ()}, 'rows of three finite numbers'),
    ({'coefficients': [(1.0, float('nan'), 0.0)]}, 'rows of three finite numbers'),
    ({'dtype': jnp.int8}, 'give a float dtype'),
    ({'dtype': 'bf16'}, "dtype is 'bf16'; give a float dtype"),
    ({'adjust': 'rsm'}, "adjust is 'rsm'; choose one of rms, spectral, mup"),
  ],
)
def test_bad_input(kwargs, message):
  with pytest.raises(InputError, match=message.replace('(', r'\(')):
    orthogonalize(**kwargs)


def test_a_vector_is_no_matrix():
  with pytest.raises(InputError, match=r"'a/bias' of shape \(3,\) is no matrix.*for_matrices"):
    orthogonalize().init({'a': {'bias': jnp.zeros(3)}})
  with pytest.raises(InputError, match='rows, columns'):
    newton_schulz(jnp.zeros(3))
