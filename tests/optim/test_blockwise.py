"""Adam with one second moment a block, beside NumPy in float64 and beside Optax's Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import models, tree
from jaxtune.adapt import lora
from jaxtune.adapt import trainable as trainable_of
from jaxtune.optim.blockwise import (
  ADAM_MINI,
  Blocks,
  adam_mini,
  adam_mini_blocks,
  scale_by_blockwise_moments,
)
from jaxtune.typing import InputError

SHAPES = {
  'embed': {'tokens': (7, 6)},
  'decoder': {
    '0-1': {
      'attn': {'q': (2, 6, 8), 'k': (2, 6, 4), 'v': (2, 6, 4), 'o': (2, 8, 6)},
      'attn_norm': {'scale': (2, 6)},
      'mlp': {'up': (2, 6, 10), 'down': (2, 10, 6)},
    }
  },
  'head': {'dense': (6, 7)},
}


def numbers(seed, dtype=np.float64):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: rng.standard_normal(s).astype(dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
  )


def block_ids(path, shape, heads):
  """The block of every entry, numbered by hand from the paper's Algorithm 3."""
  index = np.indices(shape)
  layer = index[0] if tree.is_stacked(path) else np.zeros(shape, int)
  if path == 'embed/tokens':
    own = index[0]  # a token
  elif path == 'head/dense' or 'mlp/' in path or path.endswith(('attn/v', 'attn/o')):
    own = index[-1]  # an output neuron
  elif path.endswith(('attn/q', 'attn/k')):
    own = index[-1] // 2 if heads else index[-1]  # heads of width 2
  else:
    own = np.zeros(shape, int)
  return layer * 1000 + own


def oracle(params, gradients, heads, rate, decay, b1=0.9, b2=0.95, eps=1e-8):
  """AdamW entry by entry, the square of the gradient replaced by its mean over the block."""
  leaves, structure = jax.tree.flatten(params)
  leaves = [x.copy() for x in leaves]
  paths = [path for path, _ in tree.named_weights(params)]
  m, v = [np.zeros_like(x) for x in leaves], [np.zeros_like(x) for x in leaves]
  for t, gradient in enumerate(gradients, 1):
    for i, g in enumerate(jax.tree.leaves(gradient)):
      ids = block_ids(paths[i], g.shape, heads)
      squares = np.empty_like(g)
      for block in np.unique(ids):
        squares[ids == block] = np.mean(g[ids == block] ** 2)
      m[i] = b1 * m[i] + (1 - b1) * g
      v[i] = b2 * v[i] + (1 - b2) * squares
      u = m[i] / (1 - b1**t) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
      lam = 0 if paths[i].endswith('scale') else decay
      leaves[i] = leaves[i] - rate * (u + lam * leaves[i])
  return jax.tree.unflatten(structure, leaves)


