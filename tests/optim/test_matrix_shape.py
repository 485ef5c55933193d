"""The number that a matrix is multiplied by goes by its last two axes, [in, out]."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.matrix_shape import scale_by_matrix_shape
from jaxtune.optim.orthogonalize import orthogonalize
from jaxtune.typing import InputError


@pytest.mark.parametrize(
  ('mode', 'up', 'down'),
  [('rms', 0.2 * 4, 0.2 * 4), ('spectral', 2.0, 1.0), ('mup', 2.0, 0.5)],
)
def test_factors_of_a_widening_and_a_narrowing_matrix(mode, up, down):
  """in 4 and out 16, then in 16 and out 4, alone and stacked."""
  x = {
    'up': jnp.ones((4, 16)),
    'stack': jnp.ones((3, 4, 16)),
    'down': jnp.ones((16, 4)),
    'no': None,
  }
  tx = scale_by_matrix_shape(mode)
  out, _ = tx.update(x, tx.init(x))
  assert out['no'] is None
  for key, factor in (('up', up), ('stack', up), ('down', down)):
    np.testing.assert_allclose(out[key], np.full(x[key].shape, factor), rtol=1e-6)


def test_rms_gives_an_orthogonal_matrix_an_rms_of_0_2():
  x = np.random.default_rng(0).standard_normal((3, 24, 8))
  q = {'w': jnp.asarray(np.linalg.qr(x)[0], jnp.float32)}
  tx = scale_by_matrix_shape('rms')
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(tx.update(q, tx.init(q))[0]['w'] ** 2)), 0.2, 1e-5)


@pytest.mark.parametrize('mode', ['rms', 'spectral', 'mup'])
def test_orthogonalize_can_do_it_on_the_way(mode):
  x = {'w': jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 9)), jnp.float32)}
  apart = optax.chain(orthogonalize(3), scale_by_matrix_shape(mode))
  both = orthogonalize(3, adjust=mode)
  outs = [tx.update(x, tx.init(x))[0]['w'] for tx in (apart, both)]
  np.testing.assert_allclose(*outs, atol=1e-6)


def test_bad_input():
  with pytest.raises(InputError, match="adjust is 'sepctral'; choose one of rms, spectral, mup"):
    scale_by_matrix_shape('sepctral')
  with pytest.raises(InputError, match=r"'b' of shape \(2,\) is no matrix"):
    scale_by_matrix_shape().init({'b': jnp.ones(2)})
