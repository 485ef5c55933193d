"""Norm control and block-wise moments beside their implementations in PyTorch.

heavyball 3.2.1 and pytorch_optimizer 4.1.0. Weights are [out, in] there and [in, out] here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.blockwise import ADAM_MINI, Blocks, adam_mini
from jaxtune.optim.hyperball import adam_h, hold_norms
from jaxtune.optim.qk_clip import muonclip
from jaxtune.optim.scion import Ball, scion

pytestmark = pytest.mark.peers
STEPS = 20


def arrays(seed, shapes, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def ours(tx, shapes, dtype=np.float32, **extra):
  """The parameters after every step."""

  @jax.jit
  def step(params, state, gradient, extra):
    updates, state = tx.update(gradient, state, params, **extra)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, arrays(0, shapes, dtype))
  state, path = tx.init(params), []
  for i in range(STEPS):
    now = jax.tree.map(lambda x, i=i: x[i], extra)
    params, state = step(params, state, arrays(i + 1, shapes, dtype), now)
    path.append(params)
  return path


def theirs(parameters, optimizer, shapes, dtype=np.float32, **extra):
  """The same of a torch optimizer; `parameters` by our names, matrices transposed."""
  import torch

  def put(x):
    return torch.from_numpy(np.ascontiguousarray(x.T))

  path = []
  for i in range(STEPS):
    for name, g in arrays(i + 1, shapes, dtype).items():
      parameters[name].grad = put(g)
    optimizer.step(**{name: value[i] for name, value in extra.items()})
    path.append({name: p.detach().numpy().T.copy() for name, p in parameters.items()})
  return path


def start(shapes, dtype=np.float32):
  import torch

  return {
    name: torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(x.T)))
    for name, x in arrays(0, shapes, dtype).items()
  }


def assert_close(got, want, rtol=1e-6, atol=1e-6):
  for a, b in zip(got, want, strict=True):
    for name in b:
      np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
def test_hyperball_of_heavyball(weight_decay):
  """heavyball.HyperBallAdamW has no first moment, whatever its betas say; its eps is a floor under
  the root; decay bends the direction before it is normalized. So ours has b1 = 0, eps = 0, and
  the decay in the direction of the matrices."""
  heavyball = pytest.importorskip('heavyball')
  heavyball.utils.compile_mode = None
  shapes = {'w': (6, 4), 'v': (3, 5), 'bias': (5,)}
  parameters = start(shapes)
  optimizer = heavyball.HyperBallAdamW(
    list(parameters.values()), lr=0.03, betas=(0.9, 0.95), weight_decay=weight_decay
  )
  want = theirs(parameters, optimizer, shapes)
  if weight_decay:
    direction = optax.chain(
      optax.scale_by_adam(0.0, 0.95, 0.0), optax.add_decayed_weights(weight_decay)
    )
    tx = hold_norms(direction, 0.03)
  else:
    tx = adam_h(0.03, 0.0, 0.95, 0.0)
  assert_close(ours(tx, shapes), want)


def test_adam_mini_of_pytorch_optimizer():
  """Its partition is that of the authors' package: all of Adam's second moments for embeddings and
  heads, heads of queries and keys, one number for every other tensor; nothing by output neuron.
  The decay comes first there, before the step: the same product when nothing else is masked."""
  torch_optimizer = pytest.importorskip('pytorch_optimizer')
  import torch

  names = {
    'embed/tokens': 'embed_tokens.weight',
    'attn/q': 'q_proj.weight',
    'attn/k': 'k_proj.weight',
    'attn/v': 'v_proj.weight',
    'mlp/up': 'up_proj.weight',
    'norm/scale': 'norm.weight',
    'head/dense': 'lm_head.weight',
  }
  shapes = {'embed/tokens': (7, 8), 'attn/q': (8, 8), 'attn/k': (8, 4), 'attn/v': (8, 4)}
  shapes |= {'mlp/up': (8, 12), 'norm/scale': (8,), 'head/dense': (8, 7)}
  parameters = start(shapes, np.float32)
  model = torch.nn.Module()
  for name, theirs_name in names.items():
    module = torch.nn.Module()
    module.register_parameter('weight', parameters[name])
    model.add_module(theirs_name.removesuffix('.weight'), module)
  optimizer = torch_optimizer.AdamMini(
    model, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, num_embeds=8, num_heads=4
  )
  want = theirs(parameters, optimizer, shapes)
  blocks = [
    ('embed|head', Blocks((None, None))),
    ('attn/q', Blocks((4,))),
    ('attn/k', Blocks((2,))),
    ('', Blocks()),
  ]
  got = ours(adam_mini(0.01, 0.9, 0.95, weight_decay=0.1, blocks=blocks), shapes)
  assert_close(got, want)
  with pytest.raises(AssertionError):  # the paper's own partition is another
    assert_close(ours(adam_mini(0.01, 0.9, 0.95, weight_decay=0.1, blocks=ADAM_MINI), shapes), want)


@pytest.mark.parametrize('constrained', [False, True])
@pytest.mark.parametrize(
  ('ball', 'norm'),
  [
    (Ball('spectral', 2.0), 'SPECTRAL'),
    (Ball('sign', 30.0), 'SIGN'),
    (Ball('per_output', 3.0), 'ROW'),
    (Ball('per_input', 3.0), 'COL'),
  ],
)
def test_scion_of_pytorch_optimizer(monkeypatch, constrained, ball, norm):
  """`momentum` is there the weight of the present. Newton-Schulz runs in bfloat16 there; here both
  run in float64, with the same coefficients. Its rows and columns add 1e-8 to the norm."""
  torch_optimizer = pytest.importorskip('pytorch_optimizer')
  import torch
  from pytorch_optimizer.optimizer import scion as module

  exact = functools.partial(module.zero_power_via_newton_schulz_5, dtype=torch.float64)
  monkeypatch.setattr(module, 'zero_power_via_newton_schulz_5', exact)
  shapes = {'w': (6, 4), 'v': (3, 5), 'bias': (5,)}
  parameters = start(shapes, np.float64)
  groups = [
    {
      'params': [parameters['w'], parameters['v']],
      'norm_type': module.LMONorm[norm],
      'scale': ball.radius,
    },
    {'params': [parameters['bias']], 'norm_type': module.LMONorm.BIAS, 'scale': 0.5},
  ]
  optimizer = torch_optimizer.SCION(groups, lr=0.05, momentum=0.1, constraint=constrained)
  want = theirs(parameters, optimizer, shapes, np.float64)
  with jax.enable_x64(True):
    tx = scion(
      0.05,
      constrained=constrained,
      balls=[('bias', Ball('rms', 0.5)), ('', ball)],
    )
    assert_close(ours(tx, shapes, np.float64), want)


def test_muonclip_of_pytorch_optimizer(monkeypatch):
  """With queries and keys of as many heads; shared keys it does not know. Its momentum has no
  Nesterov form, as in the paper. Newton-Schulz runs in bfloat16 there; here both in float64."""
  torch_optimizer = pytest.importorskip('pytorch_optimizer')
  import torch
  from pytorch_optimizer.optimizer.muon import base as module

  exact = functools.partial(module.zero_power_via_newton_schulz_5, dtype=torch.float64)
  monkeypatch.setattr(module, 'zero_power_via_newton_schulz_5', exact)
  shapes = {'attn/q': (6, 8), 'attn/k': (6, 8), 'attn/v': (6, 4)}
  parameters = start(shapes, np.float64)
  roles = {'attn/q': 'query', 'attn/k': 'key', 'attn/v': None}
  groups = [
    {'params': [parameters[name]], 'use_muon': True, 'qk_clip': role, 'attention_name': 'attn'}
    for name, role in roles.items()
  ]
  optimizer = torch_optimizer.MuonClip(
    groups, lr=0.02, momentum=0.9, weight_decay=0.1, qk_clip_threshold=100.0
  )
  maxima = np.random.default_rng(99).uniform(-50, 200, (STEPS, 4))
  logits = [{'attn': torch.from_numpy(x)} for x in maxima]
  # Theirs clips in float32 what ours clips in float64.
  want = theirs(parameters, optimizer, shapes, np.float64, attention_max_logits=logits)
  with jax.enable_x64(True):
    tx = muonclip(0.02, 100.0, 0.9)
    got = ours(tx, shapes, np.float64, query_key_maxima={'attn': maxima})
    assert_close(got, want)
