"""A mixture of experts beside float64 NumPy, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, ops, optim
from jaxtune.models import block

CONFIG = models.BlockConfig(
  width=6, hidden=5, layers=2, heads=2, experts=4, experts_per_token=2, expert_hidden=5
)
RNG = np.random.default_rng(0)
ROUTER = RNG.normal(0, 1, (6, 4))
EXPERTS = {
  'gate': RNG.normal(0, 1, (4, 6, 5)),
  'up': RNG.normal(0, 1, (4, 6, 5)),
  'down': RNG.normal(0, 1, (4, 5, 6)),
}
X = RNG.normal(0, 1, (7, 6))


def oracle(x, normalize):
  scores = np.exp(x @ ROUTER)
  gates = scores / scores.sum()
  chosen = np.argsort(-gates)[:2]
  total = gates[chosen].sum() if normalize else 1.0
  out = np.zeros(6)
  for e in chosen:
    gate = x @ EXPERTS['gate'][e]
    hidden = gate / (1 + np.exp(-gate)) * (x @ EXPERTS['up'][e])
    out += gates[e] / total * (hidden @ EXPERTS['down'][e])
  return out


def mixture(config, router, experts, x):
  gates, chosen = block.Router(config).apply({'params': {'dense': router}}, x)
  return block.Experts(config).apply({'params': experts}, x, gates, chosen)


def as_float32(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize('normalize', [True, False])
def test_each_token_is_answered_by_its_own_experts(normalize):
  config = dataclasses.replace(CONFIG, normalize_gates=normalize)
  got = mixture(config, *as_float32((ROUTER, EXPERTS, X)))
  np.testing.assert_allclose(got, [oracle(x, normalize) for x in X], rtol=1e-4, atol=1e-5)


def test_adapted_experts_are_the_merged_ones():
  experts = as_float32(EXPERTS)
  key = jax.random.key(0)

  def wrap(w, seed):
    a, b = (
      jax.random.normal(jax.random.fold_in(key, seed + i), (4, *s))
      for i, s in enumerate([(w.shape[1], 2), (2, w.shape[2])])
    )
    return adapt.LoRA(w, a, b, jnp.array([0.5, 1.0, 0.0, 2.0]))

  adapted = {name: wrap(w, 10 * i) for i, (name, w) in enumerate(experts.items())}
  router, x = as_float32((ROUTER, X))
  got = mixture(CONFIG, router, adapted, x)
  want = mixture(CONFIG, router, ops.materialize_all(adapted), x)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_lanes_of_a_mixture_are_the_mixtures_one_by_one():
  router, experts, x = as_float32((ROUTER, EXPERTS, X))
  half, minus = (jax.tree.map(lambda w, f=f: f * w, experts) for f in (0.5, -1.0))
  lanes = jax.tree.map(lambda *w: jnp.stack(w), experts, half, minus)
  got = jax.vmap(lambda e: mixture(CONFIG, router, e, x))(lanes)
  want = [mixture(CONFIG, router, one, x) for one in (experts, half, minus)]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


DECODER = models.decoder(
  models.DecoderConfig(
    vocabulary=12,
    width=8,
    hidden=6,
    layers=4,
    heads=2,
    experts=3,
    experts_per_token=2,
    expert_hidden=4,
    sparse=(False, True, True, False),
    init_scale=0.5,
  )
)


def test_layers_of_different_kinds_are_segments():
  shapes = DECODER.shapes()['decoder']
  assert sorted(shapes) == ['0-0', '1-2', '3-3']
  assert shapes['1-2']['experts']['gate'].shape == (2, 3, 8, 4)
  assert 'mlp' not in shapes['1-2'] and 'experts' not in shapes['0-0']
  axes = DECODER.axes(DECODER.shapes())['decoder']['1-2']
  assert axes['experts']['down'] == ('layers', 'experts', 'mlp', 'embed')


def test_update_rules_see_the_matrices_of_experts():
  """A rule over whole matrices gives experts in a stack what it gives each of them alone."""
  shape = DECODER.shapes()['decoder']['1-2']['experts']['up'].shape
  weight, grad = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0)))
  rule = optim.create('muon', 0.1)

  @jax.jit
  def update(grads, params):
    return rule.update(grads, rule.init(params), params)[0]

  def stacked(leaf):
    return {'decoder': {'1-2': {'experts': {'up': leaf}}}}

  got = update(stacked(grad), stacked(weight))['decoder']['1-2']['experts']['up']
  alone = jax.vmap(jax.vmap(lambda g, w: update({'w': g}, {'w': w})['w']))(grad, weight)
  np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_gradients_reach_router_and_experts():
  params = jax.jit(DECODER.init)(jax.random.key(0))
  tokens = jnp.arange(10).reshape(2, 5)
  grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(DECODER.apply(p, tokens)))))(params)
  sparse = grads['decoder']['1-2']
  assert all(float(jnp.abs(x).max()) > 1e-6 for x in jax.tree.leaves(sparse))


@pytest.mark.parametrize('rows', [1, 2, 5, 600])
def test_any_number_of_tokens_and_any_favourite(rows):
  """Also when every token goes to the same expert, and when some experts get none."""
  x = RNG.normal(0, 1, (rows, 6))
  for shift in (0.0, 50.0):
    router = ROUTER + shift * np.eye(6)[:, :1] * np.eye(4)[:1]
    scores = np.exp(x @ router - (x @ router).max(axis=1, keepdims=True))
    gates = scores / scores.sum(axis=1, keepdims=True)
    want = np.zeros((rows, 6))
    for n in range(rows):
      chosen = np.argsort(-gates[n])[:2]
      for e in chosen:
        h = x[n] @ EXPERTS['gate'][e]
        y = (h / (1 + np.exp(-h)) * (x[n] @ EXPERTS['up'][e])) @ EXPERTS['down'][e]
        want[n] += gates[n, e] / gates[n, chosen].sum() * y
    got = mixture(CONFIG, *as_float32((router, EXPERTS, x)))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