def run(tx, params, gradients):
  @jax.jit
  def step(params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params, state


@pytest.mark.parametrize('heads', [False, True])
def test_adam_mini_is_the_papers_equations_for_20_steps(heads):
  blocks = adam_mini_blocks(4, 2) if heads else ADAM_MINI
  params, gradients = numbers(0), [numbers(i + 1) for i in range(20)]
  with jax.enable_x64(True):
    tx = adam_mini(0.1, b2=0.95, weight_decay=0.2, blocks=blocks)
    got, state = run(tx, jax.tree.map(jnp.asarray, params), gradients)
    want = oracle(params, gradients, heads, 0.1, 0.2)
    for path, leaf in tree.named_weights(got):
      expected = dict(tree.named_weights(want))[path]
      np.testing.assert_allclose(leaf, expected, rtol=1e-9, atol=1e-12, err_msg=path)
  shapes = {path: x.shape for path, x in tree.named_weights(state[0].nu)}
  assert shapes['embed/tokens'] == (7, 1)
  assert shapes['head/dense'] == (1, 7)
  assert shapes['decoder/0-1/attn/q'] == (2, 1, 4 if heads else 8)
  assert shapes['decoder/0-1/attn/k'] == (2, 1, 2 if heads else 4)
  assert shapes['decoder/0-1/attn_norm/scale'] == (2, 1)
  assert shapes['decoder/0-1/mlp/up'] == (2, 1, 10)


def test_with_every_entry_a_block_it_is_bit_for_bit_the_adam_of_optax():
  params, gradients = numbers(0, np.float32), [numbers(i + 1, np.float32) for i in range(5)]
  every = scale_by_blockwise_moments(0.8, 0.9, 1e-6, blocks=[('', Blocks((None,) * 3))])
  ours, _ = run(every, params, gradients)
  theirs, _ = run(optax.scale_by_adam(0.8, 0.9, 1e-6), params, gradients)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
  sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
  scale=st.floats(1e-3, 1e3),
)
def test_the_first_update_has_a_root_mean_square_of_1_in_every_block(sizes, scale):
  """u = g / sqrt(mean_b g^2) at the first step; blocks along any axes."""
  shape = [count * size for count, size in sizes]
  g = jnp.asarray(np.random.default_rng(0).standard_normal(shape) * scale, jnp.float32)
  blocks = [('', Blocks(tuple(count for count, _ in sizes)))]
  tx = scale_by_blockwise_moments(eps=0.0, blocks=blocks, axes=[('', 0)])
  u, state = jax.jit(tx.update)({'w': g}, tx.init({'w': g}))
  assert state.nu['w'].shape == tuple(count for count, _ in sizes)
  split = np.asarray(u['w'], np.float64).reshape([n for pair in sizes for n in pair])
  rms = np.sqrt((split**2).mean(axis=tuple(range(1, split.ndim, 2))))
  np.testing.assert_allclose(rms, 1, rtol=1e-5)


def test_state_is_half_of_adams():
  config = models.DecoderConfig(width=256, hidden=512, layers=4, heads=4, kv_heads=4)
  shapes = models.decoder(config).shapes()
  state = jax.eval_shape(adam_mini(1e-3).init, shapes)
  assert tree.size(state) < 4.1 * tree.count(shapes)


def test_bfloat16_gradients_and_no_gradients_are_safe():
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), numbers(0))
  tx = scale_by_blockwise_moments()
  zeros = optax.tree.zeros_like(params)
  updates, state = jax.jit(tx.update)(zeros, tx.init(params), params)
  assert all((x == 0).all() and x.dtype == jnp.float32 for x in jax.tree.leaves(updates))
  assert {x.dtype for x in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype(jnp.float32)}


def test_adapters_and_holes_are_leaves_like_others():
  config = models.DecoderConfig(vocabulary=20, width=8, hidden=12, layers=2, heads=4, kv_heads=2)
  adapted = lora(jax.random.key(1), models.decoder(config).shapes(), 2)
  trainable, _ = trainable_of(adapted)
  tx = adam_mini(1e-2, blocks=adam_mini_blocks(4, 2))
  state = jax.eval_shape(tx.init, trainable)
  updates, state = jax.eval_shape(tx.update, trainable, state, trainable)
  assert jax.tree.structure(updates) == jax.tree.structure(trainable)
  q = state[0].nu['decoder']['0-1']['attn']['q']
  assert q.a.shape == (2, 1, 2) and q.b.shape == (2, 1, 4)


def test_a_block_that_does_not_divide_is_named():
  tx = scale_by_blockwise_moments(blocks=adam_mini_blocks(3))
  with pytest.raises(InputError, match=r"'decoder/0-1/attn/k' of shape \(2, 6, 4\) into 3 groups"):
    tx.init(numbers(0))
  with pytest.raises(InputError, match='has the value 3; give Blocks'):
    scale_by_blockwise_moments(blocks=[('', 3)]).init({'w': jnp.ones(3)})
  with pytest.raises(InputError, match='heads 0'):
    adam_mini_blocks(0)
  with pytest.raises(InputError, match="no rule covers the parameter 'w'"):
    scale_by_blockwise_moments(blocks=[('b', Blocks())]).init({'w': jnp.ones(3)})
