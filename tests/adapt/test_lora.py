"""LoRA leaves: a no-op at first, then exactly the merged matrix, wherever a weight is used."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, ops, tree
from jaxtune.typing import InputError

L, IN, OUT, R = 3, 6, 5, 2
KEY = jax.random.key(0)


def leaf(lead=(), base=None, seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

  return adapt.LoRA(
    normal(IN, OUT) if base is None else base, normal(IN, R), normal(R, OUT), normal() + 2
  )


def dense(w):
  """`W + scale A B` in float64."""
  base = dense(w.base) if isinstance(w.base, adapt.LoRA) else np.float64(w.base)
  return base + np.float64(w.scale)[..., None, None] * (np.float64(w.a) @ np.float64(w.b))


def inputs(*lead):
  rng = np.random.default_rng(9)
  x, y = rng.normal(size=(*lead, IN)), rng.normal(size=(*lead, OUT))
  return np.float32(x), np.float32(y), rng.integers(0, IN, lead)


LEAVES = {'one': lambda lead: leaf(lead), 'nested': lambda lead: leaf(lead, leaf(lead, seed=1))}
nestings = pytest.mark.parametrize('make', LEAVES.values(), ids=LEAVES)


@nestings
def test_products_are_those_of_the_dense_matrix(make):
  w, matrix = make(()), dense(make(()))
  x, y, ids = inputs(2, 4)
  np.testing.assert_allclose(ops.dot(x, w), x @ matrix, atol=2e-5)
  np.testing.assert_allclose(ops.dot_transposed(y, w), y @ matrix.T, atol=2e-5)
  np.testing.assert_allclose(ops.take(w, ids), matrix[ids], atol=2e-5)
  np.testing.assert_allclose(ops.materialize(w), matrix, atol=2e-5)
  assert w.shape == matrix.shape


@nestings
@pytest.mark.parametrize('through', ['scan', 'vmap'])
def test_stacks_are_taken_apart_like_arrays(make, through):
  w, matrices = make((L,)), dense(make((L,)))
  assert w.shape == (L, IN, OUT)
  np.testing.assert_allclose(ops.materialize(w), matrices, atol=2e-5)
  x, y, ids = inputs(4)

  def products(w):
    return ops.dot(x, w), ops.dot_transposed(y, w), ops.take(w, ids)

  if through == 'vmap':
    got = jax.vmap(products)(w)
  else:
    got = jax.lax.scan(lambda carry, w: (carry, products(w)), None, w)[1]
  want = (x @ matrices, y @ matrices.swapaxes(-1, -2), matrices[:, ids])
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_lanes_of_adapters_share_an_unbatched_base():
  w, lanes = leaf(), leaf((L,), seed=4)
  x, _, _ = inputs(4)
  axes = adapt.LoRA(None, 0, 0, 0)
  got = jax.vmap(ops.dot, in_axes=(None, axes))(x, adapt.LoRA(w.base, *fields(lanes)))
  want = [x @ dense(adapt.LoRA(w.base, *(f[n] for f in fields(lanes)))) for n in range(L)]
  np.testing.assert_allclose(got, want, atol=2e-5)


def fields(w):
  return w.a, w.b, w.scale


def test_bfloat16_stays():
  x, y, ids = inputs(4)
  low = adapt.LoRA(leaf().base.astype(jnp.bfloat16), *fields(leaf()))
  x, y = jnp.bfloat16(x), jnp.bfloat16(y)
  assert ops.dot(x, low).dtype == jnp.bfloat16
  assert ops.dot_transposed(y, low).dtype == jnp.bfloat16
  assert ops.take(low, ids).dtype == jnp.bfloat16
  assert ops.materialize(low).dtype == jnp.bfloat16
  fresh = adapt.lora(KEY, {'attn': {'q': low.base}}, R)['attn']['q']
  assert fresh.base is low.base
  assert {fresh.a.dtype, fresh.b.dtype, fresh.scale.dtype} == {jnp.dtype('float32')}


MODEL = models.build(
  models.DecoderConfig(
    vocabulary=20, width=8, hidden=12, layers=2, heads=2, kv_heads=1, head_width=4, init_scale=0.3
  )
)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(3)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), MODEL.shapes()
  )


def moved(params, seed=0):
  """Every B away from zero."""
  rng = np.random.default_rng(seed)

  def move(path, w):
    if not isinstance(w, adapt.LoRA):
      return w
    b = jnp.asarray(rng.normal(0, 0.2, w.b.shape), jnp.float32)
    return adapt.LoRA(w.base, w.a, b, w.scale)

  return tree.map_weights(move, params)


def test_the_first_forward_pass_is_the_base_models(params):
  adapted = adapt.lora(KEY, params, R, select='attn/|mlp/|embed')
  tokens = np.arange(6)[None]
  apply = jax.jit(MODEL.apply)
  want = apply(params, tokens)
  np.testing.assert_allclose(apply(adapted, tokens), want, atol=1e-5 * np.abs(want).max())
  tuned = moved(adapted)
  merged = apply(adapt.merge(tuned), tokens)
  assert np.abs(merged - want).max() > 0.1
  np.testing.assert_allclose(apply(tuned, tokens), merged, atol=1e-4 * np.abs(merged).max())


def test_all_matrices_of_the_layers_are_wrapped_by_default(params):
  adapted = adapt.lora(KEY, params, R)
  wrapped = {path for path, w in tree.named_weights(adapted) if isinstance(w, adapt.LoRA)}
  assert wrapped == {
    *(f'decoder/0-1/attn/{name}' for name in 'qkvo'),
    *(f'decoder/0-1/mlp/{name}' for name in ('gate', 'up', 'down')),
  }
  q = adapted['decoder']['0-1']['attn']['q']
  assert q.a.shape == (2, 8, R) and q.b.shape == (2, R, 8) and q.scale.shape == (2,)
  assert (q.scale == 32 / R).all() and not q.b.any()
  bound = 8**-0.5
  assert np.abs(q.a).max() <= bound and np.abs(q.a).max() > 0.8 * bound
  encoder = models.encoder(models.EncoderConfig(layers=1)).shapes()
  matched = {path for path, _ in tree.named_weights(encoder) if re.search(adapt.LINEAR, path)}
  assert matched == {
    *(f'encoder/0-0/attn/{name}' for name in 'qkvo'),
    *('encoder/0-0/mlp/up', 'encoder/0-0/mlp/down', 'pooler/dense'),
  }


def test_alpha_is_divided_by_the_rank(params):
  w = adapt.lora(KEY, params, 4, alpha=6, select='attn/q')['decoder']['0-1']['attn']['q']
  assert (w.scale == 1.5).all()


def test_adding_a_target_changes_no_other_matrix(params):
  few = adapt.lora(KEY, params, R, select='attn/q$')['decoder']['0-1']['attn']
  more = adapt.lora(KEY, params, R, select='attn/[kqv]$')['decoder']['0-1']['attn']
  np.testing.assert_array_equal(few['q'].a, more['q'].a)
  assert not np.array_equal(more['q'].a, more['k'].a[..., :R])
  assert not np.array_equal(more['k'].a, more['v'].a)
  assert not np.array_equal(more['k'].a[0], more['k'].a[1])
  other = adapt.lora(jax.random.key(1), params, R, select='attn/q$')
  assert not np.array_equal(other['decoder']['0-1']['attn']['q'].a, few['q'].a)


def test_only_a_and_b_and_a_head_are_trained():
  params = {'attn': {'q': jnp.ones((4, 4))}, 'head': {'dense': jnp.ones((4, 4))}}
  trainable, frozen = adapt.trainable(adapt.lora(KEY, params, 1))
  assert trainable['head']['dense'] is params['head']['dense']
  q = trainable['attn']['q']
  assert q.base is None and q.scale is None and q.a.shape == (4, 1) and q.b.shape == (1, 4)
  assert frozen['attn']['q'].base is params['attn']['q']
  trainable, _ = adapt.trainable(adapt.lora(KEY, params, 1, also=None))
  assert trainable['head']['dense'] is None


def test_a_wrapped_head_trains_its_adapter_alone():
  params = {'head': {'dense': jnp.ones((4, 4)), 'dense_bias': jnp.ones(4)}}
  trainable, _ = adapt.trainable(adapt.lora(KEY, params, 1, select='head/dense$'))
  dense = trainable['head']['dense']
  assert dense.base is None and dense.scale is None and dense.a is not None
  assert trainable['head']['dense_bias'] is params['head']['dense_bias']


def test_lora_over_lora_trains_the_outer_one(params):
  once = moved(adapt.lora(KEY, params, R, select='attn/q$'))
  twice = adapt.lora(jax.random.key(1), once, 3, select='attn/q$')
  trainable, _ = adapt.trainable(twice)
  q = trainable['decoder']['0-1']['attn']['q']
  assert q.a.shape == (2, 8, 3)
  assert jax.tree.leaves(q.base) == [] and q.scale is None
  merged = adapt.merge(moved(twice, seed=1))['decoder']['0-1']['attn']['q']
  want = dense(moved(twice, seed=1)['decoder']['0-1']['attn']['q'])
  np.testing.assert_allclose(merged, want, atol=1e-5)


def test_merge_is_materialize_and_leaves_the_rest(params):
  tuned = moved(adapt.lora(KEY, params, R, select='attn/q$'))
  merged = adapt.merge(tuned)
  assert jax.tree.structure(merged) == jax.tree.structure(dict(params))
  w = tuned['decoder']['0-1']['attn']['q']
  np.testing.assert_array_equal(merged['decoder']['0-1']['attn']['q'], ops.materialize(w))
  assert merged['embed']['tokens'] is params['embed']['tokens']


def test_merge_rounds_once():
  """In bfloat16, rounding the product before the sum would be off by more than half a step."""
  w = leaf()
  low = adapt.LoRA(w.base.astype(jnp.bfloat16), *fields(w))
  merged = adapt.merge({'w': low})['w']
  assert merged.dtype == jnp.bfloat16
  want = dense(low)
  spacing = 2.0 ** (np.floor(np.log2(np.abs(want))) - 7)
  assert (np.abs(np.float64(merged) - want) <= 0.501 * spacing).all()


def test_a_rank_that_does_not_fit_is_refused(params):
  with pytest.raises(InputError, match=r'lora: rank is 5, but .*attn/k. is a 8x4.*from 1 to 4'):
    adapt.lora(KEY, params, 5)
  for rank in (0, -1):
    with pytest.raises(InputError, match=f'lora: rank is {rank}, but '):
      adapt.lora(KEY, params, rank)


@pytest.mark.parametrize('alpha', [0, -1.0, float('nan'), float('inf')])
def test_an_alpha_that_is_not_positive_is_refused(params, alpha):
  with pytest.raises(InputError, match='lora: alpha is .*; it must be a positive number'):
    adapt.lora(KEY, params, R, alpha)


def test_targets_without_a_match_are_refused_with_those_there_are(params):
  with pytest.raises(InputError, match="'q_proj' matches no parameter; the matrices are .*attn/q"):
    adapt.lora(KEY, params, R, select='q_proj')


def test_vectors_are_refused_even_where_a_stack_of_them_looks_like_a_matrix(params):
  with pytest.raises(InputError, match=r"needs a matrix, and 'norm/scale' has the shape \(8,\)"):
    adapt.lora(KEY, params, R, select='^norm')
  with pytest.raises(InputError, match=r"'decoder/0-1/attn_norm/scale' has the shape \(2, 8\)"):
    adapt.lora(KEY, params, R, select='attn')


def test_shapes_are_enough():
  adapted = jax.eval_shape(lambda p: adapt.lora(KEY, p, R), MODEL.shapes())
  assert adapted['decoder']['0-1']['mlp']['up'].b.shape == (2, R, 12)
