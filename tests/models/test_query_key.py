"""The largest attention logits of each head, beside float64 NumPy."""

import jax
import numpy as np
import pytest

from jaxtune import models, ops
from jaxtune.models.query_key import query_key_maxima
from jaxtune.typing import InputError

CONFIG = models.DecoderConfig(
  vocabulary=20,
  width=8,
  hidden=12,
  layers=3,
  heads=4,
  kv_heads=2,
  head_width=6,
  rope=ops.Rope(100.0),
)
MODEL = models.decoder(CONFIG)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), MODEL.shapes())


def oracle(params, text):
  """`[L, H]` maxima of one unpadded text, pair by pair."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  c, n = CONFIG, len(text)

  def norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.epsilon) * p['scale']

  def heads(x, w):
    x = (x @ w).reshape(n, -1, c.head_width)
    half = c.head_width // 2
    angle = np.arange(n)[:, None, None] * c.rope.base ** (-2 * np.arange(half) / c.head_width)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)

  x = params['embed']['tokens'][text]
  found = np.full((c.layers, c.heads), -np.inf)
  for number in range(c.layers):
    p = jax.tree.map(lambda x, i=number: x[i], params['decoder']['0-2'])
    h = norm(x, p['attn_norm'])
    q, k = heads(h, p['attn']['q']), heads(h, p['attn']['k'])
    v = (h @ p['attn']['v']).reshape(n, -1, c.head_width)
    y = np.zeros((n, c.heads, c.head_width))
    for head in range(c.heads):
      group = head // (c.heads // c.kv_heads)
      for t in range(n):
        scores = k[: t + 1, group] @ q[t, head] / np.sqrt(c.head_width)
        found[number, head] = max(found[number, head], scores.max())
        weights = np.exp(scores - scores.max())
        y[t, head] = weights @ v[: t + 1, group] / weights.sum()
    x = x + y.reshape(n, -1) @ p['attn']['o']
    h = norm(x, p['mlp_norm'])
    gate = h @ p['mlp']['gate']
    x = x + (gate / (1 + np.exp(-gate)) * (h @ p['mlp']['up'])) @ p['mlp']['down']
  return found


def test_maxima_are_those_of_the_pairs_that_attention_sees(params):
  rng = np.random.default_rng(1)
  texts = [rng.integers(0, 20, 7), rng.integers(0, 20, 4)]
  want = np.maximum(*(oracle(params, text) for text in texts))
  run = jax.jit(lambda p, b: query_key_maxima(MODEL, p, b))

  noise = rng.integers(0, 20, 3)
  padded = np.stack([texts[0], np.concatenate([texts[1], noise])])
  mask = np.arange(7)[None] < np.asarray([[7], [4]])
  got = run(params, {'tokens': padded, 'mask': mask})
  assert list(got) == ['decoder/0-2/attn']
  np.testing.assert_allclose(got['decoder/0-2/attn'], want, rtol=1e-4, atol=1e-5)

  packed = {
    'tokens': np.concatenate([*texts, noise])[None],
    'segments': np.repeat([1, 2, 0], [7, 4, 3])[None],
    'positions': np.concatenate([np.arange(7), np.arange(4), np.arange(3)])[None],
  }
  got = run(params, packed)['decoder/0-2/attn']
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_stack_in_segments_has_the_same_maxima(params):
  batch = {'tokens': np.random.default_rng(2).integers(0, 20, (2, 5))}
  whole = query_key_maxima(MODEL, params, batch)['decoder/0-2/attn']
  cut = {**params, 'decoder': models.cut(params['decoder'], 1)}
  parts = query_key_maxima(MODEL, cut, batch)
  assert {path: x.shape for path, x in parts.items()} == {
    'decoder/0-0/attn': (1, 4),
    'decoder/1-2/attn': (2, 4),
  }
  np.testing.assert_allclose(np.concatenate(list(parts.values())), whole, rtol=1e-5)


def test_another_family_is_refused():
  model = models.encoder(models.EncoderConfig(width=4, heads=2, layers=1))
  with pytest.raises(InputError, match="not 'encoder'"):
    query_key_maxima(model, {}, {'tokens': np.zeros((1, 2), np.int32)})
