"""Rules for pairs of LoRA factors: NumPy versions, invariances, padding, adapted models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import adapt, ops, tree
from jaxtune.optim.lora_pairs import find_pairs, for_pairs
from jaxtune.optim.lora_rite import lora_rite, scale_by_lora_rite
from jaxtune.optim.riemannian_lora import riemannian_lora, scale_by_riemannian_lora
from jaxtune.typing import InputError

L, IN, OUT, R = 2, 6, 5, 3
RATE, B1, B2, EPS, DECAY, STEPS = 1e-2, 0.9, 0.99, 1e-6, 0.1, 24
RULES = {'lora_rite': lora_rite, 'riemannian_lora': riemannian_lora}
every_rule = pytest.mark.parametrize('rule', RULES.values(), ids=RULES)


@functools.partial(jax.jit, static_argnums=0)
def one_step(tx, params, state, target):
  def loss(p):
    return 0.5 * jnp.sum((p['lora_a'] @ p['lora_b'] - target) ** 2)

  updates, state = tx.update(jax.grad(loss)(params), state, params)
  return optax.apply_updates(params, updates), state


def train(tx, params, targets):
  """Steps on the distance of `A B` to one target a step: gradients are those of real factors."""
  step = functools.partial(one_step, tx)
  state, path = tx.init(params), [params]
  for target in targets:
    params, state = step(params, state, target)
    path.append(params)
  return path, state


def problem(seed=0, lead=(), dtype=np.float64, steps=STEPS, zero=True):
  rng = np.random.default_rng(seed)
  b = rng.standard_normal((*lead, R, OUT)) * (not zero)
  params = {'lora_a': rng.standard_normal((*lead, IN, R)), 'lora_b': b}
  targets = rng.standard_normal((steps, *lead, IN, OUT))
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, targets))


def polar(y):
  """Y = U R with R symmetric: the paper's choice of basis."""
  u, s, vt = np.linalg.svd(y, full_matrices=False)
  inverse = np.where(s > 1e-12, 1 / np.where(s > 1e-12, s, 1), 0)
  return u @ vt, vt.T @ (inverse[:, None] * vt)


def reference_rite(params, targets):
  """Yen et al., Algorithm 1, in the paper's W = X Y^T, with averages for sums (and then means over
  rows) as the authors' code has them."""
  x, y = np.asarray(params['lora_a']), np.asarray(params['lora_b']).T
  factors = [x, y]
  bases = [np.zeros_like(x), np.zeros_like(y)]
  mean, second, rho = [np.zeros_like(x), np.zeros_like(y)], [np.zeros((R, R))] * 2, [0.0, 0.0]
  for t, target in enumerate(np.asarray(targets), 1):
    error = factors[0] @ factors[1].T - target
    gradients = [error @ factors[1], error.T @ factors[0]]
    new = [polar(f) for f in factors]
    moved = []
    for own, other in ((0, 1), (1, 0)):
      u, inverse = new[other]
      p = u.T @ bases[other]
      g = gradients[own] @ inverse
      carried = p @ second[own] @ p.T
      lost = np.max(np.abs(np.linalg.eigvalsh(second[own]) - np.linalg.eigvalsh(carried)))
      rho[own] = B2 * (rho[own] + lost)
      second[own] = B2 * carried + (1 - B2) * g.T @ g / len(g)
      values, vectors = np.linalg.eigh((second[own] + rho[own] * np.eye(R)) / (1 - B2**t))
      root = vectors @ np.diag(1 / (np.sqrt(np.maximum(values, 0)) + EPS)) @ vectors.T
      mean[own] = B1 * mean[own] @ p.T + (1 - B1) * g @ root
      step = mean[own] / (1 - B1**t) @ inverse.T
      moved.append(factors[own] - RATE * (step + DECAY * factors[own]))
    factors, bases = moved, [u for u, _ in new]
  return {'lora_a': factors[0], 'lora_b': factors[1].T}


def reference_riemannian(params, targets, delta=1e-3, eps=1e-8):
  """Zhang and Pilanci, Algorithm 1 (scaled AdamW), for W + A B."""
  factors = [np.asarray(params['lora_a']), np.asarray(params['lora_b'])]
  m, v = [0.0, 0.0], [0.0, 0.0]
  for t, target in enumerate(np.asarray(targets), 1):
    a, b = factors
    error = a @ b - target
    scaled = [
      error @ b.T @ np.linalg.inv(b @ b.T + delta * np.eye(R)),
      np.linalg.inv(a.T @ a + delta * np.eye(R)) @ (a.T @ error),
    ]
    for i, g in enumerate(scaled):
      m[i], v[i] = B1 * m[i] + (1 - B1) * g, B2 * v[i] + (1 - B2) * g**2
      u = m[i] / (1 - B1**t) / (np.sqrt(v[i] / (1 - B2**t)) + eps)
      factors[i] = factors[i] - RATE * (u + DECAY * factors[i])
  return dict(zip(('lora_a', 'lora_b'), factors, strict=True))


