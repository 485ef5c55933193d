"""8-bit AdamW beside that of bitsandbytes 0.50.2, whose optimizer runs on the CPU too.

Its CPU kernel gives numbers far below the block's maximum codes up to four off the nearest (40% of
numbers drawn over seven decades); its other backends take the nearest. Its optimizer is therefore
run with the code that its portable backend has: the place of x / absmax among the midpoints.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.optim.codecs import Blocks, dynamic_8bit
from jaxtune.optim.quantize import adamw_8bit

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
SIGNS = pytest.mark.parametrize('signed', [True, False], ids=['signed', 'unsigned'])


@pytest.fixture
def bnb():
  pytest.importorskip('torch')
  return pytest.importorskip('bitsandbytes')


def nearest(x, book, blocksize):
  import torch

  blocks = x.reshape(-1, blocksize)
  absmax = blocks.abs().max(-1)[0]
  place = (blocks / absmax[:, None]).reshape(x.shape)
  return torch.bucketize(place, (book[1:] + book[:-1]) / 2).to(torch.uint8), absmax


@SIGNS
def test_code_book(bnb, signed):
  theirs = bnb.functional.create_dynamic_map(signed=signed).numpy()
  ours = dynamic_8bit(signed).decode(Blocks(np.arange(256, dtype=np.uint8), jnp.ones((1,))))
  np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)


@SIGNS
def test_codes(bnb, signed):
  """Theirs decode to the same numbers here, and numbers near the maximum get the same codes."""
  import torch

  rng = np.random.default_rng(0)
  x = rng.uniform(0.2, 1, (16, 1024)).astype(np.float32)
  x = x * rng.choice([-1, 1], x.shape).astype(np.float32) if signed else x
  book = bnb.functional.create_dynamic_map(signed=signed)
  codes, state = bnb.functional.quantize_blockwise(torch.tensor(x), code=book, blocksize=256)
  codec = dynamic_8bit(signed)
  ours = codec.encode(x, jax.random.key(0))
  np.testing.assert_array_equal(ours.scales.reshape(-1), state.absmax.numpy())
  assert np.mean(ours.codes != codes.numpy()) < 1e-3  # ties within rounding
  theirs = bnb.functional.dequantize_blockwise(codes, state).numpy()
  back = codec.decode(Blocks(jnp.asarray(codes.numpy()), ours.scales))
  np.testing.assert_allclose(back, theirs, rtol=1e-6)


def test_twenty_steps(bnb, monkeypatch):
  """Their decay comes before the step, ours beside it: the same sum."""
  import torch
  from bitsandbytes.backends.cpu import ops

  def encode(x, book, absmax, codes, blocksize):
    new, scales = nearest(x, book, blocksize)
    codes.copy_(new)
    absmax.copy_(scales)

  monkeypatch.setattr(ops, '_quant_blockwise_fp32_direct', encode)
  rng = np.random.default_rng(1)
  start = rng.standard_normal((16, 512)).astype(np.float32)
  scale = 10.0 ** rng.uniform(-3, 0, (16, 1))
  gradients = [(scale * rng.standard_normal((16, 512))).astype(np.float32) for _ in range(20)]
  theirs = torch.nn.Parameter(torch.tensor(start))
  rule = bnb.optim.AdamW8bit([theirs], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
  tx = adamw_8bit(1e-2, weight_decay=0.1)
  params = {'w': jnp.asarray(start)}
  state = tx.init(params)

  @jax.jit
  def step(params, state, g):
    updates, state = tx.update({'w': g}, state, params)
    return optax.apply_updates(params, updates), state

  for g in gradients:
    theirs.grad = torch.tensor(g)
    rule.step()
    params, state = step(params, state, g)
  apart = np.abs(params['w'] - theirs.detach().numpy())
  assert np.mean(apart > 2e-6) < 3e-3 and np.max(apart) < 1e-3  # ties, as above
  held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Blocks))
  mu, nu = (x for x in held if isinstance(x, Blocks))
  kept = rule.state[theirs]
  assert kept['state1'].dtype == torch.uint8
  for ours, codes in ((mu, kept['state1']), (nu, kept['state2'])):
    assert np.mean(ours.codes != codes.numpy()) < 2e-3
