"""LoKr leaves: a Kronecker product that is never made, wherever a weight is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, ops
from jaxtune.adapt.lokr import factorization
from jaxtune.typing import InputError
from tests.adapt.leaves import check_stack

L, R = 2, 2
IN, OUT = (2, 6), (3, 5)
KEY = jax.random.key(0)


def leaf(whole, lead=(), base=None, seed=0, inside=IN, outside=OUT):
  """`whole` names the factors that are not thin: '', '1', '2' or '12'."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

  fields = {}
  for n in '12':
    rows, columns = inside[int(n) - 1], outside[int(n) - 1]
    if n in whole:
      fields[f'w{n}'] = normal(rows, columns)
    else:
      fields |= {f'w{n}_a': normal(rows, R), f'w{n}_b': normal(R, columns)}
  if base is None:
    base = normal(inside[0] * inside[1], outside[0] * outside[1])
  return adapt.LoKr(base, normal() + 2, **fields)


def dense(w):
  """`W + scale W1 ⊗ W2` in float64, of each layer."""
  base = dense(w.base) if isinstance(w.base, adapt.LoKr) else np.float64(w.base)
  left, right = np.float64(w.left()), np.float64(w.right())
  if left.ndim == 2:
    return base + np.float64(w.scale) * np.kron(left, right)
  product = [s * np.kron(a, b) for s, a, b in zip(w.scale, left, right, strict=True)]
  return base + np.float64(product)


CASES = {
  'both thin': lambda: leaf('', (L,)),
  'first whole': lambda: leaf('1', (L,)),
  # The best place for W1 is before W2 here and behind it there.
  'both whole': lambda: leaf('12', (L,), inside=(2, 6), outside=(2, 9)),
  'both whole, wide in': lambda: leaf('12', (L,), inside=(9, 2), outside=(2, 2)),
  'over another': lambda: leaf('2', (L,), base=leaf('', (L,), seed=3)),
}


@pytest.mark.parametrize('name', CASES)
def test_products_are_those_of_the_dense_matrices(name):
  w = CASES[name]()
  check_stack(w, dense(w), 2e-4)


def test_the_forward_pass_costs_about_what_a_lora_does():
  side, rows, rank = 256, 64, 4
  x, w = jnp.ones((rows, side)), {'attn': {'q': jnp.ones((side, side))}}

  def flops(leaf):
    return jax.jit(ops.dot).lower(x, leaf).compile().cost_analysis()['flops']

  base = flops(w['attn']['q'])
  thin = flops(adapt.lokr(KEY, w, rank)['attn']['q']) - base
  whole = flops(adapt.lokr(KEY, w, side)['attn']['q']) - base
  lora = flops(adapt.lora(KEY, w, rank)['attn']['q']) - base
  assert thin < 2 * lora
  assert whole < 0.2 * base  # in1 = in2 = 16: a sixteenth for each of two factors


def test_bfloat16_stays():
  w = leaf('1', base=leaf('1').base.astype(jnp.bfloat16))
  x = jnp.ones((4, w.shape[0]), jnp.bfloat16)
  assert ops.dot(x, w).dtype == ops.materialize(w).dtype == jnp.bfloat16
  assert ops.take(w, np.arange(3)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'options, shapes',
  [
    # 16 = 4 x 4 and 24 = 4 x 6: W1 is 4x4 and W2 4x6.
    ({'rank': 2}, {'w1': (4, 4), 'w2_a': (4, 2), 'w2_b': (2, 6)}),
    ({'rank': 3}, {'w1': (4, 4), 'w2': (4, 6)}),
    ({'rank': 2, 'decompose_both': True}, {'w1': (4, 4), 'w2_a': (4, 2), 'w2_b': (2, 6)}),
    (
      {'rank': 1, 'decompose_both': True},
      {'w1_a': (4, 1), 'w1_b': (1, 4), 'w2_a': (4, 1), 'w2_b': (1, 6)},
    ),
    ({'rank': 2, 'decompose_factor': 2}, {'w1': (2, 2), 'w2_a': (8, 2), 'w2_b': (2, 12)}),
    ({'rank': 2, 'decompose_factor': 8}, {'w1': (8, 8), 'w2': (2, 3)}),
  ],
)
def test_which_factors_there_are(options, shapes):
  params = {'attn': {'q': jnp.ones((L, 16, 24))}}
  adapted = adapt.lokr(KEY, params, alpha=6, **options)
  q = adapted['attn']['q']
  trained = adapt.trainable(adapted)[0]['attn']['q']
  fields = {name: getattr(trained, name) for name in shapes}
  assert {name: x.shape for name, x in fields.items()} == {n: (L, *s) for n, s in shapes.items()}
  assert len(jax.tree.leaves(trained)) == len(shapes)
  np.testing.assert_array_equal(ops.materialize(q), params['attn']['q'])
  assert (q.scale == 6 / options['rank']).all()
  zero = [name for name, x in fields.items() if not x.any()]
  assert zero == ['w1_b' if 'w1_b' in shapes else 'w1']


def test_factorization():
  known = {(256, -1): (16, 16), (128, -1): (8, 16), (127, -1): (1, 127), (128, 4): (4, 32)}
  known |= {(12, 5): (3, 4), (15, 4): (3, 5), (128, 64): (64, 2), (4096, -1): (64, 64)}
  known |= {(11008, -1): (86, 128), (30, 4): (3, 10), (1, -1): (1, 1)}
  assert {case: factorization(*case) for case in known} == known


def test_bad_input():
  params = {'attn': {'q': jnp.ones((4, 4))}}
  with pytest.raises(InputError, match='lokr: rank is 0 for .*attn/q'):
    adapt.lokr(KEY, params, 0)
  with pytest.raises(InputError, match='lokr: alpha is 0'):
    adapt.lokr(KEY, params, 1, alpha=0)
  with pytest.raises(InputError, match='lokr: decompose_factor is 0 for'):
    adapt.lokr(KEY, params, 1, decompose_factor=0)
