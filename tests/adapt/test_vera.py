"""VeRA: one frozen random pair for all weights, of which each trains two vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, ops, tree
from jaxtune.typing import InputError
from tests.adapt.leaves import check_products, check_scanned

L, IN, OUT, R = 3, 6, 5, 4
KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def leaf(lead=(), base=None, codes=False):
  base = normal(*lead, IN, OUT) if base is None else base
  a, b = normal(*lead, IN, R, seed=1), normal(*lead, R, OUT, seed=2)
  if codes:
    a, b = (jnp.asarray(jnp.round(30 * x), jnp.int8) for x in (a, b))
  scale = (normal(*lead, seed=5) + 2) / (900 if codes else 1)
  return adapt.VeRA(base, a, b, normal(*lead, R, seed=3), normal(*lead, OUT, seed=4), scale)


def dense(w):
  """Equation 2 of the paper, `W + diag(b) B diag(d) A` of column vectors, in float64."""
  if isinstance(w, adapt.IA3):
    return dense(w.base) * np.float64(w.l)[..., None, :]
  if not isinstance(w, adapt.VeRA):
    return np.float64(w)
  b, d, a, big = (np.float64(x) for x in (w.lambda_b, w.lambda_d, w.a, w.b))
  diag = np.vectorize(np.diag, signature='(n)->(n,n)')
  up = diag(b) @ big.swapaxes(-1, -2) @ diag(d) @ a.swapaxes(-1, -2)
  return dense(w.base) + np.float64(w.scale)[..., None, None] * up.swapaxes(-1, -2)


LEAVES = {
  'floats': leaf,
  'codes': lambda lead: leaf(lead, codes=True),
  'on IA3': lambda lead: leaf(lead, adapt.IA3(normal(*lead, IN, OUT), normal(*lead, OUT, seed=6))),
}
kinds = pytest.mark.parametrize('make', LEAVES.values(), ids=LEAVES)


@kinds
def test_products_are_those_of_the_dense_matrix(make):
  check_products(make(()), dense(make(())), 5e-5)


@kinds
def test_stacks_are_scanned_like_arrays(make):
  check_scanned(make((L,)), dense(make((L,))), 5e-5)


def test_bfloat16_stays():
  w = leaf(base=normal(IN, OUT).astype(jnp.bfloat16), codes=True)
  x, y = normal(4, IN).astype(jnp.bfloat16), normal(4, OUT).astype(jnp.bfloat16)
  assert ops.dot(x, w).dtype == ops.dot_transposed(y, w).dtype == jnp.bfloat16
  assert ops.take(w, np.arange(2)).dtype == ops.materialize(w).dtype == jnp.bfloat16
  np.testing.assert_allclose(ops.dot(x, w), np.float64(x) @ dense(w), rtol=0.05, atol=0.1)


def weights(**shapes):
  return {'encoder': {'0-2': {'attn': {n: normal(*shape) for n, shape in shapes.items()}}}}


PARAMS = weights(q=(L, 8, 8), k=(L, 8, 4), o=(L, 12, 8))  # the sides of A and B are 12 and 8


RANK = 200


@pytest.fixture(scope='module')
def leaves():
  return adapt.vera(KEY, PARAMS, RANK)['encoder']['0-2']['attn']


def test_all_weights_have_slices_of_one_pair(leaves):
  a, b = leaves['o'].a[0], leaves['q'].b[0]
  assert a.shape == (12, RANK) and b.shape == (RANK, 8)
  for w in leaves.values():
    inputs, outputs = w.shape[-2:]
    np.testing.assert_array_equal(w.a, np.stack(L * [np.asarray(a)[:inputs]]))
    np.testing.assert_array_equal(w.b, np.stack(L * [np.asarray(b)[:, :outputs]]))
    assert (w.lambda_d == jnp.float32(0.1)).all() and not w.lambda_b.any()
    assert w.scale.shape == (L,)
  other = adapt.vera(jax.random.key(1), PARAMS, RANK)['encoder']['0-2']['attn']
  assert not np.array_equal(other['o'].a, leaves['o'].a)


def test_the_pair_has_the_variance_of_kaimings_start_in_one_byte_a_number(leaves):
  """As PEFT: 2 / in for A, of the widest weight, and 2 / R for B."""
  w = leaves['o']
  product = np.float64(w.a[0]).std() * np.float64(w.b[0]).std() * w.scale[0]
  assert product == pytest.approx((2 / 12) ** 0.5 * (2 / RANK) ** 0.5, rel=0.05)
  assert w.a.dtype == w.b.dtype == jnp.int8
  assert np.abs(np.int32(w.a)).max() == 127 == np.abs(np.int32(w.b)).max()
  assert tree.size((w.a, w.b)) == L * RANK * (12 + 8)  # the forecast of the docstring


def test_the_first_product_is_the_base_models(leaves):
  w = jax.tree.map(lambda x: x[0], leaves['k'])
  x = normal(3, 8)
  np.testing.assert_array_equal(ops.dot(x, w), x @ w.base)


def test_only_the_vectors_and_a_head_are_trained():
  params = {'attn': {'q': jnp.ones((4, 6))}, 'head': {'dense': jnp.ones((4, 4))}}
  trainable, frozen = adapt.trainable(adapt.vera(KEY, params, 9))  # a rank above both sides
  q = trainable['attn']['q']
  assert q.base is None and q.a is None and q.b is None and q.scale is None
  assert tree.count(q) == 9 + 6 and trainable['head']['dense'] is not None
  assert frozen['attn']['q'].base is params['attn']['q']


def test_rules_may_choose_where_lambda_d_starts():
  rules = ((r'/q$', {'d_initial': 0.5}), (r'/k$', True), (r'', False))
  leaves = adapt.vera(KEY, PARAMS, R, select=rules)['encoder']['0-2']['attn']
  assert (leaves['q'].lambda_d == 0.5).all() and (leaves['k'].lambda_d < 0.2).all()
  assert leaves['o'] is PARAMS['encoder']['0-2']['attn']['o']
  assert leaves['q'].a.shape[-2] == 8  # sized by the chosen weights alone


@pytest.mark.parametrize(
  'options, words',
  [
    ({'rank': 0}, 'vera: rank is 0; it must be at least 1'),
    ({'d_initial': 0.0}, 'vera: d_initial is 0.0; it must be a positive number'),
    ({'select': 'bias'}, "vera needs a matrix, and 'encoder/0-2/attn/bias' has the shape"),
    ({'select': 'nothing'}, "vera: select 'nothing' matches no parameter"),
    ({'select': ((r'/q$', {'rank': 2}), (r'', False))}, 'its options are d_initial'),
  ],
)
def test_bad_input(options, words):
  with pytest.raises(InputError, match=words) as error:
    adapt.vera(KEY, weights(q=(L, 8, 8), bias=(L, 8)), **({'rank': 2} | options))
  assert '\n' not in str(error.value)