def assert_close(got, want, rtol=1e-8, atol=1e-10):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), got, want)


@pytest.mark.parametrize('zero', [True, False])
def test_lora_rite_is_the_paper_s(zero):
  with jax.enable_x64(True):
    params, targets = problem(zero=zero)
    path, _ = train(lora_rite(RATE, B1, B2, EPS, weight_decay=DECAY), params, targets)
    assert_close(path[-1], reference_rite(params, targets), rtol=1e-6)


def test_riemannian_lora_is_the_paper_s():
  with jax.enable_x64(True):
    params, targets = problem()
    path, _ = train(riemannian_lora(RATE, 1e-3, B1, B2, weight_decay=DECAY), params, targets)
    assert_close(path[-1], reference_riemannian(params, targets))


ADAM = optax.adam(1e-2)
INVARIANT = (
  lora_rite(1e-2, B1, B2, 0.0),
  optax.chain(scale_by_riemannian_lora(0.0), optax.scale(-0.3)),
)


def products(tx, params, targets):
  return jnp.stack([p['lora_a'] @ p['lora_b'] for p in train(tx, params, targets)[0]])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-2, 2))
def test_the_path_of_the_product_does_not_depend_on_its_factors(seed, size):
  """W + A B = W + (A R^-1)(R B): six steps, both factors from the same state. Adam's depends."""
  with jax.enable_x64(True):
    params, targets = problem(seed, steps=6, zero=False)
    matrix = np.random.default_rng(seed + 1).standard_normal((R, R)) * 10**size
    other = {
      'lora_a': params['lora_a'] @ np.linalg.inv(matrix),
      'lora_b': matrix @ params['lora_b'],
    }
    for tx in INVARIANT:
      ours = products(tx, params, targets)
      assert float(jnp.abs(ours[1] - ours[0]).max()) > 1e-3
      np.testing.assert_allclose(products(tx, other, targets), ours, rtol=1e-6, atol=1e-7)
    gap = products(ADAM, other, targets) - products(ADAM, params, targets)
    assert float(jnp.abs(gap).max()) > 1e-4


@every_rule
def test_a_stack_is_its_layers_and_zero_padding_changes_nothing(rule):
  tx = rule(RATE, weight_decay=DECAY)
  with jax.enable_x64(True):
    params, targets = problem(lead=(L,), steps=4)
    whole, _ = train(tx, params, targets)
    for i in range(L):
      layer, _ = train(tx, jax.tree.map(lambda x, i=i: x[i], params), targets[:, i])
      assert_close(jax.tree.map(lambda x, i=i: x[i], whole[-1]), layer[-1], 1e-6)
    wider = {
      'lora_a': jnp.pad(params['lora_a'], [(0, 0), (0, 0), (0, 2)]),
      'lora_b': jnp.pad(params['lora_b'], [(0, 0), (0, 2), (0, 0)]),
    }
    padded, state = train(tx, wider, targets)
    for p, q in zip(padded, whole, strict=True):
      assert not np.any(p['lora_a'][..., R:]) and not np.any(p['lora_b'][..., R:, :])
      cut = {'lora_a': p['lora_a'][..., :R], 'lora_b': p['lora_b'][..., :R, :]}
      assert_close(cut, q, 1e-6)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state))


@pytest.mark.parametrize('core', [scale_by_lora_rite(), scale_by_riemannian_lora(0.0)])
def test_padding_stays_zero_where_decompositions_could_mix_it_in(core):
  """Padded components among dependent ones: their eigenvalue of zero is not alone."""
  update = jax.jit(core.update)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((20, 7)), np.outer(rng.standard_normal(7), rng.standard_normal(17))
    padded = np.array([0, 1, 0, 0, 1, 0, 1], bool)
    a, b = (jnp.asarray(x, jnp.float32) for x in (a * ~padded, b * ~padded[:, None]))
    params = {'lora_a': a, 'lora_b': b}
    error = jnp.asarray(rng.standard_normal((20, 17)), jnp.float32)
    updates, _ = update({'lora_a': error @ b.T, 'lora_b': a.T @ error}, core.init(params), params)
    assert not np.any(updates['lora_a'][:, padded]) and not np.any(updates['lora_b'][padded])
    assert np.all(np.any(updates['lora_b'], axis=1) == ~padded)


@every_rule
def test_zeros_in_bfloat16_and_a_rank_above_the_side(rule):
  zeros = {'lora_a': jnp.zeros((IN, 8), jnp.bfloat16), 'lora_b': jnp.zeros((8, 4), jnp.bfloat16)}
  ones = jax.tree.map(jnp.ones_like, zeros)
  tx = rule(RATE)
  update = jax.jit(tx.update)
  for params, gradient in ((zeros, zeros), (ones, zeros), (ones, ones), (zeros, ones)):
    state = tx.init(params)
    for _ in range(2):
      updates, new = update(gradient, state, params)
      assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((updates, new)))
      types = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, new)]
      assert types[0] == types[1]
      assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
      state = new


