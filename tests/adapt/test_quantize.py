"""Quantized weights: the codes of bitsandbytes, used as the dense matrix they stand for."""

import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, interop, losses, models, ops, optim, train, tree
from jaxtune.adapt import Quantized, quantize_matrix
from jaxtune.typing import InputError

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'quantize.npz')
KEY = jax.random.key(0)
KINDS = pytest.mark.parametrize('kind', adapt.KINDS)
BOOKS = {
  'int4': np.arange(-7, 8) / 7,
  'int8': np.arange(-127, 128) / 127,
}  # fmt: skip


dense = jax.jit(ops.materialize)


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def book(kind):
  if kind != 'nf4':
    return BOOKS[kind]
  codes = jnp.arange(0, 256, 17, dtype=jnp.uint8)[None]  # both halves of a byte alike
  ones = jnp.ones((1, 16))
  return np.float64(dense(Quantized(codes, ones, None, None, 'nf4', 2, 2, -2, 'float32'))[0])


def test_the_numbers_of_nf4():
  """Quantiles of a normal distribution, as appendix E of the paper prints them."""
  paper = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
    -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725
    0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941
    0.7229568362236023 1.0"""
  np.testing.assert_array_equal(book('nf4'), np.array(paper.split(), np.float32))


def test_codes_are_those_of_bitsandbytes():
  """Ties go to the lower number; a block of zeros stays zeros."""
  w = GOLDEN['w']
  made = quantize_matrix(w, 'nf4', double=False)
  np.testing.assert_array_equal(made.codes, GOLDEN['nf4_codes'])
  np.testing.assert_array_equal(made.scales, GOLDEN['nf4_scales'])
  np.testing.assert_array_equal(dense(made), GOLDEN['nf4_dense'])
  assert not dense(made)[64:, 3].any()
  made = quantize_matrix(w, 'nf4')
  np.testing.assert_array_equal(made.codes, GOLDEN['double_codes'])
  np.testing.assert_array_equal(made.scales, GOLDEN['double_scales'])
  np.testing.assert_allclose(made.offset, GOLDEN['double_offset'], rtol=1e-6)
  np.testing.assert_allclose(made.scale_maxima, GOLDEN['double_scale_maxima'], rtol=1e-6)
  np.testing.assert_allclose(dense(made), GOLDEN['double_dense'], rtol=2e-6, atol=1e-7)
  made = quantize_matrix(w, 'int8', block=1000, double=False)
  np.testing.assert_array_equal(made.codes, GOLDEN['int8_codes'])
  np.testing.assert_array_equal(made.scales, GOLDEN['int8_scales'])


@KINDS
@pytest.mark.parametrize('axis', [-2, -1])
def test_every_number_is_the_nearest(kind, axis):
  """Blocks run along one axis; the last one is shorter."""
  w = random(3, 11, 7)
  made = quantize_matrix(w, kind, 4, double=False, axis=axis)
  assert made.shape == w.shape and made.scales.shape == ((3, 3, 7) if axis == -2 else (3, 11, 2))
  values, whole = np.float64(w), np.asarray(dense(made))
  size = w.shape[axis]
  for start in range(0, size, 4):
    part = np.take(values, range(start, min(start + 4, size)), axis)
    scale = np.abs(part).max(axis, keepdims=True)
    apart = np.abs(part[..., None] - scale[..., None] * book(kind)).min(-1)
    found = np.take(whole, range(start, min(start + 4, size)), axis)
    np.testing.assert_allclose(np.abs(found - part), apart, atol=1e-6)


def test_a_stack_is_its_matrices():
  w = random(2, 3, 11, 7)
  made, one = quantize_matrix(w, block=4), quantize_matrix(w[1, 2], block=4)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1, 2], b), made, one)


def test_double_quantization_costs_little():
  w = random(2, 128, 48)
  once, twice = (quantize_matrix(w, 'nf4', double=double) for double in (False, True))
  np.testing.assert_array_equal(once.codes, twice.codes)
  scale, again = np.asarray(dense(once)), np.asarray(dense(twice))
  spread = np.abs(np.asarray(once.scales) - np.mean(once.scales, (1, 2), keepdims=True)).max()
  assert np.abs(scale - again).max() <= 0.0071 * spread + 1e-6


@pytest.mark.parametrize('kind, axis', [('nf4', -2), ('nf4', -1), ('int4', -1), ('int8', -2)])
def test_products_are_those_of_the_dense_matrix(kind, axis):
  made = quantize_matrix(random(2, 9, 7), kind, 4, axis=axis)
  x, y, ids = random(2, 3, 9, seed=1), random(2, 3, 7, seed=1), jnp.array([[0, 8, 3]])

  @jax.jit
  @jax.vmap
  def products(w, x, y):
    return ops.materialize(w), ops.dot(x, w), ops.dot_transposed(y, w), ops.take(w, ids)

  whole, dot, back, rows = map(np.asarray, products(made, x, y))
  np.testing.assert_allclose(dot, x @ whole, atol=1e-5)
  np.testing.assert_allclose(back, y @ whole.swapaxes(1, 2), atol=1e-5)
  np.testing.assert_array_equal(rows, whole[:, ids])


def test_the_type_of_the_weight_is_kept():
  w = quantize_matrix(random(4, 4).astype(jnp.bfloat16))
  assert dense(w).dtype == jnp.bfloat16
  assert jax.eval_shape(ops.dot, jnp.ones((1, 4), jnp.float32), w).dtype == jnp.float32


def test_what_is_no_number_shows():
  w = np.asarray(random(4, 4)).copy()
  w[0, 0] = np.nan
  found = np.asarray(dense(quantize_matrix(w, double=False, block=2)))
  assert np.isnan(found[:2, 0]).all() and np.isfinite(found[2:]).all()


def compiled(layers, change):
  """A train step of LoRA over the changed parameters of a decoder, from shapes alone.

  Returns:
    its memory; the bytes of its arguments without the state; all and the frozen parameters.
  """
  config = models.DecoderConfig(
    vocabulary=256, width=128, hidden=192, layers=layers, heads=2, kv_heads=1
  )
  model, rule = models.build(config), optim.create('adamw', 1e-3)

  def make():
    base = change(model.init(KEY))
    trainable, frozen = adapt.trainable(adapt.lora(KEY, base, rank=2, also=None))
    return base, frozen, train.init_state(trainable, rule, KEY)

  base, frozen, state = jax.eval_shape(make)
  batch = {'tokens': jax.ShapeDtypeStruct((2, 8), jnp.int32)}
  step = jax.jit(train.make_step(losses.causal_lm(model), rule), donate_argnums=0)
  memory = step.lower(state, frozen, batch).compile().memory_analysis()
  arrays = [x for x in jax.tree.leaves((state, batch)) if x.dtype != state.key.dtype]
  return memory, memory.argument_size_in_bytes - tree.size(arrays), base, frozen


ALL = rf'{adapt.LINEAR}|^embed/tokens$'


def test_a_step_holds_a_quarter_of_the_bytes():
  """The contract: at most 0.31 of bfloat16 for NF4 with double quantization, embeddings and all."""

  def change(params):
    return adapt.quantize(KEY, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), ALL)

  _, held, base, frozen = compiled(1, change)
  assert held == pytest.approx(tree.size(frozen), abs=256)  # the key; small arguments are padded
  weights = dict(tree.named_weights(base))
  chosen = [w for path, w in weights.items() if re.search(ALL, path)]
  assert tree.size(chosen) < 0.2605 * sum(2 * math.prod(w.shape) for w in chosen)
  assert held < 0.27 * sum(2 * math.prod(w.shape) for w in weights.values()) + 256


@pytest.mark.slow
@KINDS
def test_dense_matrices_do_not_outlive_their_layer(kind):
  """The step needs hardly more room than over plain float32: no dense stack is kept for backward,
  and XLA unpacks no stack ahead of the loop."""
  plain, *_ = compiled(4, lambda params: params)
  found, *_ = compiled(4, lambda params: adapt.quantize(KEY, params, ALL, kind=kind))
  one = 4 * 256 * 128  # the embeddings in float32, the largest
  assert found.temp_size_in_bytes < plain.temp_size_in_bytes + 2 * one


def params():
  layer = {name: random(2, 8, 6) for name in 'qkv'}
  return {
    'decoder': {'0-1': {'attn': layer, 'mlp': {'up': random(2, 8, 6)}}},
    'embed': {'tokens': random(8, 6)},
    'norm': {'scale': random(6)},
  }


def test_rules_stay_and_codes_cannot_train():
  plain = adapt.quantize(KEY, params())
  assert not isinstance(plain, adapt.Adapted)
  merged = jax.jit(adapt.merge)(plain)
  assert tree.difference(merged, params()) is None
  lora = adapt.lora(KEY, params(), rank=2, also=None)
  after = adapt.quantize(KEY, lora, ALL, kind='int8')
  assert after.rules == lora.rules
  q = after['decoder']['0-1']['attn']['q']
  assert isinstance(q, adapt.LoRA) and isinstance(q.base, Quantized) and q.base.kind == 'int8'
  before = adapt.lora(KEY, adapt.quantize(KEY, params(), ALL, kind='int8'), rank=2, also=None)
  jax.tree.map(np.testing.assert_array_equal, after, before)
  with pytest.raises(InputError, match='uint8 has no gradient; freeze it, or adapt it'):
    adapt.trainable(adapt.full(KEY, plain))


def test_rules_choose_kinds():
  rules = ((r'mlp/', {'kind': 'int8', 'double': False}), (r'attn/[qk]$', True), (r'', False))
  layer = adapt.quantize(KEY, params(), rules)['decoder']['0-1']
  assert layer['mlp']['up'].kind == 'int8' and layer['mlp']['up'].offset is None
  assert layer['attn']['q'].kind == 'nf4' and layer['attn']['q'].axis == -2
  assert isinstance(layer['attn']['v'], jax.Array)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'kind': 'nf3'}, "kind is 'nf3'; choose one of nf4, int4, int8"),
    ({'block': 0}, 'block is 0; give a whole number of at least 1'),
    ({'select': r'norm/scale$'}, 'quantize needs a matrix'),
    ({'select': r'nothing'}, 'matches no parameter'),
    ({'select': ((r'', {'bits': 4}),)}, 'its options are kind, block, double'),
  ],
)
def test_bad_input(options, message):
  with pytest.raises(InputError, match=re.escape(message)) as error:
    adapt.quantize(KEY, params(), **options)
  assert '\n' not in str(error.value)


def test_a_second_time_is_refused():
  once = adapt.quantize(KEY, params())
  with pytest.raises(InputError, match='is quantized already'):
    adapt.quantize(KEY, once)


def test_scales_are_cut_as_their_blocks():
  base = adapt.quantize(KEY, params(), ALL)
  q = ops.axes(base['decoder']['0-1']['attn']['q'], ('layers', 'embed', 'heads'))
  assert q.codes == ('layers', 'embed?', 'heads') == q.scales
  assert q.scale_maxima == ('layers', None) and q.offset == ('layers',)
  assert ops.axes(base['embed']['tokens'], ('vocab', 'embed')).scales == ('vocab', 'embed?')


@pytest.mark.slow
def test_a_real_decoder(smollm2):
  """What 4 bits cost a small model, and that 8 bits cost nothing; tied embeddings too."""
  model, params = interop.load(smollm2, dtype='float32')
  text = 'It is a truth universally acknowledged, that a single man in possession of a good fortune'
  ids = np.array([interop.load_tokenizer(smollm2).encode(text).ids], np.int32)
  apply = jax.jit(model.apply)
  want = np.asarray(apply(params, ids))
  apart = {}
  for kind in adapt.KINDS:
    found = np.asarray(apply(adapt.quantize(KEY, params, ALL, kind=kind), ids))
    apart[kind] = np.linalg.norm(found - want) / np.linalg.norm(want)
  assert apart['int8'] < 0.05 and apart['nf4'] < 0.5
