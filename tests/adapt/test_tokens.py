"""Trained rows stand in for those of the table, wherever it is used, and alone have gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, ops, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
V, D = 7, 5
RNG = np.random.default_rng(2)
X, Y = np.float32(RNG.normal(size=(2, 4, V))), np.float32(RNG.normal(size=(2, 4, D)))
LOOKED_UP = np.array([[0, 1, 6, 6], [5, 4, 3, 0]])
TRAINED = (6, 0, 3)  # in any order


def moved(base, tokens=TRAINED):
  """`(leaf, dense float64 table)` of rows that are trained away from the base."""
  params = adapt.trainable_tokens(KEY, {'embed': {'tokens': base}}, tokens, also=None)
  leaf = params['embed']['tokens']
  rows = np.float32(RNG.normal(size=leaf.rows.shape))
  dense = np.float64(ops.materialize(base))
  dense[np.sort(tokens)] = rows
  return adapt.TrainableTokens(leaf.base, jnp.asarray(rows), leaf.ids), dense


def table(dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=(V, D)), dtype)


BASES = {
  'array': lambda: table(),
  'lora': lambda: adapt.LoRA(
    table(), jnp.asarray(RNG.normal(size=(V, 2))), jnp.ones((2, D)), jnp.asarray(0.5)
  ),
}


@pytest.mark.parametrize('base', BASES)
def test_products_are_those_of_the_table_with_the_rows_in_it(base):
  leaf, dense = moved(BASES[base]())

  def products(leaf):
    return (
      ops.dot(X, leaf),
      ops.dot_transposed(Y, leaf),
      ops.take(leaf, LOOKED_UP),
      ops.materialize(leaf),
    )

  got = jax.jit(products)(leaf)
  for a, b in zip(got, (X @ dense, Y @ dense.T, dense[LOOKED_UP], dense), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert leaf.shape == dense.shape


def test_the_gradient_is_that_of_the_rows_of_a_whole_table():
  leaf, dense = moved(table())

  def loss(take, dot):
    return (take**2).sum() + jnp.sin(dot).sum()

  def ours(rows):
    own = adapt.TrainableTokens(leaf.base, rows, leaf.ids)
    return loss(ops.take(own, LOOKED_UP), ops.dot_transposed(Y, own))

  def whole(table):
    return loss(table[LOOKED_UP], Y @ table.T)

  got, want = jax.jit(jax.grad(ours))(leaf.rows), jax.jit(jax.grad(whole))(jnp.float32(dense))
  np.testing.assert_allclose(got, want[np.sort(TRAINED)], atol=1e-4)


def test_they_start_as_they_are_and_types_stay():
  base = table(jnp.bfloat16)
  params = adapt.trainable_tokens(KEY, {'embed': {'tokens': base}}, TRAINED)
  leaf = params['embed']['tokens']
  assert leaf.base is base and leaf.rows.dtype == jnp.float32 and leaf.ids.dtype == jnp.int32
  np.testing.assert_array_equal(leaf.ids, [0, 3, 6])
  np.testing.assert_array_equal(leaf.materialize(), base)
  np.testing.assert_array_equal(ops.take(leaf, LOOKED_UP), base[LOOKED_UP])
  low = (ops.dot(jnp.bfloat16(X), leaf), ops.dot_transposed(jnp.bfloat16(Y), leaf))
  assert {x.dtype for x in (*low, ops.take(leaf, LOOKED_UP))} == {jnp.dtype('bfloat16')}
  assert adapt.merge(params)['embed']['tokens'].dtype == jnp.bfloat16


def test_they_train_beside_another_method_and_their_ids_never():
  shapes = models.decoder(models.DecoderConfig(vocabulary=V, width=8, layers=1, heads=2)).shapes()
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  both = adapt.trainable_tokens(KEY, adapt.lora(KEY, params, 2, select='attn/q$'), range(2))
  trainable, frozen = adapt.trainable(both)
  names = {path.rpartition('/')[2] for path in tree.paths(trainable)}
  assert names == {'a', 'b', 'rows'}
  assert frozen['embed']['tokens'].ids is not None
  with pytest.raises(InputError, match="'embed/tokens/ids' trainable, but its type int32"):
    adapt.trainable(adapt.full(KEY, both))


@pytest.mark.parametrize(
  'tokens, words',
  [
    ([1, V], 'token 7 has no row among the 7; add rows with models.resize'),
    ([-1], 'token -1 has no row'),
    ([1, 2, 1], 'token 1 is given twice'),
    ([], 'tokens is empty'),
    ([0.5], r'tokens is \[0.5\]; give a list of token ids'),
    (['a'], 'give a list of token ids'),
  ],
)
def test_ids_that_cannot_be(tokens, words):
  with pytest.raises(InputError, match=words):
    adapt.trainable_tokens(KEY, {'embed': {'tokens': table()}}, tokens)


def test_only_tables():
  with pytest.raises(InputError, match=r"needs a table \[V, D\], and 'norm/scale' has .*\(5,\)"):
    adapt.trainable_tokens(KEY, {'norm': {'scale': jnp.ones(5)}}, [1], select='norm')
