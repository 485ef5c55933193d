"""What every fine-tuning method keeps: rules that cover all, and gradients only where they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, losses, models, tree

MODEL = models.encoder(
  models.EncoderConfig(
    vocabulary=9, width=4, hidden=6, layers=1, heads=2, positions=4, activation='relu', outputs=3
  )
)
KEY = jax.random.key(0)
HEAD = {'head/dense', 'head/dense_bias'}
BODY = {path for path, _ in tree.named_weights(MODEL.shapes())} - HEAD
LINEAR = [
  *(f'encoder/0-0/attn/{name}' for name in 'qkvo'),
  *('encoder/0-0/mlp/up', 'encoder/0-0/mlp/down', 'pooler/dense'),
]
METHODS = {
  'full': (adapt.full, BODY | HEAD),
  'probe': (adapt.probe, HEAD),
  'freeze': (
    lambda params: adapt.freeze(params, [('^embed/', False), ('', True)]),
    HEAD | {path for path in BODY if not path.startswith('embed/')},
  ),
  'lora': (
    lambda params: adapt.lora(KEY, params, 2),
    HEAD | {f'{path}/{field}' for path in LINEAR for field in 'ab'},
  ),
}
RNG = np.random.default_rng(0)
BASE = jax.tree.map(lambda x: np.float32(RNG.normal(0.1, 0.5, x.shape)), MODEL.shapes())
BATCH = {
  'tokens': RNG.integers(0, 9, (3, 4)).astype(np.int32),
  'label': np.array([0, 2, 1], np.int32),
}


def total(trainable, frozen):
  params = trainable if frozen is None else tree.combine(trainable, frozen)
  return losses.classification(MODEL)(params, BATCH, None).total


BASE_VALUE = jax.jit(total)


def test_every_method_is_under_contract():
  assert set(METHODS) == {name for name in adapt.__all__ if name.islower()} - {'merge'}


@pytest.mark.parametrize('name', METHODS)
def test_a_method_trains_what_its_rules_say_and_nothing_else(name):
  method, trained = METHODS[name]
  adapted, rules = method(BASE)

  routes = tree.routing(rules, adapted)
  assert len(routes) == len(jax.tree.leaves(adapted))
  assert {route.path for route in routes if route.value} == trained
  trainable, frozen = tree.partition(adapted, rules)
  paths = [tree.path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(trainable)[0]]
  assert set(paths) == trained
  # The first pass is the base model's, and a step down the gradient is a step down.
  trainable = jax.tree.map(jnp.asarray, trainable)
  run = jax.jit(jax.value_and_grad(total))
  value, gradient = run(trainable, frozen)
  np.testing.assert_allclose(value, BASE_VALUE(BASE, None), rtol=1e-5)
  assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
  still = {path for path, g in zip(paths, jax.tree.leaves(gradient), strict=True) if not g.any()}
  assert still <= {path for path in trained if path.endswith('/a')}  # while B is zero
  lower, gradient = run(jax.tree.map(lambda p, g: p - 0.01 * g, trainable, gradient), frozen)
  assert lower < value
  assert all(g.any() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize('name', METHODS)
def test_a_compiled_method_is_the_eager_one(name):
  method, _ = METHODS[name]
  got, want = jax.jit(lambda params: method(params).params)(BASE), method(BASE).params
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', METHODS)
def test_a_method_needs_only_shapes(name):
  method, trained = METHODS[name]
  shapes = jax.eval_shape(lambda params: method(params).params, MODEL.shapes())
  rules = method(BASE).rules
  trainable, _ = tree.partition(shapes, rules)
  assert len(jax.tree.leaves(trainable)) == len(trained)
