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
TOKENS = np.random.default_rng(0).integers(0, 30, (2, 12))
PIECES = (slice(0, 4), slice(4, 8), slice(8, 12))  # of one length, so that one program serves all


@pytest.mark.parametrize(
  'name',
  [n if n in ('llama', 'gemma') else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS],
)
def test_pieces_are_the_whole(name):
  """Also the pieces of a shorter row that is padded on the left, as they are without padding."""
  model = models.build(CONFIGS[name])
  params = jax.jit(model.init)(jax.random.key(1))
  tokens, mask = TOKENS.copy(), np.ones((2, 12), bool)
  tokens[1, :5], mask[1, :5] = 0, False
  extend, cache, parts = jax.jit(model.extend), model.start_cache(params, 2, 16), []
  for piece in PIECES:
    part, cache = extend(params, tokens[:, piece], cache, mask[:, piece])
    parts.append(part)
  got = jnp.concatenate(parts, axis=1)
  features = jax.jit(model.features)
  np.testing.assert_allclose(got[0], features(params, tokens)[0], rtol=2e-4, atol=2e-5)
  # Padded on the right in place of the left, which changes nothing for the tokens themselves.
  alone = np.roll(tokens, -5, axis=1)
  np.testing.assert_allclose(got[1, 5:], features(params, alone)[1, :7], rtol=2e-4, atol=2e-5)
  assert int(cache.length) == 12 and cache.positions.tolist() == [12, 7]


@pytest.mark.slow
def test_a_cache_in_half_precision_holds_what_it_can():
  model = models.build(BASE)
  params = jax.jit(model.init)(jax.random.key(1))
  out, cache = model.extend(params, TOKENS, model.start_cache(params, 2, 16, jnp.bfloat16))
  assert cache.keys.dtype == jnp.bfloat16 and out.dtype == jnp.float32
  np.testing.assert_allclose(out, model.features(params, TOKENS), rtol=0.1, atol=0.15)
