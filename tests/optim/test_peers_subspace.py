"""Low-dimensional rules against pytorch_optimizer 4.1.0, in float64.

Weights there are `[out, in]`, here `[in, out]`. GaLore's step is `lr sqrt(c2) / c1 * m / (sqrt(v) +
eps)` there, with eps outside of the bias correction, so eps is tiny here; its subspace is refreshed
at steps 1, k, 2k, ... counted from 1, ours at 0, k, 2k, ... counted from 0: one subspace lasts all
steps here (the NumPy test has refreshes).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.lora_rite import lora_rite
from jaxtune.optim.subspace import galore, in_subspace, limit_growth, svd_projector

pytestmark = pytest.mark.peers
torch = pytest.importorskip('torch')
peer = pytest.importorskip('pytorch_optimizer')

RATE, B1, B2, STEPS = 1e-2, 0.9, 0.99, 24


def gradients(shape, seed=1, large=1):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(shape) * (large if i % 3 == 2 else 1) for i in range(STEPS)]


def ours(tx, start, gradient):
  """Runs with `gradient(step, params)`."""

  @jax.jit
  def step(params, state, g):
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state

  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    for i in range(STEPS):
      params, state = step(params, state, gradient(i, params))
    return jax.tree.map(np.asarray, params)


def theirs(make, start, gradient):
  """`start` and gradients as lists, in the orientation of torch."""
  params = [torch.nn.Parameter(torch.tensor(p)) for p in start]
  optimizer = make(params)
  for i in range(STEPS):
    for p, g in zip(params, gradient(i, params), strict=True):
      p.grad = torch.as_tensor(np.array(g))
    optimizer.step()
  return [p.detach().numpy() for p in params]


SETTINGS = {'update_proj_gap': 1000, 'projection_type': 'std'}


@pytest.mark.parametrize('shape', [(7, 4), (4, 7), (5, 5)])
def test_galore(shape):
  start, gs = np.ones(shape), gradients(shape)
  want = theirs(
    lambda p: peer.GaLore(
      [{'params': p, 'rank': 3, 'scale': 0.5, **SETTINGS}], RATE, (B1, B2), eps=1e-12
    ),
    [start.T],
    lambda i, p: [gs[i].T],
  )
  got = ours(galore(RATE, 3, 1000, 0.5, B1, B2, 1e-12), {'w': start}, lambda i, p: {'w': gs[i]})
  # torch runs the decomposition of float64 gradients in float32.
  np.testing.assert_allclose(got['w'], want[0].T, atol=1e-5)


@pytest.mark.parametrize('per', ['channel', 'tensor'])
def test_the_norm_ratios_and_the_limiter_of_apollo(per, monkeypatch):
  """The peer scales the *projected* gradient and projects it back, where the paper (Algorithm 1,
  step 4) scales the full gradient; ours is held to the paper in test_subspace.py. On gradients that
  lie in the subspace the two agree. Two more differences are taken away here: the peer's limiter
  sees updates before Adam's bias correction (b1 = 0 and b2 so near 1 that the correction is a
  constant, 1 / sqrt(t)), and its subspace is random (given the singular vectors instead).
  """
  rng = np.random.default_rng(0)
  inside = np.linalg.qr(rng.standard_normal((4, 2)))[0]
  gs = [inside @ g for g in gradients((2, 7), large=5)]
  galore_projector = peer.optimizer.apollo.GaLoreProjector
  draw = galore_projector.get_orthogonal_matrix
  monkeypatch.setattr(
    galore_projector,
    'get_orthogonal_matrix',
    lambda self, w, projection_type, from_random_matrix=False: draw(self, w, projection_type),
  )
  want = theirs(
    lambda p: peer.APOLLO(
      [{'params': p, 'rank': 2, 'scale': 4.0, **SETTINGS}],
      RATE,
      (0.0, B2),
      per,
      eps=1e-12,
      correct_bias=False,
    ),
    [np.ones((7, 4))],
    lambda i, p: [gs[i].T],
  )
  # Adam without its bias corrections is RMSprop with a zero start.
  inner = optax.scale_by_rms(B2, eps=1e-12, eps_in_sqrt=False)
  core = in_subspace(inner, svd_projector(2, 1000), per)
  # A scale of 4 is a factor of sqrt(4), and another of 4 in projecting back.
  tx = optax.chain(core, limit_growth(1.01), optax.scale(8.0), optax.scale(-RATE))
  got = ours(tx, {'w': np.ones((4, 7))}, lambda i, p: {'w': gs[i]})
  np.testing.assert_allclose(got['w'], want[0].T, atol=1e-5)  # float32 singular vectors


@pytest.mark.parametrize('zero', [True, False])
def test_lora_rite(zero):
  """With its clip and skip switched off, and the escaped mass, which is off by default. PEFT's A is
  `[r, in]` and B `[out, r]`; eps enters the root a second time there, squared."""
  rng = np.random.default_rng(3)
  a, b = rng.standard_normal((6, 3)), rng.standard_normal((3, 5)) * (not zero)
  targets = gradients((6, 5))

  def error(i, a, b):
    return a @ b - targets[i]

  def torch_gradient(i, params):
    a, b = (p.detach().numpy().T for p in params)
    return [(error(i, a, b) @ b.T).T, (a.T @ error(i, a, b)).T]

  def gradient(i, params):
    a, b = params['lora_a'], params['lora_b']
    return {'lora_a': error(i, a, b) @ b.T, 'lora_b': a.T @ error(i, a, b)}

  want = theirs(
    lambda p: peer.LoRARite(
      p,
      RATE,
      (B1, B2),
      clip_unmagnified_grad=0.0,
      update_skipping=0.0,
      weight_decay=0.1,
      apply_escape=True,
    ),
    [a.T, b.T],
    torch_gradient,
  )
  tx = lora_rite(RATE, B1, B2, weight_decay=0.1)
  got = ours(tx, {'lora_a': a, 'lora_b': b}, gradient)
  np.testing.assert_allclose(got['lora_a'], want[0].T, rtol=1e-6)
  np.testing.assert_allclose(got['lora_b'], want[1].T, rtol=1e-6)
