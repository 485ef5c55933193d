"""A user's own Flax module: LoRA on it is the module with merged weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune import adapt, losses, models, tree
from jaxtune.typing import InputError

X = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


class LinenNet(nn.Module):
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, deterministic=True):
    x = nn.relu(nn.Dense(6)(x))
    x = nn.Dropout(self.rate)(x, deterministic=deterministic)
    return nn.Dense(4)(x)


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(5, 6, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(6, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(self.drop(jax.nn.relu(self.first(x))))


def linen():
  spec = models.from_linen(LinenNet(), X)
  return spec, spec.init(jax.random.key(0)), ('Dense_0', 'Dense_1')


def from_nnx():
  return *models.from_nnx(NnxNet(nnx.Rngs(0))), ('first', 'last')


MAKERS = pytest.mark.parametrize('make', [linen, from_nnx], ids=['linen', 'nnx'])


@MAKERS
def test_the_module_is_called_on_its_parameters(make):
  spec, params, (first, last) = make()
  wide = jax.tree.map(np.float64, params)
  hidden = np.maximum(X @ wide[first]['kernel'] + wide[first]['bias'], 0)
  want = hidden @ wide[last]['kernel'] + wide[last]['bias']
  np.testing.assert_allclose(spec.apply(params, X), want, atol=1e-5)
  np.testing.assert_allclose(jax.jit(spec.apply)(params, X), want, atol=1e-5)
  doubled = {**params, last: jax.tree.map(lambda x: 2 * x, params[last])}
  np.testing.assert_allclose(spec.apply(doubled, X), 2 * want, atol=1e-5)
  assert jax.tree.map(jnp.shape, spec.shapes()) == jax.tree.map(jnp.shape, params)


@MAKERS
def test_lora_is_merged_weights_and_gradients_reach_it(make):
  spec, params, (first, _) = make()
  base = spec.apply(params, X)
  adapted = adapt.lora(jax.random.key(1), params, 2, 4, select='kernel$')
  np.testing.assert_array_equal(spec.apply(adapted, X), base)
  trainable, frozen = adapt.trainable(adapted)
  trainable = jax.tree.map(lambda x: x + 0.1, trainable)
  tuned = tree.combine(trainable, frozen)
  assert np.abs(spec.apply(tuned, X) - base).max() > 0.01
  np.testing.assert_allclose(spec.apply(tuned, X), spec.apply(adapt.merge(tuned), X), atol=1e-6)

  def total(trainable):
    return jnp.sum(spec.apply(tree.combine(trainable, frozen), X) ** 2)

  gradient = jax.jit(jax.grad(total))(trainable)
  assert gradient[first]['kernel'].base is None
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@MAKERS
def test_every_axis_is_unnamed(make):
  spec, params, (first, _) = make()
  adapted = adapt.lora(jax.random.key(1), params, 2, 4, select='kernel$')
  axes = spec.axes(adapted)
  assert axes[first]['bias'] == (None,)
  assert axes[first]['kernel'] == adapt.LoRA((None, None), (None, None), (None, None), ())


def test_a_key_is_the_dropout_stream_of_a_linen_module():
  spec, params, _ = linen()
  apply = jax.jit(lambda key: spec.apply(params, X, key=key, deterministic=False))
  one, same, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-3


def test_a_key_switches_the_dropout_of_an_nnx_module_on():
  spec, params, _ = from_nnx()
  apply = jax.jit(lambda key: spec.apply(params, X, key=key))
  quiet, one, same, other = (apply(k) for k in (None, *map(jax.random.key, (0, 0, 1))))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-3
  assert np.abs(one - quiet).max() > 1e-3
  np.testing.assert_array_equal(quiet, apply(None))


def test_objectives_take_a_module_that_knows_only_tokens():
  class Bigram(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      return nn.Embed(7, 7)(tokens)

  tokens = np.array([[1, 2, 3], [4, 5, 6]])
  spec = models.from_linen(Bigram(), tokens)
  params = spec.init(jax.random.key(0))
  loss = losses.causal_lm(spec)(params, {'tokens': tokens})
  logits = np.float64(params['Embed_0']['embedding'])
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  want = -sum(logp[a, b] for row in tokens for a, b in zip(row, row[1:], strict=False))
  np.testing.assert_allclose(loss.total, want, rtol=1e-5)


def test_modules_with_more_than_parameters_are_refused():
  class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.BatchNorm(use_running_average=False)(x)

  with pytest.raises(InputError, match='Linen keeps batch_stats beside its parameters'):
    models.from_linen(Linen(), X).init(jax.random.key(0))
  with pytest.raises(InputError, match='BatchNorm keeps BatchStat beside its parameters'):
    models.from_nnx(nnx.BatchNorm(5, rngs=nnx.Rngs(0)))
