"""The product whose weight gradient is turned for the CPU, beside the plain one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops


def inputs(shape, outputs):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  w = jnp.asarray(rng.normal(size=(shape[-1], outputs)), jnp.float32)
  return x, w


def both(function, *args):
  """What `function` of the product gives, for ours and for the plain one."""
  return [jax.jit(lambda *a, f=f: function(f, *a))(*args) for f in (ops.matmul, jnp.matmul)]


def total(product):
  return lambda x, w: jnp.sum(jnp.sin(product(x, w)))


@pytest.mark.parametrize('outputs', [2, 5, 8], ids=['thin', 'square', 'wide'])
@pytest.mark.parametrize('shape', [(6, 5), (2, 3, 5)], ids=str)
def test_value_and_gradients_are_those_of_the_product(shape, outputs):
  run = lambda product, x, w: jax.value_and_grad(total(product), (0, 1))(x, w)  # noqa: E731
  got, want = both(run, *inputs(shape, outputs))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_forward_mode_lanes_and_gradients_of_gradients():
  x, w = inputs((6, 5), 2)

  def along(product, x, w):
    return jax.jvp(jax.grad(total(product), 1), (x, w), (w.sum() * x, 2 * w))[1]

  def lanes(product, x, w):
    return jax.vmap(jax.grad(total(product), 1), (0, None))(jnp.stack([x, -2 * x]), w)

  for run in (along, lanes):
    got, want = both(run, x, w)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_thin_matrix_is_turned_on_cpu_alone():
  """The product of the gradient has its sums along the last axis of the first matrix there."""
  slope = jax.jit(jax.grad(total(ops.matmul), 1))

  def text(platform):
    return slope.trace(*inputs((64, 32), 4)).lower(lowering_platforms=(platform,)).as_text()

  turned = (
    r'dot_general .* contracting_dims = \[1\] x \[0\].*\(tensor<4x64xf32>, tensor<64x32xf32>\)'
  )
  assert re.search(turned, text('cpu'))
  assert not re.search(turned, text('tpu'))
  assert 'optimization_barrier' not in text('tpu')


def test_a_frozen_matrix_has_no_gradient_product():
  x, w = inputs((6, 5), 2)
  text = jax.jit(jax.grad(total(ops.matmul), 0)).lower(x, w).as_text()
  assert text.count('stablehlo.dot_general') == 2
