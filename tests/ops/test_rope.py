"""Rotary positions beside complex numbers, each scaling by its paper, and what they exist for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops

B, T, H, K = 2, 7, 3, 8
BASE = 10000.0
LONG = tuple(1.0 + i for i in range(K // 2))
SHORT = tuple(1.0 + i / 8 for i in range(K // 2))
SCALED = {
  'default': ops.Rope(),
  'part': ops.Rope(width=4),
  'linear': ops.Rope(scaling='linear', factor=4.0),
  'dynamic': ops.Rope(scaling='dynamic', factor=2.0, original=64),
  'llama3': ops.Rope(base=100.0, scaling='llama3', factor=8.0, original=64),
  'yarn': ops.Rope(base=100.0, scaling='yarn', factor=8.0, original=64),
  'fine yarn': ops.Rope(
    base=100.0, scaling='yarn', factor=8.0, original=64, truncate=False, slow=2.0, fast=9.0
  ),
  'longrope': ops.Rope(scaling='longrope', factor=4.0, original=64, short=SHORT, long=LONG),
}


def turn(x, angles):
  """Pairs as complex numbers, float64."""
  half = angles.shape[-1]
  z = x[..., :half] + 1j * x[..., half : 2 * half]
  z = z * np.exp(1j * angles)[:, :, None]
  return np.concatenate([z.real, z.imag, x[..., 2 * half :]], axis=-1)


def frequencies(rope, length):
  """Each scaling pair by pair, as its source has it."""
  width = rope.width or K
  base, s, original = rope.base, rope.factor, rope.original
  if rope.scaling == 'dynamic' and length > original:
    base *= (s * length / original - (s - 1)) ** (width / (width - 2))
  found = []
  for i in range(width // 2):
    w = base ** (-2 * i / width)
    wavelength = 2 * np.pi / w
    if rope.scaling == 'linear':
      w /= s
    if rope.scaling == 'llama3':
      if wavelength > original / rope.low:
        w /= s
      elif wavelength >= original / rope.high:
        smooth = (original / wavelength - rope.low) / (rope.high - rope.low)
        w = (1 - smooth) * w / s + smooth * w
    if rope.scaling == 'yarn':

      def pair(turns):
        return width * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))

      first, last = pair(rope.fast), pair(rope.slow)
      if rope.truncate:
        first, last = np.floor(first), np.ceil(last)
      ramp = np.clip((i - max(first, 0)) / (min(last, width - 1) - max(first, 0)), 0, 1)
      w = w / s * ramp + w * (1 - ramp)
    if rope.scaling == 'longrope':
      w /= (rope.long if length > original else rope.short)[i]
    found.append(w)
  return np.array(found)


AMPLITUDE = {
  'yarn': 0.1 * np.log(8.0) + 1.0,
  'longrope': np.sqrt(1 + np.log(4.0) / np.log(64.0)),
}


@pytest.mark.parametrize('longest', [63, 64, 500])
@pytest.mark.parametrize('name', SCALED)
def test_each_scaling_beside_complex_numbers(name, longest):
  rope = SCALED[name]
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, T, H, K))
  positions = rng.integers(0, longest, (B, T))
  positions[1, 2] = longest
  angles = positions[..., None] * frequencies(rope, longest + 1)
  want = turn(x, angles)
  width = 2 * angles.shape[-1]
  want[..., :width] *= AMPLITUDE.get(rope.scaling, 1.0)
  table = jax.jit(ops.rope_table, static_argnums=(1, 2))(positions, K, rope)
  assert table.cos.dtype == table.sin.dtype == jnp.float32
  got = ops.rotate(x.astype(np.float32), table)
  np.testing.assert_allclose(got, want, atol=2e-4)
  if width < K:
    np.testing.assert_array_equal(got[..., width:], x[..., width:].astype(np.float32))


def test_scalings_differ():
  """Else the test above could pass for a scaling that does nothing."""
  tables = [
    ops.rope_table(np.array([[500]]), K, rope) for name, rope in SCALED.items() if name != 'part'
  ]
  for i, a in enumerate(tables):
    for b in tables[:i]:
      assert np.abs(a.cos - b.cos).max() > 1e-2


def test_given_amplitudes():
  for scaling in ('yarn', 'longrope'):
    rope = ops.Rope(
      scaling=scaling, factor=4.0, original=64, short=SHORT, long=LONG, attention_factor=0.5
    )
    table = ops.rope_table(np.zeros((1, 1), np.int32), K, rope)
    np.testing.assert_array_equal(table.cos, 0.5)


@pytest.mark.parametrize('base', [BASE, 100000.0])
@pytest.mark.parametrize('shift', [1, 40])
def test_scores_depend_on_distance_alone(base, shift):
  rng = np.random.default_rng(1)
  q, k = rng.normal(size=(2, B, T, H, K)).astype(np.float32)
  positions = np.broadcast_to(np.arange(T), (B, T))

  def scores(positions):
    table = ops.rope_table(positions, K, ops.Rope(base))
    return np.einsum('bthk,bshk->bhts', ops.rotate(q, table), ops.rotate(k, table))

  np.testing.assert_allclose(scores(positions), scores(positions + shift), atol=5e-5)
  stretched = scores(positions * 2)
  assert np.abs(stretched - scores(positions)).max() > 0.1


def test_position_zero_changes_nothing_and_types_stay():
  x = jnp.ones((1, 1, 1, K), jnp.bfloat16)
  got = ops.rotate(x, ops.rope_table(np.zeros((1, 1), np.int32), K, ops.Rope()))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, x)


def test_an_unknown_scaling():
  with pytest.raises(ValueError, match="'ntk'; known: default, linear"):
    ops.rope_table(np.zeros((1, 1), np.int32), K, ops.Rope(scaling='ntk'))