def test_rite_on_fewer_rows_than_ranks_keeps_noise_out():
  """A gradient of rank 1 leaves two of three components without one: no step from rounding."""
  rng = np.random.default_rng(0)
  params = {'lora_a': rng.standard_normal((64, R)), 'lora_b': np.zeros((R, 48))}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  targets = [jnp.asarray(np.outer(*(rng.standard_normal(n) for n in (64, 48))), jnp.float32)] * 3
  path, _ = train(lora_rite(1e-3), params, targets)
  assert np.linalg.matrix_rank(path[1]['lora_b'], rtol=1e-4) == 1
  for before, after in zip(path, path[1:], strict=False):
    change = after['lora_a'] @ after['lora_b'] - before['lora_a'] @ before['lora_b']
    # RMS of a step of each factor: the rate times the root of the side, at most 8 and 7.
    assert float(jnp.linalg.norm(change)) < 1e-3 * 3 * (64 * 48) ** 0.5


@every_rule
def test_an_adapted_model_trains_its_pairs_and_its_head(rule):
  rng = np.random.default_rng(0)
  params = {
    'decoder': {'0-1': {'attn': {'q': jnp.asarray(rng.normal(size=(L, IN, IN)), jnp.float32)}}},
    'head': {'dense': jnp.ones((IN, 2)), 'dense_bias': jnp.zeros(2)},
  }
  adapted = adapt.lora(jax.random.key(0), params, rank=2)
  trainable, frozen = adapt.trainable(adapted)
  x, y = rng.normal(size=(8, IN)), rng.normal(size=(8, 2))

  def loss(trainable):
    full = tree.combine(trainable, frozen)
    features, _ = jax.lax.scan(
      lambda h, w: (h + jnp.tanh(ops.dot(h, w)), None),
      jnp.asarray(x, jnp.float32),
      full['decoder']['0-1']['attn']['q'],
    )
    return jnp.mean((features @ full['head']['dense'] + full['head']['dense_bias'][None] - y) ** 2)

  tx = rule(3e-2)
  state, first, start = tx.init(trainable), float(loss(trainable)), trainable

  @jax.jit
  def step(trainable, state):
    updates, state = tx.update(jax.grad(loss)(trainable), state, trainable)
    return optax.apply_updates(trainable, updates), state

  for _ in range(20):
    trainable, state = step(trainable, state)
  assert jax.tree.structure(trainable) == jax.tree.structure(start)
  assert jax.tree.all(jax.tree.map(lambda p, q: bool(jnp.any(p != q)), trainable, start))
  assert float(loss(trainable)) < 0.5 * first
  assert isinstance(trainable['decoder']['0-1']['attn']['q'], adapt.LoRA)


def test_pairs_are_found_by_path():
  a, b, h = jnp.zeros((IN, R)), jnp.zeros((R, OUT)), jnp.zeros((IN, OUT))
  params = {
    'head': h,
    'k': {'lora_A': {'kernel': a}, 'lora_B': {'kernel': b}},
    'mlp': {'a': a.T, 'b': a},  # the layers of somebody's network: a rank above a side
    'n': {'a': jnp.zeros(R), 'b': jnp.zeros(R)},
    'q': {'lora_a': a, 'lora_b': b},
    'v': adapt.LoRA(None, a, b, None),
    'w': {'lora_a': a, 'lora_b': None},
  }
  names = [tree.path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
  assert [(names[i], names[j]) for i, j in find_pairs(params)] == [
    ('k/lora_A/kernel', 'k/lora_B/kernel'),
    ('q/lora_a', 'q/lora_b'),
    ('v/a', 'v/b'),
  ]
  # Both rules see holes and nothing else of the other's; the rest may do as it likes.
  tx = for_pairs(optax.set_to_zero(), optax.scale(2.0))
  ones = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(ones, tx.init(params), params)
  sizes = {tree.path_name(p): float(x.max()) for p, x in jax.tree.leaves_with_path(updates)}
  assert {n for n, size in sizes.items() if size == 2} == {
    'head',
    'mlp/a',
    'mlp/b',
    'n/a',
    'n/b',
    'w/lora_a',
  }


@every_rule
def test_bad_input(rule):
  tx = rule(RATE)
  with pytest.raises(InputError, match='needs pairs of LoRA factors, and there is none among bias'):
    tx.init({'bias': jnp.ones(3), 'w': jnp.ones((3, 3))})
  with pytest.raises(InputError, match=r'lora_A.*\(3, 6\).*lora_B.*\(5, 3\) do not multiply'):
    tx.init({'q': {'lora_A': jnp.ones((R, IN)), 'lora_B': jnp.ones((OUT, R))}})
  for empty in ({}, {'a': None}):
    assert tx.update(empty, tx.init(empty), empty)[0] == empty
  params, _ = problem(dtype=np.float32)
  for core in (scale_by_lora_rite(), scale_by_riemannian_lora()):
    with pytest.raises(InputError, match="'head' of shape .* belongs to none"):
      core.init({'head': jnp.ones((3, 3)), **params})
    with pytest.raises(ValueError, match='give update the parameters'):
      core.update(params, core.init(params))
