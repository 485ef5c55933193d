"""Quantized weights beside bitsandbytes 0.50.2 on the CPU: the same codes, scales and numbers.

Its CPU kernel gives some scales of double quantization a neighbour's code (`tests/optim/
test_peers_quantize.py`); its other backends take the nearest, as we do.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.adapt import quantize_matrix
from tests.adapt.test_quantize import GOLDEN

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]


@pytest.fixture
def peer():
  pytest.importorskip('bitsandbytes')
  from scripts import golden_quantize

  return golden_quantize


def test_the_golden_file_is_theirs(peer):
  w = peer.matrix()
  np.testing.assert_array_equal(w, GOLDEN['w'])
  for name, found in (
    ('nf4', peer.quantized(w, False)),
    ('double', peer.quantized(w, True)),
    ('int8', peer.int8(w)),
  ):
    for field, value in found.items():
      np.testing.assert_array_equal(value, GOLDEN[f'{name}_{field}'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('spread', [0.0, 1.0], ids=['alike', 'unlike'])
def test_large_matrices(peer, dtype, spread):
  rng = np.random.default_rng(1)
  scale = 0.02 * np.exp(spread * rng.normal(size=(1, 384)))
  w = jnp.asarray(rng.normal(size=(512, 384)) * scale, dtype)
  exact = np.asarray(w.astype(jnp.float32))
  ours, theirs = quantize_matrix(w, 'nf4', double=False), peer.quantized(exact, False)
  np.testing.assert_array_equal(ours.codes, theirs['codes'])
  np.testing.assert_array_equal(ours.scales, theirs['scales'])
  ours, theirs = quantize_matrix(w, 'nf4'), peer.quantized(exact, True)
  np.testing.assert_array_equal(ours.codes, theirs['codes'])
  np.testing.assert_allclose(ours.offset, theirs['offset'], rtol=1e-6)
  np.testing.assert_allclose(ours.scale_maxima, theirs['scale_maxima'], rtol=1e-6)
  apart = np.abs(ours.scales.astype(np.int32) - theirs['scales'].astype(np.int32))
  assert apart.max() <= 1 and (apart > 0).mean() < 0.01
  same = np.repeat(apart == 0, 64, axis=0)
  dense = np.asarray(quantize_matrix(jnp.asarray(exact), 'nf4').materialize())
  np.testing.assert_allclose(dense[same], theirs['dense'][same], rtol=2e-6, atol=1e-7)
  ours, theirs = quantize_matrix(w, 'int8', len(w), double=False), peer.int8(exact)
  np.testing.assert_array_equal(ours.codes, theirs['codes'])
  np.testing.assert_array_equal(ours.scales, theirs['scales'])


@pytest.mark.parametrize('double', [False, True])
def test_a_layer_of_theirs(peer, double):
  import torch
  from bitsandbytes.nn import Linear4bit, Params4bit

  rng = np.random.default_rng(2)
  w = rng.normal(size=(256, 192)).astype(np.float32)
  x = rng.normal(size=(24, 256)).astype(np.float32)
  layer = Linear4bit(256, 192, bias=False, compute_dtype=torch.float32, quant_type='nf4')
  layer.weight = Params4bit(
    torch.tensor(np.ascontiguousarray(w.T)), quant_type='nf4', compress_statistics=double
  )
  with torch.no_grad():
    theirs = layer.to('cpu')(torch.tensor(x)).numpy()
  ours = np.asarray(quantize_matrix(w, 'nf4', double=double).dot(jnp.asarray(x)))
  lost = np.abs(ours - x @ w).max()
  assert np.abs(ours - theirs).max() < (0.02 if double else 1e-4) * lost
