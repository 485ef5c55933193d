"""Encoded state: the codec's error, whole chains against NumPy, and states that stay themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune.optim.codecs import Blocks, bfloat16, dynamic_8bit
from jaxtune.optim.describe import state_bytes, state_sharding
from jaxtune.optim.quantize import BFLOAT16, EIGHT_BIT, adamw_8bit, quantize_state
from jaxtune.typing import InputError

KEY = jax.random.key(0)
BOUND = {True: 0.00704, False: 0.00352}
SIGNS = pytest.mark.parametrize('signed', [True, False], ids=['signed', 'unsigned'])


def numbers(seed, dtype=jnp.float32):
  """A stack and a matrix that are encoded, a stack of norms and a bias that are not, and a hole."""
  rng = np.random.default_rng(seed)
  shapes = {'w': (2, 8, 600), 'scale': (2, 3000), 'embed': (16, 512), 'bias': (100,)}
  x = {k: jnp.asarray(rng.standard_normal(s) * 0.1, dtype) for k, s in shapes.items()}
  return {
    'decoder': {'0-1': {'w': x['w'], 'norm': {'scale': x['scale'], 'frozen': None}}},
    'embed': x['embed'],
    'bias': x['bias'],
  }


def stepper(tx):
  def step(params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  return step


def run(tx, params, gradients):
  step, state = jax.jit(stepper(tx)), tx.init(params)
  for g in gradients:
    params, state = step(params, state, g)
  return params, state


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


# The codec.


def book_from_the_paper(signed):
  """Dynamic tree quantization read off its bits (arXiv 2110.02861, section 2.2), in float64.

  A byte is a sign (or none), e zeros, an indicator bit 1, and a fraction in the bits that are left:
  10^-e times one of 2^(bits) equal steps from 0.1 to 1, taken at their centres. The pattern with
  no indicator is zero; its neighbour that the sign of zero leaves over is 1.
  """
  width = 7 if signed else 8
  values = {0.0, 1.0}
  for pattern in range(1, 2**width):
    fraction = pattern.bit_length() - 1
    exponent = width - 1 - fraction
    if exponent > 6:
      continue  # of the unsigned: the smallest decade would have a single number
    share = (pattern - 2**fraction + 0.5) / 2**fraction
    values.add(10.0**-exponent * (0.1 + 0.9 * share))
  return np.array(sorted(values | ({-v for v in values if v < 1} if signed else set())))


def code_book(signed):
  codes = jnp.arange(256, dtype=jnp.uint8)
  return np.asarray(dynamic_8bit(signed).decode(Blocks(codes, jnp.ones(1))))


@SIGNS
def test_the_code_book_is_that_of_the_paper(signed):
  book = code_book(signed)
  np.testing.assert_allclose(book, book_from_the_paper(signed), rtol=1e-6)
  # As bitsandbytes 0.50.2 prints them.
  ends = [-0.99296875, 5.5e-7] if signed else [0, 3.25e-7]
  np.testing.assert_allclose(book[[0, 128 if signed else 1]], ends, rtol=1e-6)


@SIGNS
def test_every_code_survives(signed):
  codec, codes = dynamic_8bit(signed), np.arange(256, dtype=np.uint8)
  again = codec.encode(codec.decode(Blocks(codes, jnp.full((1,), 0.3))), KEY)
  np.testing.assert_array_equal(again.codes, codes)
  assert again.codes.dtype == jnp.uint8


@functools.cache
def coded(signed, block):
  codec = dynamic_8bit(signed, block)
  return jax.jit(lambda x: (codec.encode(x, KEY), codec.decode(codec.encode(x, KEY))))


def per_element(scales, n, block):
  return np.repeat(scales, min(block, n), axis=-1)[..., :n]


real = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
small = st.builds(lambda m, e: float(np.float32(m * 10.0**e)), st.floats(-1, 1), st.integers(-9, 0))
shapes = st.sampled_from([(1,), (7,), (3, 5), (2, 3, 16)])


@SIGNS
@settings(deadline=None, derandomize=True, max_examples=60)
@given(x=shapes.flatmap(lambda s: hnp.arrays(np.float32, s, elements=real | small)))
def test_the_error_is_bounded_and_the_code_is_the_nearest(signed, x):
  x = np.where(np.abs(x) < 1e-30, 0, x)  # no quotient below the normal numbers
  x = x if signed else np.abs(x)
  stored, back = coded(signed, 4)(x)
  assert stored.codes.shape == x.shape == back.shape
  assert stored.scales.shape == (*x.shape[:-1], -(-x.shape[-1] // 4))
  scale = per_element(np.asarray(stored.scales, np.float64), x.shape[-1], 4)
  error = np.abs(np.asarray(back, np.float64) - x)
  assert np.all(error <= BOUND[signed] * scale)
  book = book_from_the_paper(signed)
  least = np.min(np.abs(book * scale[..., None] - x[..., None].astype(np.float64)), -1)
  assert np.all(error <= least + 1e-6 * scale)


@SIGNS
def test_zeros_stay_zero_and_what_is_not_finite_is_never_made_finite(signed):
  x = np.ones((5, 4), np.float32)
  x[0], x[1, 2], x[2, 1], x[3, 0] = 0, np.inf, np.nan, -np.inf
  stored, back = coded(signed, 4)(x)
  np.testing.assert_array_equal(back, [[0] * 4, *[[np.nan] * 4] * 3, [1] * 4])
  np.testing.assert_array_equal(stored.scales[0], 0)


def test_a_block_is_a_piece_of_the_last_axis():
  x = np.asarray(numbers(0)['decoder']['0-1']['w'])
  scales = coded(True, 256)(x)[0].scales
  parts = [x[..., :256], x[..., 256:512], x[..., 512:]]
  np.testing.assert_array_equal(scales, np.stack([np.abs(p).max(-1) for p in parts], -1))


def test_bfloat16_is_off_by_less_than_a_unit():
  x, codec = numbers(0)['embed'], bfloat16()
  back = codec.decode(codec.encode(x, KEY))
  assert back.dtype == jnp.float32
  assert np.all(np.abs(back - x) < 2.0**-7 * np.abs(x))


@pytest.mark.parametrize('block', [0, 1.5, True])
def test_a_block_that_is_no_size(block):
  with pytest.raises(InputError, match='block of the 8-bit codec is'):
    dynamic_8bit(block=block)


# Whole chains.


def numpy_code(x, signed):
  """bitsandbytes' rule: blocks of 256, absolute maximum, nearest in the book; back in float32."""
  book = book_from_the_paper(signed).astype(np.float32)
  blocks = x.reshape(-1, 256)
  scale = np.abs(blocks).max(-1, keepdims=True)
  place = blocks / scale
  middles = ((book[1:].astype(np.float64) + book[:-1]) / 2).astype(np.float32)
  return (book[np.searchsorted(middles, place, side='right')] * scale).reshape(x.shape)


