"""Starts of LoRA: the weight as it was, factors of the papers; rsLoRA's scale; dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, losses, models, ops, optim, train, tree
from jaxtune.typing import InputError

L, IN, OUT, R = 3, 7, 5, 2
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
STACK = RNG.normal(size=(L, IN, OUT))
PARAMS = {'d': {'0-2': {'attn': {'q': jnp.asarray(STACK, jnp.float32)}}}}


def started(start, rank=R, alpha=3.0, params=PARAMS, **options):
  """The leaf of the one weight."""
  made = adapt.lora(KEY, params, rank, alpha, start=start, select='q$', **options)
  return made['d']['0-2']['attn']['q']


def product(leaf):
  return np.float64(leaf.scale)[..., None, None] * (np.float64(leaf.a) @ np.float64(leaf.b))


def best(matrix, rank):
  """The nearest matrix of that rank (Eckart and Young)."""
  u, s, v = np.linalg.svd(matrix, full_matrices=False)
  return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]


@pytest.mark.parametrize('start', ['kaiming', 'gaussian', 'pissa', 'pissa_niter_2', 'olora'])
def test_every_start_is_the_weight_as_it_was(start):
  leaf = started(start)
  np.testing.assert_allclose(ops.materialize(leaf), STACK, atol=2e-6)
  assert leaf.a.shape == (L, IN, R) and leaf.b.shape == (L, R, OUT)
  changed = isinstance(leaf.base, adapt.Residual)
  assert changed == (start not in ('kaiming', 'gaussian')) == bool(leaf.b.any())
  if changed:
    np.testing.assert_array_equal(leaf.a, leaf.base.a0)
    np.testing.assert_array_equal(leaf.b, leaf.base.b0)


@pytest.mark.parametrize('start', ['pissa', 'pissa_niter_9'])
def test_pissa_takes_the_largest_singular_values(start):
  leaf = started(start)
  np.testing.assert_allclose(product(leaf), best(STACK, R), atol=1e-5)
  np.testing.assert_allclose(leaf.base.base, STACK - best(STACK, R), atol=1e-5)
  values = np.linalg.svd(STACK, compute_uv=False)[:, :R] / 1.5  # alpha / R
  np.testing.assert_allclose((leaf.a**2).sum(1), values, rtol=1e-4)  # columns of A, rows of B
  np.testing.assert_allclose((leaf.b**2).sum(2), values, rtol=1e-4)


def test_a_sketch_of_a_larger_matrix_finds_nearly_the_best():
  w = np.float32(RNG.normal(size=(2, 60, 40)) / (1 + np.arange(40)))
  got = started('pissa_niter_4', rank=3, params={'d': {'0-2': {'attn': {'q': jnp.asarray(w)}}}})
  np.testing.assert_allclose(product(got), best(w, 3), atol=1e-3 * np.abs(w).max())


def test_olora_is_the_qr_decomposition_of_the_transpose():
  leaf = started('olora')
  for w, a, b in zip(STACK, np.float64(leaf.a), np.float64(leaf.b), strict=True):
    q, r = np.linalg.qr(w.T)
    np.testing.assert_allclose(a @ b, (q[:, :R] @ r[:R]).T, atol=1e-5)
    np.testing.assert_allclose(b @ b.T, np.eye(R), atol=1e-5)
    # The first R inputs go through the adapter alone; the base keeps nothing of them.
    np.testing.assert_allclose((a @ b)[:R], w[:R], atol=1e-5)


def test_loftq_quantizes_the_base():
  leaf = jax.eval_shape(lambda: started('loftq_int8'))
  assert isinstance(leaf, adapt.LoRA) and isinstance(leaf.base, adapt.Residual)
  assert leaf.base.base.kind == 'int8' and leaf.base.base.dtype == jnp.float32
  assert leaf.shape == leaf.base.shape == (L, IN, OUT)
  assert leaf.a.shape == leaf.base.a0.shape == (L, IN, R)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['nf4', 'int4'])
def test_loftq_takes_turns_and_comes_nearer_than_rounding(kind):
  leaf = started(f'loftq_{kind}', alpha=7.0)
  q, product_ = None, np.zeros_like(STACK)
  for _ in range(5):  # algorithm 1
    q = adapt.quantize_matrix(jnp.asarray(STACK - product_, jnp.float32), kind)
    product_ = best(STACK - np.float64(ops.materialize(q)), R)
  np.testing.assert_allclose(ops.materialize(leaf.base), ops.materialize(q), atol=1e-5)
  np.testing.assert_allclose(product(leaf), product_, atol=1e-4)
  rounded = ops.materialize(adapt.quantize_matrix(jnp.asarray(STACK, jnp.float32), kind))
  error, before = ops.materialize(leaf) - STACK, rounded - STACK
  assert np.linalg.norm(error) < 0.8 * np.linalg.norm(before)


def test_the_pissa_base_can_be_quantized_after():
  def make():
    return adapt.quantize(KEY, adapt.lora(KEY, PARAMS, R, start='pissa', select='q$'), 'q$')

  small = jax.eval_shape(make)
  leaf = small['d']['0-2']['attn']['q']
  assert isinstance(leaf.base, adapt.Residual) and isinstance(leaf.base.base, adapt.Quantized)
  assert tree.paths(adapt.trainable(small)[0]) == ['d/0-2/attn/q/a', 'd/0-2/attn/q/b']


@pytest.mark.slow
def test_a_quantized_residual_is_nearer_than_a_quantized_weight():
  w = jnp.asarray(STACK + 5, jnp.float32)
  small = adapt.quantize(KEY, adapt.lora(KEY, {'q': w}, R, start='pissa', select='q$'), 'q$')
  error = np.linalg.norm(ops.materialize(small['q']) - w)
  assert error < 0.5 * np.linalg.norm(ops.materialize(adapt.quantize_matrix(w)) - w)


def test_gaussian_is_that_of_peft():
  params = {'d': {'0-2': {'attn': {'q': jnp.zeros((2, 400, 30))}}}}
  a = np.asarray(started('gaussian', rank=20, params=params).a)
  assert abs(a.std() * 20 - 1) < 0.02 and abs(a.mean()) < 1e-3


def test_rslora_divides_by_the_root_of_the_rank():
  select = (('q$', {'rank': 4, 'rslora': True, 'start': 'pissa'}), ('', False))
  leaf = adapt.lora(KEY, PARAMS, R, 3.0, select=select)['d']['0-2']['attn']['q']
  np.testing.assert_allclose(leaf.scale, 3 / 2)
  np.testing.assert_allclose(ops.materialize(leaf), STACK, atol=2e-6)
  np.testing.assert_allclose(product(leaf), best(STACK, 4), atol=1e-5)


def test_a_residual_multiplies_as_its_base_and_keeps_its_type():
  w, scale = jnp.asarray(STACK[0], jnp.bfloat16), jnp.float32(1)
  a, b = jnp.ones((IN, R)), jnp.ones((R, OUT))
  leaf = adapt.LoRA(adapt.Residual(w, a, b), a, b, scale)
  x, y, ids = jnp.bfloat16(RNG.normal(size=(4, IN))), jnp.ones((4, OUT)), jnp.array([1, 3])
  assert leaf.base.base.dtype == ops.dot(x, leaf).dtype == jnp.bfloat16
  assert adapt.merge({'w': leaf})['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(ops.dot(x, leaf.base), ops.dot(x, leaf.base.base))
  matrix = np.float32(leaf.base.base)
  np.testing.assert_allclose(ops.dot_transposed(y, leaf.base), y @ matrix.T, rtol=1e-5)
  np.testing.assert_array_equal(ops.take(leaf.base, ids), leaf.base.base[ids])
  axes = leaf.axes(('embed', 'heads'))
  assert axes.base.base == ('embed', 'heads') and axes.base.a0 == ('embed', None)


def test_rules_of_pairs_see_the_trained_pair_alone():
  trainable, _ = adapt.trainable(adapt.lora(KEY, PARAMS, R, start='olora', select='q$'))
  assert tree.paths(trainable) == ['d/0-2/attn/q/a', 'd/0-2/attn/q/b']
  assert optim.find_pairs(trainable) == [(0, 1)]


@pytest.mark.parametrize(
  'options, words',
  [
    ({'start': 'xavier'}, "start is 'xavier'; known: kaiming, gaussian, pissa"),
    ({'start': 'pissa_niter_'}, "start is 'pissa_niter_'"),
    ({'start': 'eva'}, "start 'eva' needs data; call .*adapt.eva"),
    ({'rank': 6, 'start': 'pissa'}, 'rank is 6, but .*d/0-2/attn/q. is a 7x5 matrix'),
    ({'dropout': 1.0}, 'dropout is 1.0; it must be from 0 to below 1'),
    ({'dropout': -0.1}, 'dropout is -0.1'),
  ],
)
def test_bad_options_are_refused(options, words):
  with pytest.raises(InputError, match=f'lora: {words}') as error:
    adapt.lora(KEY, PARAMS, select='q$', **{'rank': R, **options})
  assert '\n' not in str(error.value)


def test_a_start_that_changes_the_weight_needs_a_plain_one():
  for leaf in (adapt.lora(KEY, PARAMS, R, select='q$'), adapt.quantize(KEY, PARAMS, 'q$')):
    with pytest.raises(InputError, match="start 'olora' changes the weight.*'d/0-2/attn/q' is a"):
      adapt.lora(KEY, leaf, R, start='olora', select='q$')


# Dropout.


def test_dropout_is_on_the_inputs_of_a_and_only_with_a_key():
  leaf = started('kaiming', dropout=0.4)
  leaf = jax.tree.map(lambda x: x[1], leaf)
  leaf = adapt.DroppedLoRA(leaf.base, leaf.a, leaf.b + 1, leaf.scale, leaf.dropout)
  x = np.float32(RNG.normal(size=(3, IN)))
  plain = ops.dot(x, adapt.LoRA(leaf.base, leaf.a, leaf.b, leaf.scale))
  np.testing.assert_array_equal(ops.dot(x, leaf), plain)
  key = jax.random.key(5)
  kept = np.where(jax.random.bernoulli(key, 0.6, x.shape), x / 0.6, 0)
  want = x @ leaf.base + leaf.scale * (kept @ leaf.a @ leaf.b)
  np.testing.assert_allclose(ops.dot(x, adapt.DroppedLoRA(*fields(leaf), key)), want, atol=1e-5)
  keys = jax.random.split(key, 4000)
  many = jax.vmap(lambda k: ops.dot(x, adapt.DroppedLoRA(*fields(leaf), k)))(keys)
  error = np.asarray(many).std(0) / len(many) ** 0.5
  assert (np.abs(many.mean(0) - plain) < 5 * error).all()


def fields(leaf):
  return leaf.base, leaf.a, leaf.b, leaf.scale, leaf.dropout


def test_every_weight_and_layer_has_its_own_key():
  layer = {'q': jnp.ones((L, IN, IN)), 'k': jnp.ones((L, 2, IN, IN))}
  made = adapt.lora(KEY, {'d': {'0-2': {'attn': layer}}}, R, dropout=0.1)
  assert adapt.with_key(made, None) is made
  keyed = adapt.with_key(made, KEY)
  assert keyed.rules == made.rules and tree.difference(made, adapt.lora(
    KEY, {'d': {'0-2': {'attn': layer}}}, R, dropout=0.1)) is None  # fmt: skip
  q, k = keyed['d']['0-2']['attn']['q'].key, keyed['d']['0-2']['attn']['k'].key
  assert q.shape == (L,) and k.shape == (L, 2)
  bits = np.concatenate([jax.random.key_data(x).reshape(-1, 2) for x in (q, k)])
  assert len({tuple(row) for row in bits}) == 3 * L
  nested = adapt.with_key(adapt.lora(KEY, made, R), KEY)['d']['0-2']['attn']['q']
  assert type(nested) is adapt.LoRA and nested.base.key.shape == (L,)


def test_whole_matrices_cannot_drop():
  made = adapt.with_key(adapt.lora(KEY, PARAMS, R, dropout=0.5, select='q$'), KEY)
  with pytest.raises(InputError, match='dropout of LoRA needs a built-in model'):
    ops.materialize_all(made)


def body(params, x):
  """Two matrices a layer, scanned; the second sees what the first made."""

  def layer(x, w):
    return jnp.tanh(ops.dot(jnp.tanh(ops.dot(x, w['q'])), w['o'])) + x, None

  return jax.lax.scan(layer, x, params['d']['0-2']['attn'])[0]


ATTENTION = {'q': jnp.asarray(STACK / 3), 'o': jnp.asarray(STACK.swapaxes(1, 2) / 3)}


@pytest.mark.parametrize('accumulate', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_drops_and_an_evaluation_does_not(accumulate):
  made = adapt.lora(KEY, {'d': {'0-2': {'attn': ATTENTION}}}, R, dropout=0.5)
  made = jax.tree.map(lambda x: x + 0.1, made)
  trainable, frozen = adapt.trainable(made)

  def objective(params, batch, key):
    return losses.Loss((body(params, batch['x']) ** 2).sum(), jnp.float32(1), {})

  optimizer = optax.sgd(0.1)
  step = jax.jit(train.make_step(objective, optimizer, accumulate=accumulate))
  batch = {'x': np.float32(RNG.normal(size=(4, IN)))}

  def loss(seed):
    state = train.init_state(trainable, optimizer, jax.random.key(seed))
    return float(step(state, frozen, batch)[1]['loss'])

  assert loss(0) == loss(0) != loss(1)
  evaluation, _ = train.make_evaluation(objective)(trainable, frozen, batch)
  assert float(evaluation.total) == float(objective(made, batch, None).total)


# EVA.


class Rows(dict):
  """What an objective returns, of which only the total is asked."""

  total = property(lambda self: self['total'])


def inputs_of(attn, x):
  """`(inputs of q, inputs of o)` of every layer, in float64."""
  seen = []
  for q, o in zip(np.float64(attn['q']), np.float64(attn['o']), strict=True):
    inner = np.tanh(x @ q)
    seen.append((x, inner))
    x = np.tanh(inner @ o) + x
  return [np.stack(each) for each in zip(*seen, strict=True)]


@pytest.mark.parametrize('passes', [None, pytest.param(8, marks=pytest.mark.slow)])
def test_eva_starts_from_the_singular_vectors_of_the_inputs(passes):
  made = adapt.lora(KEY, {'d': {'0-2': {'attn': ATTENTION}}}, R)
  scales = np.array([5, 3, 1, 0.3, 0.2, 0.1, 0.1])
  batches = [np.float32(RNG.normal(size=(6, IN)) * scales) for _ in range(3)]

  def objective(params, batch, key):
    assert key is None
    weight = jnp.arange(6)[:, None] < 4  # the other rows are padding
    return Rows(total=(body(params, batch) * weight * jnp.arange(IN)[None]).sum())

  got = adapt.eva(KEY, made, objective, batches, passes=passes)
  assert got.rules == made.rules
  seen = [inputs_of(ATTENTION, np.float64(x)[:4]) for x in batches]
  for name, all_inputs in zip('qo', map(np.concatenate, zip(*seen, strict=True)), strict=True):
    all_inputs = np.concatenate(all_inputs.reshape(3, L, 4, -1), axis=1)  # [L, N, in]
    right = np.linalg.svd(all_inputs)[2][:, :R]
    a = got['d']['0-2']['attn'][name].a
    cosines = np.abs(np.einsum('lri,lir->lr', right, a))
    np.testing.assert_allclose(cosines, 1, atol=1e-4 if passes is None else 1e-2)
    assert not got['d']['0-2']['attn'][name].b.any()


@pytest.mark.slow
def test_eva_leaves_padding_out_on_a_model():
  model = models.build(
    models.DecoderConfig(vocabulary=11, width=8, hidden=8, layers=2, heads=2, init_scale=0.3)
  )
  params = model.init(jax.random.key(1))

  def batch(width=5):
    mask = np.arange(width)[None] < np.array([[5], [3]])
    tokens = np.pad(np.random.default_rng(1).integers(1, 11, (2, 5)), ((0, 0), (0, width - 5)))
    return {'tokens': np.where(mask, tokens, 0), 'mask': mask}

  made = adapt.lora(KEY, params, R, select='attn/[qv]$|mlp/down$')
  objective = losses.causal_lm(model)
  short = adapt.eva(KEY, made, objective, [batch()])
  long = adapt.eva(KEY, made, objective, [batch(8)])
  path = ('decoder', '0-1', 'mlp', 'down')
  one, other = (functools.reduce(dict.__getitem__, path, dict(p)).a for p in (short, long))
  np.testing.assert_allclose(
    np.abs(one.mT @ other), np.broadcast_to(np.eye(R), (2, R, R)), atol=1e-3
  )
  np.testing.assert_allclose(one.mT @ one, np.broadcast_to(np.eye(R), (2, R, R)), atol=1e-5)


def test_eva_says_what_it_cannot_start():
  def objective(params, batch, key):
    return Rows(total=ops.dot(batch, ops.materialize(params['d']['0-2']['attn']['q'])).sum())

  x = [np.ones((2, IN), np.float32)]
  plain = adapt.lora(KEY, PARAMS, R, select='q$')
  with pytest.raises(InputError, match='eva: there is no LoRA'):
    adapt.eva(KEY, adapt.full(KEY, PARAMS), objective, x)
  with pytest.raises(InputError, match='eva: there are no batches'):
    adapt.eva(KEY, plain, objective, [])
  with pytest.raises(InputError, match='trained already, or has another start'):
    adapt.eva(KEY, adapt.lora(KEY, PARAMS, R, start='pissa', select='q$'), objective, x)
  with pytest.raises(InputError, match='this module takes whole matrices'):
    adapt.eva(KEY, plain, objective, x)
  embedding = adapt.lora(KEY, {'embed': {'tokens': jnp.ones((4, 4))}}, 2, select='embed')
  with pytest.raises(InputError, match="'embed/tokens' is an embedding"):
    adapt.eva(KEY, embedding, objective, x)
