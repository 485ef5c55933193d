"""A batch has one gradient, however its rows are cut into micro-batches, devices and processes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import data, losses, models, shard, train

B, T = 16, 8
MODEL = models.decoder(
  models.DecoderConfig(
    vocabulary=11, width=8, hidden=8, layers=1, heads=2, kv_heads=1, head_width=4
  )
)
# Its state is the last gradient, as the step gives it.
KEEP = optax.GradientTransformation(
  lambda p: p, lambda g, s, p: (jax.tree.map(jnp.zeros_like, g), g)
)


@functools.cache
def compiled(accumulate, sizes):
  params = MODEL.init(jax.random.key(0))
  frozen = jax.tree.map(lambda x: None, params)
  step = train.make_step(losses.causal_lm(MODEL), KEEP, accumulate=accumulate)
  state = train.init_state(params, KEEP, jax.random.key(0))
  if not sizes:
    plain = jax.jit(step)
    return lambda batch: plain(state, frozen, batch)
  mesh = shard.mesh(dict(sizes))
  shardings = shard.param_shardings(mesh, params, MODEL.axes(params))
  states = shard.state_shardings(mesh, state, params, shardings)
  state = jax.device_put(state, states)
  sharded = jax.jit(step, out_shardings=(states, shard.replicated(mesh)))
  return lambda batch: sharded(state, frozen, shard.place_batch(mesh, batch))


def gradient(batch, accumulate=1, sizes=()):
  """The gradient of the mean over supervised tokens, and their number."""
  state, metrics = compiled(accumulate, sizes)(batch)
  return jax.device_get(state.opt), float(metrics['weight'])


def close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), got, want)


@st.composite
def batches(draw):
  """Rows of documents of which nothing, one token or everything is learned, some of them packed."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  examples = []
  for share in draw(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=B, max_size=B)):
    tokens = rng.integers(0, 11, rng.integers(2, T + 1), dtype=np.int32)
    examples.append({'tokens': tokens, 'supervised': rng.random(len(tokens)) < share})
  examples[0]['supervised'][:] = True  # there is something to learn
  pack = draw(st.booleans())
  batch = data.eval_batches(examples, B, max_length=T, pack='best_fit' if pack else False)[0]
  # One set of names, so that one program takes them all.
  plain = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  return {'segments': batch['mask'].astype(np.int32), 'positions': plain, **batch}


@pytest.mark.parametrize(
  ('accumulate', 'sizes'),
  [
    (2, ()),
    pytest.param(4, (), marks=pytest.mark.slow),
    pytest.param(1, (('data', 8),), marks=pytest.mark.slow),
    pytest.param(1, (('fsdp', 8),), marks=pytest.mark.slow),
    pytest.param(1, (('data', 4), ('fsdp', 2)), marks=pytest.mark.slow),
    (2, (('data', 2), ('fsdp', 4))),
  ],
  ids=str,
)
@given(batch=batches())
@settings(max_examples=8, deadline=None)
def test_micro_batches_and_devices(batch, accumulate, sizes):
  want, weight = gradient(batch)
  got, same = gradient(batch, accumulate, sizes)
  assert same == weight == batch['supervised'].sum()
  close(got, want)


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
@given(batch=batches())
@settings(max_examples=8, deadline=None)
def test_processes(batch, count):
  """The rows `i::count` of each process, one after the other, are the batch; so are their sums."""
  want, weight = gradient(batch)
  parts = [{name: value[i::count] for name, value in batch.items()} for i in range(count)]
  close(gradient(jax.tree.map(lambda *x: np.concatenate(x), *parts))[0], want)
  shares = [(gradients, mine / weight) for gradients, mine in map(gradient, parts)]
  assert sum(share for _, share in shares) == pytest.approx(1)
  scaled = [jax.tree.map(lambda g, s=share: g * s, gradients) for gradients, share in shares]
  close(jax.tree.map(lambda *x: sum(x), *scaled), want)