def test_adamw_8bit_is_twenty_steps_of_numpy():
  """Against AdamW with bitsandbytes' codec, written in NumPy from the paper.

  Arithmetic is float32 there too. Still, of 160,000 numbers encoded, one or two lie so near the
  middle between two codes that rounding gives them the other one, 0.7% of the block's maximum away.
  """
  rate, b1, b2, eps, decay = (np.float32(v) for v in (1e-2, 0.9, 0.999, 1e-8, 0.1))
  rng = np.random.default_rng(3)
  theta = rng.standard_normal((8, 512)).astype(np.float32)
  scale = 10.0 ** rng.uniform(-4, 0, (8, 1))  # rows far apart, as gradients are
  gradients = [(scale * rng.standard_normal((8, 512))).astype(np.float32) for _ in range(20)]
  tx = adamw_8bit(1e-2, 0.9, 0.999, 1e-8, weight_decay=0.1)
  ours, state = run(tx, {'w': jnp.asarray(theta)}, [{'w': jnp.asarray(g)} for g in gradients])
  m, v = np.zeros_like(theta), np.zeros_like(theta)
  for t, g in enumerate(gradients, 1):
    m = b1 * m + np.float32(1 - 0.9) * g
    v = b2 * v + np.float32(1 - 0.999) * g**2
    hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
    theta = (theta - rate * (hat[0] / (np.sqrt(hat[1]) + eps) + decay * theta)).astype(np.float32)
    m, v = numpy_code(m, True), numpy_code(v, False)
  apart = np.abs(ours['w'] - theta)
  assert np.sum(apart > 2e-6) <= 4 and np.max(apart) < 1e-3
  held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Blocks))
  mu, nu = (x for x in held if isinstance(x, Blocks))
  for held, truth, signed in ((mu, m, True), (nu, v, False)):
    apart = np.abs(dynamic_8bit(signed).decode(held) / np.where(truth == 0, 1, truth) - 1)
    assert np.mean(apart < 1e-5) > 0.999


def test_two_bytes_a_parameter():
  params = {'decoder': {'0-3': {'w': jnp.zeros((4, 256, 1024)), 'scale': jnp.zeros((4, 256))}}}
  count = sum(x.size for x in jax.tree.leaves(params))
  assert state_bytes(adamw_8bit(1e-3), params) <= 2.06 * count
  assert state_bytes(optax.adamw(1e-3), params) >= 8 * count
  half = quantize_state(optax.scale_by_adam(), BFLOAT16)
  assert state_bytes(half, params) <= 4.03 * count


