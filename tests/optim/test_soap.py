"""SOAP and KL-SOAP against NumPy versions written from the papers' algorithms, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.matrices import Matrix
from jaxtune.optim.soap import scale_by_soap, soap

B1, B2, BETA, EPS, EVERY = 0.9, 0.95, 0.8, 1e-8, 3


def basis(factor):
  return np.linalg.eigh(factor)[1][:, ::-1]


def soap_reference(gradients, max_size=99):
  """Algorithm 3 of arXiv 2409.11321 as its authors run it: the first gradient starts the bases.

  The first moment in the original space, columns sorted by eigenvalue, second moments with them.
  eps is added after the correction of the start, as Adam does (the authors add it before).
  """
  shape = gradients[0].shape
  factors = [np.zeros((n, n)) if n <= max_size else None for n in shape]
  bases = [np.eye(n) for n in shape]
  m, v = np.zeros(shape), np.zeros(shape)
  for t, g in enumerate(gradients):
    if t:
      turned = bases[0].T @ g @ bases[1]
      m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * turned**2
      first = bases[0].T @ m @ bases[1] / (1 - B1**t)
      yield bases[0] @ (first / (np.sqrt(v / (1 - B2**t)) + EPS)) @ bases[1].T
    else:
      yield np.zeros(shape)
    for side, square in enumerate((g @ g.T, g.T @ g)):
      if factors[side] is None:
        continue
      factors[side] = BETA * factors[side] + (1 - BETA) * square
      if t == 0:
        bases[side] = basis(factors[side])
      elif t % EVERY == 0:
        order = np.argsort(-np.diag(bases[side].T @ factors[side] @ bases[side]))
        v = np.take(v, order, side)
        bases[side] = np.linalg.qr(factors[side] @ bases[side][:, order])[0]


def kl_reference(gradients):
  """KL-SOAP, arXiv 2509.03378, with the start (0.1) and the floor of its authors' code.

  Adam is corrected for its start and eps added after that, which the authors' code does not do.
  """
  rows, columns = gradients[0].shape
  m, v = np.zeros((rows, columns)), np.zeros((rows, columns))
  s, q, e = [0, 0], [np.eye(rows), np.eye(columns)], [np.full(rows, 0.1), np.full(columns, 0.1)]
  for t, g in enumerate(gradients):
    if t == 0:
      yield np.zeros_like(g)
      s = [(1 - BETA) * g @ g.T / columns, (1 - BETA) * g.T @ g / rows]
      q = [basis(x) for x in s]
      continue
    turned = q[0].T @ g @ q[1]
    m, v = B1 * m + (1 - B1) * turned, B2 * v + (1 - B2) * turned**2
    yield q[0] @ (m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)) @ q[1].T
    inverse = [x @ np.diag(1 / y) @ x.T for x, y in zip(q, e, strict=True)]
    present = [g @ inverse[1] @ g.T / columns, g.T @ inverse[0] @ g / rows]
    for i in range(2):
      s[i] = BETA * s[i] + (1 - BETA) * present[i]
      e[i] = BETA * e[i] + (1 - BETA) * np.diag(q[i].T @ present[i] @ q[i])
      e[i] = np.maximum(e[i], max(10, len(e[i])) ** -2.0)
    if t % EVERY == 0:
      m = q[0] @ m @ q[1].T
      for i in range(2):
        order = np.argsort(-np.diag(q[i].T @ s[i] @ q[i]))
        v, e[i] = np.take(v, order, i), e[i][order]
        q[i] = np.linalg.qr(s[i] @ q[i][:, order])[0]
      m = q[0].T @ m @ q[1]


def correlated(shape, steps, seed=0):
  """Gradients with few large directions, as those of networks have."""
  rng = np.random.default_rng(seed)
  left, right = rng.standard_normal((shape[-2],) * 2), rng.standard_normal((shape[-1],) * 2)
  return left @ rng.standard_normal((steps, *shape)) @ right / 3


@functools.partial(jax.jit, static_argnums=0)
def scanned(tx, gradients):
  step = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
  return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1]


def run(tx, gradients):
  with jax.enable_x64(True):
    return jax.device_get(scanned(tx, jnp.asarray(gradients)))


soap_of_tests = functools.partial(
  scale_by_soap, B1, B2, shampoo_beta=BETA, eps=EPS, every=EVERY, skip_first=True
)


@pytest.mark.parametrize('max_size', [99, 5])
def test_soap_is_the_papers_algorithm(max_size):
  """25 steps of two layers; with max_size 5 the six columns keep the identity."""
  g = correlated((2, 5, 6), 25)
  ours = run(soap_of_tests(max_size=max_size), g)
  for i in range(2):
    theirs = np.stack(list(soap_reference(g[:, i], max_size)))
    np.testing.assert_allclose(ours[:, i], theirs, rtol=0, atol=1e-9)


def test_kl_soap_is_the_papers_algorithm():
  g = correlated((2, 5, 6), 25) / 50  # small enough for the floor of the eigenvalues to be met
  ours = run(soap_of_tests(kl=True), g)
  for i in range(2):
    theirs = np.stack(list(kl_reference(g[:, i])))
    np.testing.assert_allclose(ours[:, i], theirs, rtol=0, atol=1e-8)
  assert np.abs(ours - run(soap_of_tests(), g)).max() > 0.1


def test_the_first_step_learns_unless_skipped():
  """By default it is Adam's, and all after it are those of moments that saw it in the new basis."""
  g = correlated((5, 5), 2)
  ours = run(soap_of_tests(skip_first=False), g)
  np.testing.assert_allclose(ours[0], g[0] / (np.abs(g[0]) + EPS), rtol=1e-9)
  left, right = (basis(x) for x in (g[0] @ g[0].T, g[0].T @ g[0]))
  seen = left.T @ g @ right
  m = (B1 * seen[0] + seen[1]) / (1 + B1)
  v = (B2 * seen[0] ** 2 + seen[1] ** 2) / (1 + B2)
  np.testing.assert_allclose(ours[1], left @ (m / (np.sqrt(v) + EPS)) @ right.T, atol=1e-7)


