"""QK-clip beside NumPy in float64, and what it promises of the attention logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import models
from jaxtune.adapt import lora
from jaxtune.adapt import trainable as trainable_of
from jaxtune.models.query_key import query_key_maxima
from jaxtune.optim.muon import muon
from jaxtune.optim.qk_clip import muonclip, qk_clip
from jaxtune.typing import InputError

LAYERS, WIDTH, HEADS, HEAD = 2, 5, 4, 3
BLOCK = 'encoder/0-1/attn'


def numbers(seed, kv_heads, dtype=np.float64):
  rng = np.random.default_rng(seed)
  shapes = {
    'q': (LAYERS, WIDTH, HEADS * HEAD),
    'q_bias': (LAYERS, HEADS * HEAD),
    'k': (LAYERS, WIDTH, kv_heads * HEAD),
    'k_bias': (LAYERS, kv_heads * HEAD),
    'v': (LAYERS, WIDTH, kv_heads * HEAD),
  }
  attn = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
  return {'encoder': {'0-1': {'attn': attn, 'frozen': None}}, 'head': np.ones((2, 2), dtype)}


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
def test_20_steps_are_algorithm_1(kv_heads):
  """Clipped after the step, head by head: both by the root, shared keys not at all."""
  params = numbers(0, kv_heads)
  maxima = np.random.default_rng(1).uniform(-50, 250, (20, LAYERS, HEADS))
  with jax.enable_x64(True):
    tx = optax.chain(optax.scale_by_learning_rate(0.1), qk_clip(100.0))
    got, state = jax.tree.map(jnp.asarray, params), tx.init(params)

    @jax.jit
    def step(params, state, gradient, maxima):
      updates, state = tx.update(gradient, state, params, query_key_maxima={BLOCK: maxima})
      return optax.apply_updates(params, updates), state

    want = jax.tree.map(np.copy, params)
    for t in range(20):
      gradient = numbers(t + 2, kv_heads)
      got, state = step(got, state, gradient, maxima[t])
      want = jax.tree.map(lambda p, g: p - 0.1 * g, want, gradient)
      attn = want['encoder']['0-1']['attn']
      for layer in range(LAYERS):
        for head in range(HEADS):
          largest = maxima[t, layer, head]
          if largest > 100:
            own = slice(head * HEAD, (head + 1) * HEAD)
            gamma = 100 / largest
            for name in ('q', 'q_bias'):
              attn[name][layer, ..., own] *= gamma**0.5 if kv_heads == HEADS else gamma
            for name in ('k', 'k_bias') if kv_heads == HEADS else ():
              attn[name][layer, ..., own] *= gamma**0.5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, want)


def test_muonclip_is_muon_and_then_the_clip():
  """20 steps: Muon's own from the same weights, then the clip in NumPy."""
  params = numbers(0, 2, np.float32)
  maxima = np.random.default_rng(1).uniform(0, 250, (20, LAYERS, HEADS)).astype(np.float32)
  clipped, plain = muonclip(0.02, 100.0, 0.9), muon(0.02, 0.9, nesterov=False)

  def step(tx, params, state, gradient, **extra):
    updates, state = tx.update(gradient, state, params, **extra)
    return optax.apply_updates(params, updates), state

  ours = jax.jit(lambda p, s, g, m: step(clipped, p, s, g, query_key_maxima={BLOCK: m}))
  theirs = jax.jit(lambda p, s, g: step(plain, p, s, g))
  got, state, reference = params, clipped.init(params), plain.init(params)
  for t in range(20):
    want, reference = theirs(got, reference, numbers(t + 2, 2, np.float32))
    got, state = ours(got, state, numbers(t + 2, 2, np.float32), maxima[t])
    gamma = np.repeat(100 / np.maximum(maxima[t], 100), HEAD, axis=1)
    attn = want['encoder']['0-1']['attn']
    attn['q'], attn['q_bias'] = attn['q'] * gamma[:, None], attn['q_bias'] * gamma
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def decoder(kv_heads):
  config = models.DecoderConfig(
    vocabulary=11, width=8, hidden=4, layers=1, heads=4, kv_heads=kv_heads, head_width=4
  )
  model = models.decoder(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), model.shapes())
  return model, params


