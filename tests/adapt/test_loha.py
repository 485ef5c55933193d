"""LoHa leaves: the entrywise product of two thin products, wherever a weight is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, ops
from jaxtune.typing import InputError
from tests.adapt.leaves import check_stack

L, IN, OUT, R = 2, 6, 5, 2
KEY = jax.random.key(0)


def leaf(lead=(), base=None, seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

  sides = [normal(IN, R), normal(R, OUT), normal(IN, R), normal(R, OUT)]
  return adapt.LoHa(normal(IN, OUT) if base is None else base, *sides, normal() + 2)


def dense(w):
  base = dense(w.base) if isinstance(w.base, adapt.LoHa) else np.float64(w.base)
  a1, b1, a2, b2 = map(np.float64, (w.a1, w.b1, w.a2, w.b2))
  return base + np.float64(w.scale)[..., None, None] * ((a1 @ b1) * (a2 @ b2))


@pytest.mark.parametrize('nested', [False, True])
def test_products_are_those_of_the_dense_matrices(nested):
  """Also in a stack, of which scan takes one layer after the other."""
  w = leaf((L,), leaf((L,), seed=1) if nested else None)
  check_stack(w, dense(w), 1e-4)


def test_the_update_has_the_square_of_the_rank():
  w = leaf()
  values = np.linalg.svd(dense(w) - np.float64(w.base), compute_uv=False)
  assert (values > 1e-6).sum() == R * R


def test_nothing_of_the_matrixs_size_is_kept_for_the_backward_pass():
  w, x = leaf(), jnp.ones((4, IN))
  _, back = jax.vjp(lambda a1, x: ops.dot(x, adapt.LoHa(w.base, a1, w.b1, w.a2, w.b2, w.scale)),
                    w.a1, x)  # fmt: skip
  kept = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, 'shape', ()) == (IN, OUT)]
  assert len(kept) <= 1  # the base, for the gradient of x


def test_bfloat16_stays_and_rounds_no_small_update_away():
  w, x = leaf(base=leaf().base.astype(jnp.bfloat16)), jnp.ones((4, IN), jnp.bfloat16)
  assert ops.dot(x, w).dtype == ops.materialize(w).dtype == jnp.bfloat16
  assert ops.take(w, np.arange(3)).dtype == jnp.bfloat16
  w = leaf(base=jnp.full((IN, OUT), 64, jnp.bfloat16))
  w = adapt.LoHa(w.base, w.a1, w.b1, w.a2, w.b2, w.scale / 100)
  x = jnp.zeros((1, IN), jnp.bfloat16).at[0, :2].set(jnp.array([1, -1]))  # the base cancels
  update = (dense(w) - 64)[0] - (dense(w) - 64)[1]
  np.testing.assert_allclose(np.float32(ops.dot(x, w))[0], update, atol=0.02 * abs(update).max())


def test_starts_as_the_base_and_trains_four_factors():
  params = {'attn': {'q': jnp.ones((L, 16, 4))}, 'head': {'dense': jnp.ones((4, 4))}}
  adapted = adapt.loha(KEY, params, R, alpha=6, select='attn/')
  q = adapted['attn']['q']
  np.testing.assert_array_equal(ops.materialize(q), params['attn']['q'])
  assert (q.scale == 3).all() and not q.a2.any()
  for field, bound in ((q.a1, 16**-0.5), (q.b1, R**-0.5), (q.b2, R**-0.5)):
    assert 0.7 * bound < np.abs(field).max() <= bound
  trained = adapt.trainable(adapted)[0]
  assert [x.shape for x in jax.tree.leaves(trained['attn'])] == [(L, 16, R), (L, R, 4)] * 2
  assert trained['head']['dense'] is not None


def test_bad_input():
  params = {'attn': {'q': jnp.ones((4, 4))}}
  with pytest.raises(InputError, match='loha: rank is 5, but .*attn/q. is a 4x4'):
    adapt.loha(KEY, params, 5)
  with pytest.raises(InputError, match='loha: alpha is -1'):
    adapt.loha(KEY, params, 1, alpha=-1)
