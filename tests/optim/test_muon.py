"""Muon against float64 NumPy from its equations, against Optax, and at its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune.optim.muon import muon, scale_by_muon
from jaxtune.typing import InputError

STEPS = 20
SHAPES = {
  'decoder/0-2/attn/q': (3, 6, 4),
  'decoder/0-2/attn_norm/scale': (3, 4),
  'layers/0/w': (4, 6),
  'layers/1/w': (4, 6),
  'layers/1/bias': (6,),
  'embed/tokens': (9, 4),
}


def numbers(seed, dtype=None):
  rng = np.random.default_rng(seed)
  flat = {k: jnp.asarray(rng.standard_normal(s), dtype or float) for k, s in SHAPES.items()}
  tree = {}
  for path, x in flat.items():
    *parents, name = path.split('/')
    functools.reduce(lambda t, k: t.setdefault(k, {}), parents, tree)[name] = x
  return tree | {'frozen': None}


def newton_schulz(x, steps=5):
  """Jordan's, on [..., rows, columns] as they are."""
  x = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
  for _ in range(steps):
    a = x @ x.swapaxes(-1, -2)
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x


def matrix_oracle(w, gradients, *, rate, decay, factor, nesterov, mu=0.95):
  """Liu et al., arXiv 2502.16982, section 2, with the (1 - mu) form of the momentum."""
  m = np.zeros_like(w)
  for g in gradients:
    m = mu * m + (1 - mu) * g
    d = mu * m + (1 - mu) * g if nesterov else m
    w = w - rate * (factor * newton_schulz(d) + decay * w)
  return w


def adamw_oracle(w, gradients, *, rate, decay, b1=0.9, b2=0.999, eps=1e-8):
  m, v = np.zeros_like(w), np.zeros_like(w)
  for t, g in enumerate(gradients, 1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    w = w - rate * (u + decay * w)
  return w


def run(tx, params, gradients):
  @jax.jit
  def step(params, state, g):
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for g in gradients:
    params, state = step(params, state, g)
  return params, state


@pytest.mark.parametrize(
  ('nesterov', 'adjust', 'factors'),
  [
    (True, 'rms', (0.2 * 6**0.5, 0.2 * 6**0.5)),
    (False, 'spectral', (1.0, 1.5**0.5)),
    (True, 'mup', ((4 / 6) ** 0.5, 1.5**0.5)),
  ],
)
def test_against_numpy_in_float64(nesterov, adjust, factors):
  with jax.enable_x64(True):
    params, gradients = numbers(0), [numbers(i + 1) for i in range(STEPS)]
    tx = muon(0.03, nesterov=nesterov, adjust=adjust, weight_decay=0.2)
    new, _ = run(tx, params, gradients)
  kwargs = {'rate': 0.03, 'nesterov': nesterov}
  wanted = {
    ('decoder', '0-2', 'attn', 'q'): (
      matrix_oracle,
      {'decay': 0.2, 'factor': factors[0], **kwargs},
    ),
    ('layers', '0', 'w'): (matrix_oracle, {'decay': 0.2, 'factor': factors[1], **kwargs}),
    ('layers', '1', 'w'): (matrix_oracle, {'decay': 0.2, 'factor': factors[1], **kwargs}),
    ('decoder', '0-2', 'attn_norm', 'scale'): (adamw_oracle, {'rate': 0.03, 'decay': 0.0}),
    ('layers', '1', 'bias'): (adamw_oracle, {'rate': 0.03, 'decay': 0.0}),
    ('embed', 'tokens'): (adamw_oracle, {'rate': 0.03, 'decay': 0.2}),
  }
  for path, (oracle, options) in wanted.items():
    take = functools.partial(functools.reduce, lambda t, k: t[k], path)
    got = np.asarray(take(new))
    want = oracle(np.asarray(take(params)), [np.asarray(take(g)) for g in gradients], **options)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11, err_msg=str(path))


def test_without_nesterov_the_direction_is_that_of_optax():
  """optax.contrib.muon 0.2.8 of float64 matrices: its bias correction is only a length here.

  Its eps of 1e-8 is added to the norm. With nesterov it corrects each term by another number.
  """
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    params, *gradients = (
      {k: jnp.asarray(rng.standard_normal(s)) for k, s in (('a', (5, 8)), ('b', (8, 5)))}
      for _ in range(STEPS + 1)
    )
    ours = muon(0.01, nesterov=False, adjust='spectral', weight_decay=0.1)
    theirs = optax.contrib.muon(0.01, nesterov=False, weight_decay=0.1)
    for a, b in zip(
      *(jax.tree.leaves(run(tx, params, gradients)[0]) for tx in (ours, theirs)), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-7)


def test_the_state_of_stacks_keeps_its_path_and_small_matrices_are_one_batch():
  params = numbers(0, jnp.bfloat16)
  state = scale_by_muon().init(
    {'decoder': {'0-2': {'q': jnp.ones((3, 6, 4), jnp.bfloat16)}}, 'layers': [jnp.ones((4, 6))] * 2}
  )
  assert {k: (x.shape, str(x.dtype)) for k, x in state[0].trace.items()} == {
    'decoder/0-2/q': ((3, 6, 4), 'float32'),
    '4x6': ((2, 4, 6), 'float32'),
  }
  state = muon(0.1).init(params)
  inexact = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
  assert {str(x.dtype) for x in inexact} == {'float32'}


def test_sharded_over_devices_is_unsharded():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  params, gradients = numbers(0, jnp.float32), [numbers(i, jnp.float32) for i in (1, 2, 3)]
  plain, _ = run(muon(0.1), params, gradients)
  shared, state = run(
    muon(0.1, sharding=NamedSharding(mesh, PartitionSpec('data'))), params, gradients
  )
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(shared), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  batch = state[0].matrices[0].trace['6x4']
  assert batch.shape == (8, 6, 4) and batch.addressable_shards[0].data.shape == (1, 6, 4)


def test_gradients_of_zero_and_their_length_do_not_matter():
  params = numbers(0, jnp.float32)
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = muon(0.1, weight_decay=0.0)
  new, _ = run(tx, params, [zeros, zeros])
  for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(a, b)
  g = {'w': numbers(1, jnp.float32)['layers']['0']['w']}
  core = scale_by_muon()
  outs = [core.update({'w': c * g['w']}, core.init(g))[0]['w'] for c in (1e-5, 1.0, 1e5)]
  np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)
  np.testing.assert_allclose(outs[2], outs[1], atol=1e-5)


def test_hyperparameters_may_be_traced():
  params, gradients = numbers(0, jnp.float32), [numbers(1, jnp.float32)]

  def one(rate, mu, decay):
    return run(muon(rate, mu, weight_decay=decay), params, gradients)[0]['layers']['0']['w']

  lanes = [jnp.asarray(x) for x in ([0.1, 0.2], [0.9, 0.95], [0.0, 0.1])]
  both = jax.jit(jax.vmap(one))(*lanes)
  np.testing.assert_allclose(both[1], one(0.2, 0.95, 0.1), atol=1e-5)


def test_bad_input():
  with pytest.raises(InputError, match="adjust is 'moonlight'; choose one of rms, spectral, mup"):
    muon(0.1, adjust='moonlight')
  with pytest.raises(InputError, match='steps is 0'):
    muon(0.1, steps=0)
  with pytest.raises(InputError, match="'bias'.*is no matrix"):
    scale_by_muon().init({'bias': jnp.ones(3)})
