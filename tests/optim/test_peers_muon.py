"""Muon and NorMuon beside torch, pytorch_optimizer and emerging-optimizers, 20 steps in float64.

Peers keep weights as [out, in], so they get ours transposed. They round the matrix to bfloat16
before Newton-Schulz; that one cast is taken out of them, so that all else can be compared exactly.
Their momentum is (1 - mu) times ours, which is of no effect.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.muon import muon
from jaxtune.optim.normuon import normuon
from jaxtune.optim.orthogonalize import POLAR_EXPRESS, newton_schulz

pytestmark = pytest.mark.peers
STEPS = 20
SHAPES = {'wide': (4, 7), 'tall': (9, 3), 'square': (5, 5), 'bias': (6,)}


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


def draws():
  rng = np.random.default_rng(0)
  return [{k: rng.standard_normal(s) for k, s in SHAPES.items()} for _ in range(STEPS + 1)]


def ours(tx):
  with jax.enable_x64(True):
    params, *gradients = (jax.tree.map(jnp.asarray, d) for d in draws())
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
      updates, state = update(g, state, params)
      params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


def theirs(torch, make, names):
  params, *gradients = draws()
  tensors = {k: torch.nn.Parameter(torch.tensor(params[k].T)) for k in names}
  optimizer = make(tensors)
  for gradient in gradients:
    for k, tensor in tensors.items():
      tensor.grad = torch.tensor(gradient[k].T)
    optimizer.step()
  return {k: tensor.detach().numpy().T for k, tensor in tensors.items()}


def assert_equal(a, b, names):
  for k in names:
    np.testing.assert_allclose(a[k], b[k], rtol=0, atol=1e-10, err_msg=k)


MATRICES = ('wide', 'tall', 'square')


@pytest.mark.parametrize(
  ('adjust', 'fn'), [('rms', 'match_rms_adamw'), ('spectral', 'original'), ('spectral', None)]
)
@pytest.mark.parametrize('nesterov', [True, False])
def test_torch(torch, monkeypatch, adjust, fn, nesterov):
  """torch.optim.Muon of 2.13."""
  monkeypatch.setattr(torch.Tensor, 'bfloat16', torch.Tensor.clone)
  peer = theirs(
    torch,
    lambda p: torch.optim.Muon(
      p.values(), lr=0.02, weight_decay=0.3, nesterov=nesterov, adjust_lr_fn=fn
    ),
    MATRICES,
  )
  mine = ours(muon(0.02, nesterov=nesterov, adjust=adjust, weight_decay=0.3))
  assert_equal(mine, peer, MATRICES)


def test_torch_as_it_is_within_its_rounding(torch):
  """One step with its bfloat16 and ours: both as far from the float64 result as rounding is."""
  x = np.random.default_rng(0).standard_normal((24, 48))
  w = torch.nn.Parameter(torch.zeros(24, 48))
  w.grad = torch.tensor(x, dtype=torch.float32)
  torch.optim.Muon([w], lr=1.0, weight_decay=0.0).step()
  with jax.enable_x64(True):
    exact = np.asarray(newton_schulz(jnp.asarray(x)))
  mine = np.asarray(newton_schulz(jnp.asarray(x, jnp.float32), dtype=jnp.bfloat16))
  for got in (mine, -w.detach().numpy()):
    assert 1e-3 < np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.02


@pytest.fixture
def in_float64(torch, monkeypatch):
  """Newton-Schulz of pytorch_optimizer in float64."""
  pytest.importorskip('pytorch_optimizer')
  from pytorch_optimizer.optimizer.muon import base
  from pytorch_optimizer.optimizer.muon import normuon as peer

  function = functools.partial(base.zero_power_via_newton_schulz_5, dtype=torch.float64)
  monkeypatch.setattr(base, 'zero_power_via_newton_schulz_5', function)
  monkeypatch.setattr(peer, 'zero_power_via_newton_schulz_5', function)


def groups(tensors, **options):
  """Matrices to the rule, the bias to AdamW with the same rate and no decay."""
  return [
    {'params': [tensors[k] for k in MATRICES], 'use_muon': True, **options},
    {'params': [tensors['bias']], 'use_muon': False, 'lr': options['lr'], 'betas': (0.9, 0.95)},
  ]


REST = optax.scale_by_adam(0.9, 0.95, eps=1e-10)


@pytest.mark.parametrize(('adjust', 'adjusted'), [('rms', True), ('spectral', False)])
def test_pytorch_optimizer_muon(torch, in_float64, adjust, adjusted):
  """pytorch_optimizer 4.1.0."""
  from pytorch_optimizer import Muon

  peer = theirs(
    torch,
    lambda p: Muon(groups(p, lr=0.02, weight_decay=0.3, use_adjusted_lr=adjusted), foreach=False),
    SHAPES,
  )
  assert_equal(ours(muon(0.02, adjust=adjust, weight_decay=0.3, rest=REST)), peer, SHAPES)


@pytest.mark.parametrize('nesterov', [True, False])
def test_pytorch_optimizer_normuon(torch, in_float64, nesterov):
  """pytorch_optimizer 4.1.0 with `match_rms`, Algorithm 1 of the paper; its default is the code."""
  from pytorch_optimizer import NorMuon

  options = {'lr': 0.02, 'weight_decay': 0.3, 'update_scale': 'match_rms', 'beta2': 0.9}
  peer = theirs(
    torch, lambda p: NorMuon(groups(p, nesterov=nesterov, **options), foreach=False), SHAPES
  )
  mine = ours(normuon(0.02, beta2=0.9, eps=1e-10, nesterov=nesterov, weight_decay=0.3, rest=REST))
  assert_equal(mine, peer, SHAPES)


@pytest.mark.parametrize('shape', [(6, 9), (9, 6), (2, 6, 9)])
def test_emerging_optimizers(torch, shape):
  """emerging-optimizers 0.3.0 in float32: Jordan's set, and a table of five rows."""
  peer = pytest.importorskip('emerging_optimizers.orthogonalized_optimizers.muon_utils')
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  table = POLAR_EXPRESS[:5]
  for given, options in (
    ('standard', {'coefficient_type': 'simple'}),
    (table, {'coefficient_type': 'custom', 'custom_coefficient_sets': list(table)}),
  ):
    want = peer.newton_schulz(torch.tensor(x), steps=5, **options).numpy()
    np.testing.assert_allclose(newton_schulz(jnp.asarray(x), 5, given), want, atol=3e-6)
