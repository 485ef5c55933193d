"""The encoder beside float64 NumPy, and what padding and dropout must not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxtune import models
from jaxtune.typing import InputError

CONFIG = models.EncoderConfig(
  vocabulary=20, width=8, hidden=12, layers=3, heads=2, positions=12, epsilon=1e-5, init_scale=0.3
)
MODEL = models.encoder(CONFIG)
APPLY = jax.jit(MODEL.apply)


@pytest.fixture(scope='module')
def params():
  """Every leaf random, so that a bias or scale left out would show."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.2, 0.6, leaf.shape).astype(np.float32), MODEL.shapes()
  )


def oracle(params, tokens):
  """Devlin et al. 2018 for one text `[T]`, layer by layer, head by head."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.epsilon) * p['scale'] + p['bias']

  def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)

  embed = params['embed']
  x = embed['tokens'][tokens] + embed['positions'][: len(tokens)] + embed['types'][0]
  x = norm(x, embed['norm'])
  width = CONFIG.width // CONFIG.heads
  for number in range(CONFIG.layers):
    layer = jax.tree.map(lambda x, n=number: x[n], params['encoder']['0-2'])
    attn, mlp = layer['attn'], layer['mlp']
    q, k, v = (x @ attn[n] + attn[f'{n}_bias'] for n in 'qkv')
    heads = []
    for h in range(CONFIG.heads):
      part = slice(h * width, (h + 1) * width)
      heads.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(width)) @ v[:, part])
    x = norm(x + np.concatenate(heads, -1) @ attn['o'] + attn['o_bias'], layer['attn_norm'])
    up = x @ mlp['up'] + mlp['up_bias']
    up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
    x = norm(x + up @ mlp['down'] + mlp['down_bias'], layer['mlp_norm'])
  return x


def test_hidden_states_are_the_oracle(params):
  tokens = np.random.default_rng(1).integers(0, 20, (2, 7))
  got = APPLY(params, tokens)
  assert got.shape == (2, 7, 8)
  for row, text in zip(got, tokens, strict=True):
    np.testing.assert_allclose(row, oracle(params, text), atol=5e-5)


def test_padding_changes_nothing(params):
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 20, (2, 9))
  mask = np.arange(9)[None] < np.array([[5], [5]])
  padded = APPLY(params, tokens, mask)
  np.testing.assert_allclose(padded[:, :5], APPLY(params, tokens[:, :5]), atol=2e-5)
  other = np.where(mask, tokens, (tokens + 1) % 20)
  np.testing.assert_array_equal(APPLY(params, other, mask)[:, :5], padded[:, :5])
  assert np.abs(APPLY(params, tokens)[:, :5] - padded[:, :5]).max() > 5e-3


def test_packed_texts_do_not_see_each_other(params):
  tokens = np.random.default_rng(3).integers(0, 20, (1, 7))
  segments = np.array([[1, 1, 1, 2, 2, 2, 2]])
  positions = np.array([[0, 1, 2, 0, 1, 2, 3]])
  packed = APPLY(params, tokens, positions=positions, segments=segments)
  np.testing.assert_allclose(packed[:, :3], APPLY(params, tokens[:, :3]), atol=2e-5)
  np.testing.assert_allclose(packed[:, 3:], APPLY(params, tokens[:, 3:]), atol=2e-5)


def test_dropout_needs_a_key_and_a_rate(params):
  tokens = np.arange(6)[None]
  model = models.encoder(dataclasses.replace(CONFIG, dropout=0.5))
  apply = jax.jit(model.apply)
  quiet = APPLY(params, tokens)
  np.testing.assert_allclose(apply(params, tokens), quiet, atol=1e-5)
  np.testing.assert_allclose(APPLY(params, tokens, key=jax.random.key(0)), quiet, atol=1e-5)
  one = apply(params, tokens, key=jax.random.key(0))
  two = apply(params, tokens, key=jax.random.key(1))
  assert np.abs(one - two).max() > 0.1
  np.testing.assert_array_equal(one, apply(params, tokens, key=jax.random.key(0)))


def test_dropout_is_the_same_however_the_stack_is_cut_and_recomputed(params):
  tokens = np.arange(6)[None]
  config = dataclasses.replace(CONFIG, dropout=0.5)

  @functools.partial(jax.jit, static_argnums=1)
  def apply(params, remat):
    model = models.encoder(dataclasses.replace(config, remat=remat))
    return model.apply(params, tokens, key=jax.random.key(3))

  cut = {**params, 'encoder': models.cut(params['encoder'], 2)}
  np.testing.assert_allclose(apply(cut, True), apply(params, False), atol=1e-5)


def test_bfloat16_parameters_give_bfloat16_states(params):
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  tokens = np.arange(6)[None]
  got = APPLY(low, tokens)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), APPLY(params, tokens), atol=0.2)


def test_texts_longer_than_the_positions_are_refused(params):
  with pytest.raises(InputError, match='13 tokens a row, but the model has 12 positions'):
    MODEL.apply(params, np.zeros((1, 13), np.int32))


def test_an_unknown_activation_is_refused(params):
  model = models.encoder(dataclasses.replace(CONFIG, activation='mish'))
  with pytest.raises(InputError, match="unknown activation 'mish'; known: gelu"):
    model.apply(params, np.zeros((1, 2), np.int32))
