"""Norms beside float64 NumPy, with statistics that do not overflow in the input's type."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops

D = 16
EPSILON = 1e-5


def rms(x, scale, bias):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale


def layer(x, scale, bias):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(
    x.var(-1, keepdims=True) + EPSILON
  ) * scale + bias


def apply(name, x, scale, bias):
  if name == 'rms':
    return ops.rms_norm(x, scale, EPSILON)
  return ops.layer_norm(x, scale, bias, EPSILON)


ORACLES = {'rms': rms, 'layer': layer}


@pytest.mark.parametrize('name', ORACLES)
@pytest.mark.parametrize('shape', [(D,), (3, D), (2, 3, D)])
def test_norm_is_the_oracle(name, shape):
  rng = np.random.default_rng(0)
  x, scale, bias = 3 + rng.normal(size=shape), rng.normal(size=D), rng.normal(size=D)
  got = apply(name, *(jnp.asarray(v, jnp.float32) for v in (x, scale, bias)))
  np.testing.assert_allclose(got, ORACLES[name](x, scale, bias), atol=1e-5)


@pytest.mark.parametrize('name', ORACLES)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_statistics_are_wider_than_the_input(name, dtype):
  # 300^2 is above float16's largest number, and 300 +- 1 squared is one number in bfloat16.
  x = jnp.asarray(300 + np.resize([2.0, -2.0], (2, D)), dtype)
  scale, bias = jnp.ones(D), jnp.zeros(D)
  got = apply(name, x, scale, bias)
  assert got.dtype == dtype
  want = ORACLES[name](np.asarray(x, np.float64), np.ones(D), np.zeros(D))
  np.testing.assert_array_equal(got, want.astype(dtype))