def moments(tx, params):
  inner = jax.eval_shape(tx.init, params).inner
  return inner.mu, inner.nu


def test_small_leaves_and_small_layers_of_a_stack_stay_float32():
  mu, nu = moments(quantize_state(optax.scale_by_adam()), numbers(0))
  for moment in (mu, nu):
    layers = moment['decoder']['0-1']
    assert isinstance(layers['w'], Blocks) and isinstance(moment['embed'], Blocks)
    assert layers['w'].codes.shape == (2, 8, 600) and layers['w'].scales.shape == (2, 8, 3)
    assert layers['norm']['scale'].dtype == moment['bias'].dtype == jnp.float32
    assert layers['norm']['frozen'] is None
  # The two layers of norms have 6,000 elements together: as one leaf they would be encoded.
  mu, _ = moments(quantize_state(optax.scale_by_adam(), axes=[('', 0)]), numbers(0))
  assert isinstance(mu['decoder']['0-1']['norm']['scale'], Blocks)


def test_second_moments_are_unsigned_even_where_a_parameter_is_named_like_one():
  """A first moment encoded without its sign would be silently wrong."""
  params = {'nu': jnp.zeros((8, 512))}
  tx = quantize_state(optax.scale_by_adam(b1=0.0))
  gradient = {'nu': -jnp.ones((8, 512))}
  _, state = tx.update(gradient, tx.init(params))
  np.testing.assert_allclose(
    dynamic_8bit(True).decode(state.inner.mu['nu']), -1, rtol=0, atol=BOUND[True]
  )
  np.testing.assert_allclose(dynamic_8bit(False).decode(state.inner.nu['nu']), 1e-3, rtol=1e-5)


def test_copies_of_parameters_are_left_alone():
  inner = optax.contrib.schedule_free_adamw(1e-3)
  params = {'w': jnp.full((8, 512), 0.123456)}
  state = quantize_state(inner).init(params).inner
  held = [x for x in jax.tree.leaves(state) if x.shape == (8, 512) and x.dtype == jnp.float32]
  assert len(held) == 1
  np.testing.assert_array_equal(held[0], params['w'])


def test_square_bases_and_factors_are_left_alone():
  """They have the shape of a square parameter, and do not bear the error of 8 bits."""
  params = {'w': jnp.zeros((64, 64))}
  state = {'bases': params, 'factors': {'w': (params['w'], params['w'])}, 'mu': params}
  tx = quantize_state(optax.GradientTransformation(lambda p: state, lambda u, s, p: (u, s)))
  kept = jax.eval_shape(tx.init, params).inner
  assert {x.dtype for x in jax.tree.leaves((kept['bases'], kept['factors']))} == {
    jnp.dtype('float32')
  }
  assert isinstance(kept['mu']['w'], Blocks)


def test_a_table_of_ones_own():
  codecs = [('mu$', None), ('nu$', bfloat16())]
  mu, nu = moments(quantize_state(optax.scale_by_adam(), codecs), numbers(0))
  assert (mu['embed'].dtype, nu['embed'].dtype) == (jnp.float32, jnp.bfloat16)
  with pytest.raises(InputError, match="no rule covers the parameter 'nu'"):
    quantize_state(optax.scale_by_adam(), [('mu$', None)]).init(numbers(0))


def test_a_bfloat16_second_moment_does_not_stall():
  """Rounded to nearest it stops at 1/8 here: 0.001 * (1 - nu) is less than half a unit of it."""
  params = {'w': jnp.zeros((8, 512))}
  steps, rule = 400, optax.scale_by_adam()
  gradient = {'w': jnp.ones((8, 512))}

  def last(tx):
    state = jax.jit(
      lambda: jax.lax.fori_loop(
        0, steps, lambda _, s: tx.update(gradient, s, params)[1], tx.init(params)
      )
    )()
    return np.asarray(state.inner.nu['w'], np.float64)

  nearest = bfloat16()._replace(encode=lambda x, key: x.astype(jnp.bfloat16))
  truth = 1 - 0.999**steps
  stalled, moving = (last(quantize_state(rule, codec)) for codec in ([('', nearest)], BFLOAT16))
  assert np.all(stalled < 0.8 * truth)
  # 4096 draws of a deviation below one unit of 2^-9 a step, over the memory of 400 steps.
  np.testing.assert_allclose(moving.mean(), truth, rtol=3e-3)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_the_rule_sees_the_dtypes_that_it_keeps(dtype):
  with jax.enable_x64(dtype == 'float64'):
    params = numbers(0, dtype)
    wanted = jnp.promote_types(dtype, jnp.float32)
    seen = []

    def update(updates, state, params=None):
      seen.extend(x.dtype for x in jax.tree.leaves(state))
      return updates, state

    tx = quantize_state(
      optax.GradientTransformation(lambda p: jax.tree.map(lambda x: x.astype(wanted), p), update)
    )
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    assert set(seen) == {wanted}


