"""Rules in a subspace against NumPy versions from the papers, and what a projector keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import optim
from jaxtune.optim.subspace import (
  apollo,
  galore,
  in_subspace,
  limit_growth,
  random_projector,
  svd_projector,
)
from jaxtune.typing import InputError

RATE, B1, B2, EPS, DECAY, STEPS = 1e-2, 0.9, 0.99, 1e-6, 0.1, 24
SHAPES = {'decoder': {'0-1': {'wide': (2, 4, 7), 'tall': (2, 7, 3)}}, 'square': (5, 5)}


def numbers(seed, dtype=np.float64):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def train(tx, params, gradients):
  @jax.jit
  def step(params, state, g):
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for g in gradients:
    params, state = step(params, state, g)
  return params


def assert_close(got, want, rtol=1e-9, atol=1e-12):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol, atol)


def by_matrix(rule, params, gradients):
  """A NumPy rule for one matrix, over every matrix of every stack."""

  def leaf(p, *gs):
    p, gs = np.asarray(p), np.asarray(gs)
    if p.ndim == 2:
      return rule(p, gs)
    return np.stack([rule(p[i], gs[:, i]) for i in range(len(p))])

  return jax.tree.map(leaf, params, *gradients)


def adam():
  m = v = 0.0
  t = 0

  def direction(r):
    nonlocal m, v, t
    t += 1
    m, v = B1 * m + (1 - B1) * r, B2 * v + (1 - B2) * r**2
    return m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)

  return direction


def reference_galore(p, gradients, rank, every, scale):
  """Zhao et al., Algorithm 2, on the transpose where the matrix is tall; refreshed at steps 0, k,
  2k as in the authors' galore_torch. Adam's moments outlive a change of the subspace."""
  inner = adam()
  for t, g in enumerate(gradients):
    turn = g.shape[0] > g.shape[1]
    g = g.T if turn else g
    if t % every == 0:
      basis = np.linalg.svd(g)[0][:, :rank]
      basis = basis * np.where(basis.sum(0) < 0, -1, 1)  # signs are free: ours are these
    u = scale * basis @ inner(basis.T @ g)
    p = p - RATE * ((u.T if turn else u) + DECAY * p)
  return p


def reference_apollo(p, gradients, bases, per, scale, gamma):
  """Zhu et al., Algorithm 1, and the limiter of Fira, Eq. 8 (with its 1e-8)."""
  inner, last = adam(), None
  for t, g in enumerate(gradients):
    turn = g.shape[0] > g.shape[1]
    g = g.T if turn else g
    r = bases(t, g).T @ g
    axis = 0 if per == 'channel' else None
    s = np.linalg.norm(inner(r), axis=axis) / np.linalg.norm(r, axis=axis)
    u = g * s
    if last is not None:
      u = u / (max(np.linalg.norm(u) / (last + 1e-8), gamma) / gamma)
    last = np.linalg.norm(u)
    p = p - RATE * (scale * (u.T if turn else u) + DECAY * p)
  return p


def test_galore_is_the_paper_s_over_refreshes():
  with jax.enable_x64(True):
    params, gradients = numbers(0), [numbers(i + 1) for i in range(STEPS)]
    got = train(galore(RATE, 3, 10, 0.5, B1, B2, EPS, weight_decay=DECAY), params, gradients)
    want = by_matrix(lambda p, g: reference_galore(p, g, 3, 10, 0.5), params, gradients)
    assert_close(got, want)


@pytest.mark.parametrize(('per', 'rank'), [('channel', 2), ('tensor', 1)])
def test_apollo_is_the_paper_s_over_redraws(per, rank):
  with jax.enable_x64(True):
    params = numbers(0)
    # Every third gradient is large, so that the limiter works.
    gradients = [jax.tree.map(lambda g, i=i: g * (1 + i % 3), numbers(i + 1)) for i in range(STEPS)]
    rule = apollo(RATE, rank, 10, 2.0, B1, B2, EPS, 1.05, per, 7, weight_decay=DECAY)
    draw = random_projector(rank, 10, 7).basis

    def bases(t, g):
      return np.asarray(draw((), jnp.asarray(g), jnp.asarray(t))[0])

    want = by_matrix(lambda p, g: reference_apollo(p, g, bases, per, 2.0, 1.05), params, gradients)
    assert_close(train(rule, params, gradients), want, 1e-7, 1e-8)  # the limiter's 1e-8


def test_what_is_no_matrix_gets_adamw():
  params = {'norm': {'scale': jnp.arange(3.0)}, 'embed': jnp.ones((4, 3))}
  gradients = [jax.tree.map(jnp.cos, params)] * 3
  for rule in (galore, apollo):
    got = train(rule(RATE, b1=B1, b2=B2, eps=EPS, weight_decay=DECAY), params, gradients)
    adamw = optax.adamw(RATE, B1, B2, EPS, weight_decay=DECAY, mask=optim.decay_mask())
    assert_close(got, train(adamw, params, gradients), rtol=1e-6)


def test_singular_vectors_hold_the_most_a_subspace_of_their_rank_can():
  g = numbers(3, np.float32)['decoder']['0-1']['tall']
  projector = svd_projector(2, 3)
  basis, kept = projector.basis(projector.init(g), g, jnp.asarray(0))
  np.testing.assert_allclose(basis.mT @ basis, np.broadcast_to(np.eye(2), (2, 2, 2)), atol=1e-6)
  sizes = np.linalg.svd(np.asarray(g), compute_uv=False)[:, :2]
  np.testing.assert_allclose(jnp.linalg.norm(g @ basis, axis=1) ** 2, sizes**2, rtol=1e-5)
  for count, same in ((1, True), (2, True), (3, False)):
    later, _ = projector.basis(kept, 2 - g, jnp.asarray(count))
    assert bool(jnp.all(later == basis)) is same


def test_random_projections_keep_norms_on_average_and_have_no_state():
  g = jnp.zeros((5, 8))
  projector = random_projector(4, 3)
  assert jax.tree.leaves(projector.init(g)) == []
  draws = jax.vmap(lambda c: projector.basis((), g, c)[0])(jnp.arange(6000))
  np.testing.assert_array_equal(draws[0], draws[2])
  assert not np.any(draws[2] == draws[3])
  mean = (draws[::3] @ draws[::3].mT).mean(0)  # 2000 draws: an entry has a deviation below 0.016
  np.testing.assert_allclose(mean, np.eye(5), atol=0.07)
  assert not np.any(random_projector(4, 3, seed=1).basis((), g, jnp.asarray(0))[0] == draws[0])


def test_a_subspace_of_full_rank_is_the_whole_space():
  g = numbers(1, np.float32)
  tx = in_subspace(optax.identity(), svd_projector(99))
  assert_close(tx.update(g, tx.init(g))[0], g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('back', ['project', 'channel', 'tensor'])
@pytest.mark.parametrize('projector', [svd_projector(2, 2), random_projector(2, 2)])
def test_a_stack_is_its_layers_and_holes_stay(back, projector):
  tx = in_subspace(optax.scale_by_adam(), projector, back)

  def layers(t):
    stack = t['decoder']['0-1']
    cut = [jax.tree.map(lambda x, i=i: x[i], stack) for i in (0, 1)]
    return {'cut': tuple(cut), 'square': t['square'], 'none': None, 'hole': optax.MaskedNode()}

  gradients = [numbers(i, np.float32) for i in range(3)]
  whole, parts = tx.init(gradients[0]), tx.init(layers(gradients[0]))
  update = jax.jit(tx.update)
  for g in gradients:
    a, whole = update(g, whole)
    b, parts = update(layers(g), parts)
  assert_close(layers(a), b, rtol=1e-4, atol=1e-5)
  assert tx.update({}, tx.init({}))[0] == {}


@pytest.mark.slow
def test_bfloat16_gradients_and_zeros():
  g = numbers(1, jnp.bfloat16)
  for rule in (galore(RATE, 2), apollo(RATE, 2), apollo(RATE, 1, per='tensor')):
    state, update = rule.init(g), jax.jit(rule.update)
    for gradient in (jax.tree.map(jnp.zeros_like, g), g, jax.tree.map(jnp.zeros_like, g)):
      updates, new = update(gradient, state, g)
      assert [(x.shape, x.dtype) for x in jax.tree.leaves(new)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
      ]
      assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
      assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((updates, new)))
      state = new


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 30.0]), min_size=2, max_size=6))
def test_norms_grow_by_at_most_gamma(sizes):
  tx = limit_growth(1.5)
  g = jnp.stack([jnp.ones((2, 3)), 2 * jnp.ones((2, 3))])
  state, last = tx.init(g), 0.0
  for size in sizes:
    u, state = tx.update(size * g, state)
    norm = float(jnp.linalg.norm(u[0]))
    limit = 1.5 * last if last > 0 else np.inf
    np.testing.assert_allclose(norm, min(size * 6**0.5, limit), rtol=1e-5)
    np.testing.assert_allclose(u[1], 2 * u[0], rtol=1e-5)
    last = norm


@pytest.mark.parametrize(
  ('make', 'says'),
  [
    (lambda: galore(RATE, rank=0), 'rank is 0'),
    (lambda: apollo(RATE, every=0), 'every is 0'),
    (lambda: apollo(RATE, per='row'), "per is 'row'"),
    (lambda: in_subspace(optax.identity(), svd_projector(), 'up'), "back is 'up'"),
    (
      lambda: in_subspace(optax.identity(), svd_projector()).init({'a': {'bias': jnp.ones(3)}}),
      r"'a/bias' has the shape \(3,\)",
    ),
  ],
)
def test_bad_input(make, says):
  with pytest.raises(InputError, match=says):
    make()
