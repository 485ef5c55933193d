"""The decoder beside float64 NumPy, and the arrow of time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import models, ops

CONFIG = models.DecoderConfig(
  vocabulary=20,
  width=8,
  hidden=12,
  layers=3,
  heads=4,
  kv_heads=2,
  head_width=6,
  rope=ops.Rope(100.0),
  init_scale=0.3,
)
MODEL = models.decoder(CONFIG)
APPLY = jax.jit(MODEL.apply)
FEATURES = jax.jit(MODEL.features)


def randomized(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), model.shapes())


@pytest.fixture(scope='module')
def params():
  """Every leaf random, so that a scale left out would show."""
  return randomized(MODEL)


def oracle(params, tokens):
  """The last hidden states of one text `[T]`, token by token, head by head."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  c = CONFIG

  def norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.epsilon) * p['scale']

  def rotate(x, t):
    half = c.head_width // 2
    angle = t * c.rope.base ** (-2 * np.arange(half) / c.head_width)
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag])

  x = params['embed']['tokens'][tokens]
  for number in range(c.layers):
    layer = jax.tree.map(lambda x, n=number: x[n], params['decoder']['0-2'])
    h = norm(x, layer['attn_norm'])
    q, k, v = (
      (h @ layer['attn'][n]).reshape(len(tokens), -1, c.head_width) for n in ('q', 'k', 'v')
    )
    rows = []
    for t in range(len(tokens)):
      heads = []
      for i in range(c.heads):
        g = i // (c.heads // c.kv_heads)
        scores = [rotate(q[t, i], t) @ rotate(k[s, g], s) for s in range(t + 1)]
        weights = np.exp(np.array(scores) / np.sqrt(c.head_width))
        heads.append(weights / weights.sum() @ v[: t + 1, g])
      rows.append(np.concatenate(heads))
    x = x + np.stack(rows) @ layer['attn']['o']
    h = norm(x, layer['mlp_norm'])
    gate = h @ layer['mlp']['gate']
    x = x + (gate / (1 + np.exp(-gate)) * (h @ layer['mlp']['up'])) @ layer['mlp']['down']
  return norm(x, params['norm'])


def test_logits_are_the_oracle(params):
  tokens = np.random.default_rng(1).integers(0, 20, (2, 6))
  got = APPLY(params, tokens)
  assert got.shape == (2, 6, 20)
  for row, text in zip(got, tokens, strict=True):
    want = oracle(params, text) @ np.float64(params['embed']['tokens']).T
    np.testing.assert_allclose(row, want, atol=2e-4)


def test_an_untied_head_is_its_own_matrix(params):
  model = models.decoder(dataclasses.replace(CONFIG, tied=False))
  assert 'head' not in params
  untied = {**params, 'head': {'dense': randomized(model)['head']['dense']}}
  tokens = np.arange(5)[None]
  want = oracle(params, tokens[0]) @ np.float64(untied['head']['dense'])
  np.testing.assert_allclose(jax.jit(model.apply)(untied, tokens)[0], want, atol=2e-4)


def test_the_head_takes_any_rows(params):
  features = np.random.default_rng(5).normal(size=(2, 3, 8)).astype(np.float32)
  logits = MODEL.head(params, features)
  rows = MODEL.head(params, features.reshape(6, 8)[2:4])
  np.testing.assert_allclose(rows, logits.reshape(6, 20)[2:4], atol=1e-5)


def test_the_future_changes_nothing_before_it(params):
  tokens = np.random.default_rng(2).integers(0, 20, (1, 6))
  before = FEATURES(params, tokens)
  for t in range(6):
    changed = tokens.copy()
    changed[0, t] = (changed[0, t] + 7) % 20
    after = FEATURES(params, changed)
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert np.abs(after[:, t:] - before[:, t:]).max(axis=-1).min() > 1e-4


def test_padding_changes_nothing(params):
  rng = np.random.default_rng(3)
  tokens = rng.integers(0, 20, (1, 8))
  whole = APPLY(params, tokens[:, :5])
  right = APPLY(params, tokens, np.arange(8)[None] < 5)
  np.testing.assert_allclose(right[:, :5], whole, atol=2e-5)
  shifted = np.roll(tokens, 3, axis=1)
  left = APPLY(params, shifted, np.arange(8)[None] >= 3)  # rope sees distances alone
  np.testing.assert_allclose(left[:, 3:], whole, atol=1e-4)
  assert np.isfinite(left).all()


def test_packed_texts_do_not_see_each_other(params):
  tokens = np.random.default_rng(4).integers(0, 20, (1, 7))
  packed = APPLY(
    params,
    tokens,
    segments=np.array([[1, 1, 1, 2, 2, 2, 0]]),
    positions=np.array([[0, 1, 2, 0, 1, 2, 0]]),
  )
  np.testing.assert_allclose(packed[:, :3], APPLY(params, tokens[:, :3]), atol=2e-5)
  np.testing.assert_allclose(packed[:, 3:6], APPLY(params, tokens[:, 3:6]), atol=2e-5)


def test_a_key_is_taken_and_not_needed(params):
  tokens = np.arange(4)[None]
  np.testing.assert_array_equal(APPLY(params, tokens, key=jax.random.key(0)), APPLY(params, tokens))


def test_bfloat16_parameters_give_bfloat16_logits(params):
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  got = APPLY(low, np.arange(12).reshape(2, 6))
  assert got.dtype == jnp.bfloat16
  want = APPLY(params, np.arange(12).reshape(2, 6))
  assert np.abs(got.astype(np.float32) - want).max() < 0.05 * np.abs(want).max()


def test_billions_of_parameters_have_shapes_without_memory():
  config = models.DecoderConfig(
    width=4096, hidden=11008, layers=32, heads=32, kv_heads=32, head_width=128, tied=False
  )
  shapes = models.decoder(config).shapes()
  assert shapes['decoder']['0-31']['mlp']['gate'].shape == (32, 4096, 11008)
  count = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes))
  assert count == 6_738_415_616  # Llama 2 7B
