"""DoRA leaves: eq. (5) of the paper in float64, its gradient of section 4.3, and no dense sum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, ops
from jaxtune.adapt.dora import dora_leaf
from jaxtune.typing import InputError

L, IN, OUT, R = 3, 6, 5, 2
KEY = jax.random.key(0)
RNG = np.random.default_rng(9)
X, Y = np.float32(RNG.normal(size=(4, IN))), np.float32(RNG.normal(size=(4, OUT)))
IDS = RNG.integers(0, IN, 4)


def leaf(lead=(), seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

  base = adapt.LoRA(normal(IN, OUT), normal(IN, R), normal(R, OUT), normal())
  return dora_leaf(base, normal(IN, R), normal(R, OUT), normal() + 2, normal(OUT) + 3)


def dense(w):
  base, a, b, scale, m = (np.float64(x) for x in (ops.materialize(w.base), w.a, w.b, w.scale, w.m))
  v = base + scale[..., None, None] * (a @ b)
  return m[..., None, :] * v / np.linalg.norm(v, axis=-2, keepdims=True)


def products(w):
  return ops.dot(X, w), ops.dot_transposed(Y, w), ops.take(w, IDS), ops.materialize(w)


def wanted(matrix):
  return X @ matrix, Y @ matrix.swapaxes(-1, -2), matrix[..., IDS, :], matrix


def same(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5)


def test_products_are_those_of_the_dense_matrix_over_another_leaf():
  w, stack = leaf(), leaf((L,))
  assert stack.shape == (L, IN, OUT)

  def all_ways(w, stack):
    scanned = jax.lax.scan(lambda _, w: (None, products(w)), None, stack)[1]
    return products(w), jax.vmap(products)(stack), scanned, ops.materialize(stack)

  one, mapped, scanned, whole = jax.jit(all_ways)(w, stack)
  same(one, wanted(dense(w)))
  same(mapped, wanted(dense(stack)))
  same(scanned, wanted(dense(stack)))
  np.testing.assert_allclose(whole, dense(stack), atol=5e-5)


def test_lengths_are_constants_to_the_gradient():
  w = leaf()
  v = ops.materialize(w.base) + w.scale * (w.a @ w.b)
  length = jnp.linalg.norm(v, axis=0)

  def closed(a, b, m):
    matrix = (ops.materialize(w.base) + w.scale * (a @ b)) * (m / length)[None]
    return jnp.sin(X @ matrix).sum()

  def ours(a, b, m):
    return jnp.sin(ops.dot(X, dataclasses.replace(w, a=a, b=b, m=m))).sum()

  got, want = (jax.jit(jax.grad(f, (0, 1, 2)))(w.a, w.b, w.m) for f in (ours, closed))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_no_product_makes_a_matrix_as_large_as_the_base():
  w = leaf()
  w = dataclasses.replace(w, base=w.base.base)

  def loss(a, b, m):
    return ops.dot(X, dataclasses.replace(w, a=a, b=b, m=m)).sum()

  program = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(w.a, w.b, w.m)
  made = [
    variable.aval.shape
    for line in program.eqns
    if line.primitive.name in ('dot_general', 'mul', 'add')
    for variable in line.outvars
  ]
  assert (R, OUT) in made and (IN, OUT) not in made


def test_the_backward_pass_keeps_one_array_as_wide_as_the_outputs():
  w = dataclasses.replace(leaf(), base=leaf().base.base)
  program = jax.make_jaxpr(lambda w: ops.dot(X, w))(w)
  kept = [line.outvars[0].aval.shape for line in program.eqns if line.primitive.name == 'name']
  assert sorted(kept) == sorted([(len(X), OUT), (R, OUT)])


def test_it_starts_as_the_base_in_any_dtype_and_with_columns_of_zeros():
  base = np.float32(RNG.normal(size=(L, IN, OUT)))
  base[1, :, 2] = 0
  params = {'w': jnp.asarray(base)}
  fresh = adapt.dora(KEY, params, R, select='w')['w']
  assert fresh.base is params['w']
  np.testing.assert_allclose(fresh.m, np.linalg.norm(base, axis=-2), rtol=1e-6)
  got, again = jax.jit(jax.vmap(lambda w: (ops.dot(X, w), ops.materialize(w))))(fresh)
  np.testing.assert_allclose(got, X @ base, atol=1e-5)
  np.testing.assert_allclose(again, base, atol=1e-6)
  low = dataclasses.replace(leaf(), base=jnp.bfloat16(leaf().base.base))
  x, y = jnp.bfloat16(X), jnp.bfloat16(Y)
  made = jax.eval_shape(
    lambda w: (ops.dot(x, w), ops.dot_transposed(y, w), ops.take(w, IDS), ops.materialize(w)), low
  )
  assert {z.dtype for z in made} == {jnp.dtype('bfloat16')}


def test_bad_input():
  params = {'w': jnp.ones((IN, OUT))}
  with pytest.raises(InputError, match='dora: rank is 6'):
    adapt.dora(KEY, params, 6, select='w')
  with pytest.raises(InputError, match='dora: alpha is 0'):
    adapt.dora(KEY, params, 2, 0, select='w')
  with pytest.raises(InputError, match='dora needs a matrix'):
    adapt.dora(KEY, {'b': jnp.ones(IN)}, 2, select='b')