@pytest.mark.slow
def test_jit_is_eager_and_scan_is_a_loop():
  tx, params = adamw_8bit(1e-2), numbers(0)
  gradients = [numbers(i) for i in (1, 2, 3)]
  looped = run(tx, params, gradients)
  xs = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
  scanned = jax.lax.scan(lambda c, g: (stepper(tx)(*c, g), None), (params, tx.init(params)), xs)[0]
  eager = params, tx.init(params)
  for g in gradients:
    eager = stepper(tx)(*eager, g)
  for other in (scanned[0], eager[0]):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), other, looped[0])
  assert jax.tree.map(lambda x: (x.shape, x.dtype), scanned) == jax.tree.map(
    lambda x: (x.shape, x.dtype), looped
  )


@pytest.mark.slow
def test_a_stack_is_its_layers_and_lanes_are_runs():
  """A row alike: blocks never cross the axes before the last."""
  tx, params = adamw_8bit(1e-2), numbers(0)
  gradients = [numbers(i) for i in (1, 2, 3)]
  whole, _ = run(tx, params, gradients)

  def unstacked(t):
    layers = t['decoder']['0-1']
    each = {str(i): jax.tree.map(lambda x, i=i: x[i], layers) for i in range(2)}
    return {**t, 'decoder': each}

  apart, _ = run(tx, unstacked(params), [unstacked(g) for g in gradients])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), unstacked(whole), apart
  )
  lanes = jax.tree.map(lambda *x: jnp.stack(x), params, numbers(9))

  def lane(p):
    carry = p, tx.init(p)
    for g in gradients:
      carry = stepper(tx)(*carry, g)
    return carry[0]

  many = jax.jit(jax.vmap(lane))(lanes)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=0, atol=1e-6), many, whole)


@pytest.mark.parametrize('codec', [EIGHT_BIT, BFLOAT16], ids=['8-bit', 'bfloat16'])
def test_sharded_is_unsharded_and_the_state_lies_like_the_parameters(codec):
  tx = quantize_state(optax.scale_by_adam(), codec)
  params = numbers(0)
  gradients = [numbers(i) for i in (1, 2, 3)]
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
  rows, columns = P(None, 'fsdp', None), P(None, 'fsdp')
  specs = {
    'decoder': {'0-1': {'w': rows, 'norm': {'scale': columns, 'frozen': None}}},
    'embed': columns,
    'bias': P(),
  }
  places = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
  states = state_sharding(tx, params, places)
  alone = run(tx, params, gradients)
  step = jax.jit(stepper(tx), out_shardings=(places, states), donate_argnums=(0, 1))
  carry = jax.device_put(params, places), jax.jit(tx.init, out_shardings=states)(params)
  for g in gradients:
    carry = step(*carry, jax.device_put(g, places))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), carry[0], alone[0])
  if codec is EIGHT_BIT:
    w = carry[1].inner.nu['decoder']['0-1']['w']
    assert w.codes.addressable_shards[0].data.shape == (2, 2, 600)
    assert w.scales.addressable_shards[0].data.shape == (2, 2, 3)
    assert carry[1].inner.mu['embed'].codes.addressable_shards[0].data.shape == (16, 128)


@pytest.mark.parametrize('codec', [EIGHT_BIT, BFLOAT16], ids=['8-bit', 'bfloat16'])
def test_a_state_comes_back_from_a_checkpoint_bit_for_bit(codec, tmp_path):
  tx = quantize_state(optax.scale_by_adam(), codec)
  _, state = run(tx, numbers(0), [numbers(1), numbers(2)])
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', {'opt': state})
    checkpointer.wait_until_finished()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {'opt': tx.init(numbers(0))})
    back = checkpointer.restore(tmp_path / 'state', target)['opt']
  assert_equal(back, state)


def test_a_rate_of_zero_changes_nothing_and_zero_gradients_make_no_nan():
  params = numbers(0)
  new, state = run(adamw_8bit(0.0), params, [jax.tree.map(jnp.zeros_like, params), numbers(1)])
  assert_equal(new, params)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


def test_holes_and_empty_trees():
  tx = adamw_8bit(1e-2)
  for empty in ({}, {'a': None}, {'a': optax.MaskedNode()}):
    assert tx.update(empty, tx.init(empty), empty)[0] == empty
