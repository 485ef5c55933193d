"""Rotary positions beside complex numbers, and the property that they exist for."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops

B, T, H, K = 2, 7, 3, 8
BASE = 10000.0


def test_rotation_is_multiplication_by_a_unit_complex_number():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, T, H, K))
  positions = rng.integers(0, 500, (B, T))
  frequency = np.array([BASE ** (-2 * i / K) for i in range(K // 2)])
  turn = np.exp(1j * positions[:, :, None, None] * frequency)
  z = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * turn
  want = np.concatenate([z.real, z.imag], axis=-1)
  got = ops.rotate(x.astype(np.float32), ops.rope_angles(positions, K, BASE))
  np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize('base', [BASE, 100000.0])
@pytest.mark.parametrize('shift', [1, 40])
def test_scores_depend_on_distance_alone(base, shift):
  rng = np.random.default_rng(1)
  q, k = rng.normal(size=(2, B, T, H, K)).astype(np.float32)
  positions = np.broadcast_to(np.arange(T), (B, T))

  def scores(positions):
    angles = ops.rope_angles(positions, K, base)
    return np.einsum('bthk,bshk->bhts', ops.rotate(q, angles), ops.rotate(k, angles))

  np.testing.assert_allclose(scores(positions), scores(positions + shift), atol=5e-5)
  stretched = scores(positions * 2)
  assert np.abs(stretched - scores(positions)).max() > 0.1


def test_position_zero_changes_nothing_and_types_stay():
  x = jnp.ones((1, 1, 1, K), jnp.bfloat16)
  got = ops.rotate(x, ops.rope_angles(np.zeros((1, 1), np.int32), K, BASE))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, x)
