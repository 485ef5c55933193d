"""Bottleneck adapters: `y + f(y D) U` behind a weight and its bias, which no matrix can be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, interop, models, ops, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
L, IN, OUT, R = 3, 6, 5, 2
RNG = np.random.default_rng(1)
X, BIAS = np.float32(RNG.normal(size=(4, IN))), np.float32(RNG.normal(size=OUT))
F = {
  'relu': lambda x: np.maximum(x, 0),
  'silu': lambda x: x / (1 + np.exp(-x)),
  'gelu': lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def leaf(lead=(), activation='relu', base=None):
  def normal(*shape):
    return jnp.asarray(RNG.normal(size=(*lead, *shape)), jnp.float32)

  base = normal(IN, OUT) if base is None else base
  return adapt.Bottleneck(base, normal(OUT, R), normal(R, OUT), activation)


def adapted(w, y):
  down, up = np.float64(w.down), np.float64(w.up)
  return y + F[w.activation](y @ down) @ up


@pytest.mark.parametrize('activation', F)
def test_it_acts_on_the_output_and_on_its_bias(activation):
  w = leaf(activation=activation)
  got = jax.jit(lambda w: (ops.affine(X, w, BIAS), ops.dot(X, w)))(w)
  y = np.float64(X) @ np.float64(w.base)
  for a, b in zip(got, (adapted(w, y + BIAS), adapted(w, y)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  ids = np.array([5, 0])
  np.testing.assert_allclose(ops.take(w, ids), adapted(w, np.float64(w.base)[ids]), atol=1e-4)


def test_stacks_and_leaves_under_it():
  stack = leaf((L,))
  lora = adapt.LoRA(stack.base, jnp.ones((L, IN, 1)), jnp.ones((L, 1, OUT)), jnp.full(L, 0.1))
  over = dataclasses.replace(stack, base=lora)

  def through(w):
    return jax.lax.scan(lambda _, w: (None, ops.dot(X, w)), None, w)[1]

  got = jax.jit(lambda a, b: (through(a), through(b), jax.vmap(lambda w: ops.dot(X, w))(a)))
  plain, lifted, mapped = got(stack, over)
  matrices = (np.float64(stack.base), np.float64(stack.base) + 0.1, np.float64(stack.base))
  for out, matrix in zip((plain, lifted, mapped), matrices, strict=True):
    np.testing.assert_allclose(out, adapted(stack, X @ matrix), atol=2e-4)
  low = dataclasses.replace(leaf(), base=leaf().base.astype(jnp.bfloat16))
  assert ops.dot(jnp.bfloat16(X), low).dtype == jnp.bfloat16


MODEL = models.encoder(
  models.EncoderConfig(vocabulary=9, width=8, hidden=8, layers=2, heads=2, positions=4, outputs=2)
)


def ones():
  return jax.tree.map(lambda x: jnp.ones(x.shape), MODEL.shapes())


def test_placements_and_what_trains():
  params = adapt.bottleneck(KEY, ones(), 3)
  found = {path for path, w in tree.named_weights(params) if isinstance(w, adapt.Bottleneck)}
  assert found == {'encoder/0-1/attn/o', 'encoder/0-1/mlp/down'}
  w = params['encoder']['0-1']['attn']['o']
  assert w.down.shape == (2, 8, 3) and w.up.shape == (2, 3, 8) and not w.up.any()
  assert 0.7 * 8**-0.5 < np.abs(w.down).max() <= 8**-0.5
  trained = tree.paths(adapt.trainable(params)[0])
  assert {path.rpartition('/')[2] for path in trained} == {'down', 'up', 'dense', 'dense_bias'}
  mixed = (('attn/o$', {'width': 1, 'activation': 'gelu'}), ('mlp/down$', True), ('', False))
  params = adapt.bottleneck(KEY, ones(), 3, select=mixed)['encoder']['0-1']
  assert (params['attn']['o'].activation, params['mlp']['down'].activation) == ('gelu', 'relu')
  assert params['attn']['o'].up.shape == (2, 1, 8)


def test_what_cannot_be(tmp_path):
  params = adapt.bottleneck(KEY, ones(), 3)
  for refused in (
    lambda: adapt.merge(params),
    lambda: interop.save_hf(tmp_path / 'a', MODEL, params),
  ):
    with pytest.raises(InputError, match='no function of the weights.*keep the checkpoint'):
      refused()
  with pytest.raises(InputError, match='no transpose'):
    ops.dot_transposed(np.ones((2, OUT), np.float32), leaf())
  with pytest.raises(InputError, match="width is 0 for '.*attn/o'; it must be at least 1"):
    adapt.bottleneck(KEY, ones(), 0)
  with pytest.raises(InputError, match="activation is 'swish'; choose one of gelu, relu, silu"):
    adapt.bottleneck(KEY, ones(), activation='swish')
