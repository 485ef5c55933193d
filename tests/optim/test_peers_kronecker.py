"""SOAP, Shampoo and Kron beside pytorch_optimizer 4.1.0 and heavyball 3.2.1, in float64.

KL-SOAP has no peer here: heavyball's and emerging-optimizers' KLSOAP take the eigenvalues from the
factors of the present step, with other starts, where ours follows its authors' code (a NumPy
version of that is in test_soap.py). heavyball's PSGDKron normalizes by a running bound, starts at a
scale taken from the first gradient and clips by another function: pytorch_optimizer's Kron is the
one whose conventions can be met.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.kron import scale_by_kron, thinning
from jaxtune.optim.shampoo import graft, scale_by_shampoo
from jaxtune.optim.soap import scale_by_soap

pytestmark = pytest.mark.peers
torch = pytest.importorskip('torch')


def gradients(shape=(5, 6), steps=25):
  rng = np.random.default_rng(0)
  left, right = rng.standard_normal((shape[0],) * 2), rng.standard_normal((shape[1],) * 2)
  return left @ rng.standard_normal((steps, *shape)) @ right / 10


def ours(tx, gradients):
  step = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
  with jax.enable_x64(True):
    scan = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])
    return jax.device_get(scan(jnp.asarray(gradients)))


def theirs(make, gradients):
  """The updates, divided by minus the learning rate of 1."""
  p = torch.nn.Parameter(torch.zeros(gradients.shape[1:], dtype=torch.float64))
  optimizer = make([p])
  updates = []
  for g in gradients:
    before = p.detach().clone()
    p.grad = torch.tensor(g)
    optimizer.step()
    updates.append((before - p.detach()).numpy())
  return np.stack(updates)


@pytest.mark.parametrize(('every', 'max_size'), [(3, 99), (1, 5)])
def test_soap_of_pytorch_optimizer(every, max_size, monkeypatch):
  """It skips the first step and adds eps before the correction of the start: 1e-16 hides that."""
  monkeypatch.setattr(torch, 'float32', torch.float64)  # to which its QR casts
  peer = pytest.importorskip('pytorch_optimizer')
  make = lambda p: peer.SOAP(  # noqa: E731
    p,
    lr=1.0,
    betas=(0.9, 0.95),
    shampoo_beta=0.8,
    weight_decay=0.0,
    precondition_frequency=every,
    max_precondition_dim=max_size,
    eps=1e-16,
  )
  tx = scale_by_soap(
    0.9, 0.95, shampoo_beta=0.8, eps=1e-16, every=every, max_size=max_size, skip_first=True
  )
  g = gradients()
  np.testing.assert_allclose(ours(tx, g), theirs(make, g), rtol=0, atol=1e-8)


def test_soap_of_heavyball():
  """Turned at each step, as its schedule counts from another one.

  Its factors are debiased, which leaves the bases alone, and it adds 1e-8 of the largest eigenvalue
  before a power iteration, which moves them by that much.
  """
  peer = pytest.importorskip('heavyball')
  peer.utils.compile_mode = None
  make = lambda p: peer.SOAP(  # noqa: E731
    p,
    lr=1.0,
    betas=(0.9, 0.95),
    shampoo_beta=0.8,
    eps=1e-14,
    weight_decay=0.0,
    precondition_frequency=1,
    merge_dims=False,
    storage_dtype='float64',
  )
  tx = scale_by_soap(0.9, 0.95, shampoo_beta=0.8, eps=1e-14, every=1, skip_first=True)
  g = gradients()
  np.testing.assert_allclose(ours(tx, g), theirs(make, g), rtol=0, atol=1e-6)


def test_shampoo_of_pytorch_optimizer():
  """The first Shampoo: sums, no average of the gradients, fourth roots at each step."""
  peer = pytest.importorskip('pytorch_optimizer')
  g = gradients((5, 5))
  tx = scale_by_shampoo(0.0, average=False, eps=1e-16, every=1)
  np.testing.assert_allclose(
    ours(tx, g), theirs(lambda p: peer.Shampoo(p, lr=1.0, matrix_eps=1e-30), g), rtol=0, atol=1e-9
  )


@pytest.mark.parametrize('size', ['gradient', 'sign'])
def test_scalable_shampoo_of_pytorch_optimizer(size):
  """Without its momentum, which comes after the roots; grafting hides that it debiases nothing."""
  peer = pytest.importorskip('pytorch_optimizer')
  kinds = {'gradient': 1, 'sign': 4}
  make = lambda p: peer.ScalableShampoo(  # noqa: E731
    p,
    lr=1.0,
    betas=(0.0, 0.9),
    start_preconditioning_step=1,
    preconditioning_compute_steps=1,
    graft_type=kinds[size],
    nesterov=False,
    matrix_eps=1e-30,
    use_svd=True,
    shape_interpretation=False,
  )
  g = gradients((5, 5))
  sizes = {'gradient': optax.identity(), 'sign': optax.scale_by_sign()}
  tx = graft(scale_by_shampoo(0.0, 0.9, eps=1e-16, every=1), sizes[size])
  np.testing.assert_allclose(ours(tx, g), theirs(make, g), rtol=0, atol=1e-9)


@pytest.mark.parametrize('annealed', [True, False])
def test_kron_of_pytorch_optimizer(annealed, monkeypatch):
  """With our draws of noise in place of its own. It balances at random, which changes nothing."""
  peer = pytest.importorskip('pytorch_optimizer')
  steps = []
  monkeypatch.setattr(torch, 'float32', torch.float64)  # to which its triangular solves cast

  def draw(x, dtype=None):
    step = len(steps) if annealed else 2 * len(steps) + 1
    steps.append(step)
    with jax.enable_x64(True):
      key = jax.random.fold_in(jax.random.key(0), step)
      return torch.tensor(np.asarray(jax.random.normal(key, x.shape, jnp.float64)))

  monkeypatch.setattr(torch, 'randn_like', draw)
  make = lambda p: peer.Kron(  # noqa: E731
    p,
    lr=1.0,
    precondition_dtype=torch.float64,
    pre_conditioner_update_probability=None if annealed else 0.5,
  )
  every = thinning if annealed else 2
  tx = optax.chain(optax.ema(0.9), scale_by_kron(every=every))
  g = gradients()
  np.testing.assert_allclose(ours(tx, g), theirs(make, g), rtol=0, atol=1e-9)
  assert len(steps) == (25 if annealed else 12)
