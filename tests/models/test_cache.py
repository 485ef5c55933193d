"""Tokens that come in pieces, beside the whole text at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import models, ops

BASE = models.DecoderConfig(
  vocabulary=30, width=16, hidden=24, layers=4, heads=4, kv_heads=2, init_scale=0.4
)
CONFIGS = {
  'llama': BASE,
  'gpt2': dataclasses.replace(
    BASE, rope=None, learned_positions=True, norm='layer', norm_bias=True, gated=False, positions=64
  ),
  'neox': dataclasses.replace(
    BASE, order='parallel', norm='layer', qkv_bias=True, rope=ops.Rope(width=2), gated=False
  ),
  'gemma': dataclasses.replace(
    BASE,
    order='sandwich',
    norm_offset=1.0,
    window=3,
    local=(True, True, False, True),
    local_rope=ops.Rope(100.0),
    qk_norm=True,
    attention_cap=5.0,
    logits_cap=3.0,
    embed_scale=4.0,
  ),
  'nope': dataclasses.replace(BASE, rotated=(True, False, True, False), window=4),
  'mixture': dataclasses.replace(
    BASE, experts=4, experts_per_token=2, expert_hidden=8, sparse=(True, False, True, True)
  ),
}
TOKENS = np.random.default_rng(0).integers(0, 30, (2, 11))


@pytest.mark.parametrize('name', CONFIGS)
def test_pieces_are_the_whole(name):
  model = models.build(CONFIGS[name])
  params = model.init(jax.random.key(1))
  want = model.features(params, TOKENS)
  cache = model.start_cache(2, 16)
  parts = []
  for piece in (TOKENS[:, :6], TOKENS[:, 6:7], TOKENS[:, 7:]):
    part, cache = model.extend(params, jnp.asarray(piece), cache)
    parts.append(part)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), want, rtol=2e-4, atol=2e-5)
  assert int(cache.length) == 11 and cache.positions.tolist() == [11, 11]


@pytest.mark.parametrize('name', CONFIGS)
def test_a_shorter_row_padded_on_the_left_is_as_it_is_alone(name):
  model = models.build(CONFIGS[name])
  params = model.init(jax.random.key(1))
  want = model.features(params, TOKENS[1:, :6])
  tokens = TOKENS.copy()
  tokens[1] = np.concatenate([np.zeros(5, int), TOKENS[1, :6]])
  mask = np.ones((2, 11), bool)
  mask[1, :5] = False
  cache = model.start_cache(2, 16)
  first, cache = model.extend(params, tokens[:, :9], cache, mask[:, :9])
  second, cache = model.extend(params, tokens[:, 9:], cache)
  got = jnp.concatenate([first[1, 5:], second[1]])
  np.testing.assert_allclose(got, want[0], rtol=2e-4, atol=2e-5)
  assert cache.positions.tolist() == [11, 6]


def test_a_cache_in_half_precision_holds_what_it_can():
  model = models.build(BASE)
  params = model.init(jax.random.key(1))
  out, cache = model.extend(params, TOKENS, model.start_cache(2, 16, jnp.bfloat16))
  assert cache.keys.dtype == jnp.bfloat16 and out.dtype == jnp.float32
  np.testing.assert_allclose(out, model.features(params, TOKENS), rtol=0.1, atol=0.15)