@pytest.fixture(scope='module', params=[4, 2], ids=['own keys', 'shared keys'])
def clipped(request):
  """`(scale, threshold) -> maxima before and after` a step without an update."""
  model, params = decoder(request.param)
  tokens = np.random.default_rng(1).integers(0, 11, (3, 9))

  @jax.jit
  def run(scale, threshold):
    attn = params['decoder']['0-0']['attn']
    layer = {**params['decoder']['0-0'], 'attn': {**attn, 'q': attn['q'] * scale}}
    scaled = {**params, 'decoder': {'0-0': layer}}
    before = query_key_maxima(model, scaled, {'tokens': tokens})
    tx = qk_clip(threshold)
    zeros = optax.tree.zeros_like(scaled)
    updates, _ = tx.update(zeros, tx.init(scaled), scaled, query_key_maxima=before)
    after = query_key_maxima(model, optax.apply_updates(scaled, updates), {'tokens': tokens})
    return before, after

  return run


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scale=st.floats(0.1, 100), threshold=st.floats(0.5, 200))
def test_no_logit_is_above_the_threshold_after_the_clip(clipped, scale, threshold):
  """And a head that was below it keeps its logits: the largest is min(S, threshold)."""
  (before,), (after,) = (x.values() for x in clipped(scale, threshold))
  # An update is added to the weights, so a factor of gamma costs 1 / gamma roundings.
  rounding = 1e-5 + 1e-6 * before / threshold
  assert (after <= threshold * (1 + rounding)).all()
  np.testing.assert_allclose(after / np.minimum(before, threshold), 1, atol=rounding.max())


def test_what_is_below_the_threshold_is_left_bit_for_bit():
  params, updates = numbers(0, 4, np.float32), numbers(1, 4, np.float32)
  for maxima in (99.0, 100.0, -3.0, jnp.nan, jnp.inf, -jnp.inf):
    tx = qk_clip(100.0)
    got, _ = jax.jit(tx.update)(
      updates, tx.init(params), params, query_key_maxima={BLOCK: jnp.full((LAYERS, HEADS), maxima)}
    )
    jax.tree.map(np.testing.assert_array_equal, got, updates)


def test_bfloat16_weights_are_clipped_in_float32():
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), numbers(0, 4))
  tx = qk_clip(100.0)
  maxima = {BLOCK: jnp.full((LAYERS, HEADS), 400.0, jnp.bfloat16)}
  updates, _ = tx.update(
    optax.tree.zeros_like(params), tx.init(params), params, query_key_maxima=maxima
  )
  q = updates['encoder']['0-1']['attn']['q']
  assert q.dtype == jnp.float32
  want = -0.5 * np.asarray(params['encoder']['0-1']['attn']['q'], np.float32)
  np.testing.assert_array_equal(q, want)  # sqrt(100 / 400) - 1


def test_trees_without_attention_need_nothing():
  params = {'w': jnp.ones((2, 2)), 'hole': None}
  for tree_ in (params, {}, {'hole': None}):
    updates, _ = qk_clip().update(tree_, qk_clip().init(tree_))
    assert jax.tree.structure(updates) == jax.tree.structure(tree_)


def test_layers_on_their_own_have_maxima_without_a_layer_axis():
  stack = numbers(0, 4, np.float32)['encoder']['0-1']['attn']
  params = {'attn': {name: leaf[1] for name, leaf in stack.items()}}
  maxima = np.asarray([50.0, 200.0, 400.0, 100.0], np.float32)
  updates, _ = qk_clip(100.0).update(
    optax.tree.zeros_like(params),
    optax.EmptyState(),
    params,
    query_key_maxima={'attn': jnp.asarray(maxima)},
  )
  factor = np.repeat(np.sqrt(100 / np.maximum(maxima, 100)), HEAD)
  new = optax.apply_updates(params, updates)['attn']
  np.testing.assert_allclose(new['q'], params['attn']['q'] * factor[None], rtol=1e-5)
  np.testing.assert_allclose(new['k_bias'], params['attn']['k_bias'] * factor, rtol=1e-5)
  np.testing.assert_array_equal(new['v'], params['attn']['v'])


def test_bad_input_is_one_line_that_says_what_to_do():
  params = numbers(0, 2, np.float32)
  tx = qk_clip()

  def update(maxima, params=params):
    return tx.update(params, tx.init(params), params, query_key_maxima=maxima)

  with pytest.raises(InputError, match='models.query_key_maxima'):
    tx.update(params, tx.init(params), params)
  with pytest.raises(InputError, match=f"has no '{BLOCK}', only elsewhere"):
    update({'elsewhere': jnp.ones((LAYERS, HEADS))})
  for shape in ((LAYERS, 5), (3, HEADS), (HEADS,), (LAYERS, 7)):
    with pytest.raises(InputError, match='does not fit'):
      update({BLOCK: jnp.ones(shape)})
  with pytest.raises(InputError, match='needs the parameters'):
    tx.update(params, tx.init(params))
  only = {'attn': {'q': jnp.ones((2, 2))}}
  with pytest.raises(InputError, match="keys of 'attn', but only its query is trained"):
    tx.init(only)
  _, base = decoder(2)
  adapted = lora(jax.random.key(0), base, 2)
  trainable, _ = trainable_of(adapted)
  with pytest.raises(InputError, match="'decoder/0-0/attn/k' is a LoRA"):
    tx.init(trainable)