def test_the_ready_chain_takes_matrices_and_leaves_the_rest_to_adam():
  rng = np.random.default_rng(0)
  shapes = {'w': (3, 4, 5), 'qkv': (3, 4, 8), 'scale': (3, 4), 'tokens': (6, 4)}
  p, g = ({k: rng.standard_normal(s) for k, s in shapes.items()} for _ in range(2))

  def tree(x):
    block = {'w': x['w'], 'attn': {'qkv': x['qkv']}, 'norm': {'scale': x['scale']}}
    return {'decoder': {'0-2': block}, 'embed': {'tokens': x['tokens']}}

  matrices = [('qkv$', Matrix(cut=(4, 4))), ('/w$', True), ('', False)]
  tx = soap(1e-2, B1, B2, eps=EPS, shampoo_beta=BETA, every=EVERY, matrices=matrices)
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, tree(p))
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
      updates, state = update(tree(g), state, params)
    adam = optax.adamw(1e-2, B1, B2, EPS, weight_decay=0.01)
    theirs = adam.init(params['embed'])
    for _ in range(2):
      expected, theirs = adam.update(tree(g)['embed'], theirs, params['embed'])
    np.testing.assert_allclose(updates['embed']['tokens'], expected['tokens'], rtol=1e-6)
    core = scale_by_soap(B1, B2, eps=EPS, shampoo_beta=BETA, every=EVERY)
    for ours, x, w in (
      (updates['decoder']['0-2']['w'], g['w'], p['w']),
      (updates['decoder']['0-2']['attn']['qkv'][..., 4:], g['qkv'][..., 4:], p['qkv'][..., 4:]),
    ):
      alone = run(core, np.stack([x, x]))[1]
      np.testing.assert_allclose(ours, -1e-2 * (alone + 0.01 * w), atol=1e-9)
