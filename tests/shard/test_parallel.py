"""However a run is spread over eight devices, its losses are those of one device."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxtune import adapt, losses, models, train
from jaxtune.typing import InputError

STEPS, ROWS, LENGTH = 10, 8, 16
LLAMA = models.DecoderConfig(
  vocabulary=64, width=32, hidden=64, layers=2, heads=4, kv_heads=2, head_width=8
)
CONFIGS = {
  'llama': LLAMA,
  'mixtral': models.DecoderConfig(
    vocabulary=64,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=8,
    model_type='mixtral',
    experts=4,
    expert_hidden=32,
  ),
}
MESHES = {
  'data': {'data': 8},
  'fsdp': {'fsdp': 8},
  'tensor': {'tensor': 2, 'data': 4},
  'sequence': {'sequence': 8},
  'expert': {'expert': 4, 'data': 2},
  'fsdp x tensor': {'fsdp': 4, 'tensor': 2},
  'fsdp x sequence': {'fsdp': 2, 'sequence': 4},
  'sequence x tensor': {'sequence': 4, 'tensor': 2},
  'fsdp x expert x tensor': {'fsdp': 2, 'expert': 2, 'tensor': 2},
  'fsdp x sequence x tensor': {'fsdp': 2, 'sequence': 2, 'tensor': 2},
  'expert x sequence x tensor': {'expert': 2, 'sequence': 2, 'tensor': 2},
}
METHODS = ('full', 'lora', 'qlora')
RULE = optax.adamw(1e-2, eps=1e-5)


class Rows:
  """An endless iterator of one batch in two halves of packed texts, with padding."""

  def __init__(self):
    self.at = 0

  def get_state(self):
    return {'at': self.at}

  def set_state(self, state):
    self.at = state['at']

  def __next__(self):
    rng = np.random.default_rng(self.at)
    self.at += 1
    tokens = rng.integers(0, 9, (ROWS, LENGTH), dtype=np.int32)  # so that there is much to learn
    first = rng.integers(3, LENGTH - 4, (ROWS, 1))
    place = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    segments = np.where(place < first, 1, 2) * (place < LENGTH - 2)
    return {
      'tokens': tokens,
      'mask': segments > 0,
      'segments': segments.astype(np.int32),
      'positions': np.where(place < first, place, place - first).astype(np.int32),
      'supervised': (rng.random((ROWS, LENGTH)) < 0.7) & (segments > 0),
      'weight': np.ones(ROWS, np.float32),
    }


def parameters(name, method):
  model = models.decoder(CONFIGS[name])
  params = model.init(jax.random.key(0))
  key = jax.random.key(1)
  if method == 'qlora':
    params = adapt.quantize(key, params, kind='nf4', block=16)
  if method != 'full':
    return model, adapt.lora(key, params, 4, also=None)
  return model, adapt.create('full', key, params)


def run(name, method, mesh, rule=None, **options):
  model, params = parameters(name, method)
  program = train.prepare(
    model,
    params,
    losses.causal_lm(model, chunk=5),
    rule or RULE,
    Rows(),
    mesh=mesh,
    **options,
  )
  state, found, rows = program.state, [], Rows()
  for _ in range(STEPS):
    state, metrics = program.step(state, program.frozen, program.place(next(rows)))
    found.append(float(metrics['loss']))
  return found, program


@functools.cache
def alone(name, method):
  """The losses on one device."""
  model, params = parameters(name, method)
  trainable, frozen = adapt.trainable(params)
  step = jax.jit(train.make_step(losses.causal_lm(model, chunk=5), RULE))
  state, rows, found = train.init_state(trainable, RULE, jax.random.key(0)), Rows(), []
  for _ in range(STEPS):
    state, metrics = step(state, frozen, next(rows))
    found.append(float(metrics['loss']))
  return found


# Every mesh with two of the methods, on the two models by turns (all pairs hold, in three times the
# time); what has an axis for experts on the mixture alone.
CASES = [
  ('mixtral' if 'expert' in mesh or (i + j) % 2 else 'llama', mesh, method)
  for i, mesh in enumerate(MESHES)
  for j, method in enumerate(METHODS)
  if (i + j) % 3 != 1
]
FAST = ('fsdp x sequencefull', 'sequence x tensorlora')


@pytest.mark.parametrize(
  ('name', 'mesh', 'method'),
  [c if c[1] + c[2] in FAST else pytest.param(*c, marks=pytest.mark.slow) for c in CASES],
)
def test_losses_are_those_of_one_device(name, mesh, method):
  want = alone(name, method)
  assert want[-1] < want[0]
  found, _ = run(name, method, MESHES[mesh])
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
  ('name', 'mesh'),
  [
    ('llama', 'fsdp x sequence x tensor'),
    pytest.param('mixtral', 'fsdp x expert x tensor', marks=pytest.mark.slow),
  ],
)
def test_computes_in_16_bits(name, mesh):
  """Where gradients of several devices are summed, which XLA's CPU compiler cannot in 16 bits."""

  def some(mesh):
    model, params = parameters(name, 'full')
    objective = losses.computed_in(losses.causal_lm(model, chunk=5), 'bfloat16')
    program = train.prepare(model, params, objective, RULE, Rows(), mesh=mesh)
    state, rows = program.state, Rows()
    for _ in range(3):
      state, metrics = program.step(state, program.frozen, program.place(next(rows)))
    return float(metrics['loss'])

  assert some(MESHES[mesh]) == pytest.approx(some(MESHES['data']), rel=1e-2)


def test_micro_batches_that_cannot_be_spread():
  message = '8 rows cannot be cut into 2 micro-batches over 8 devices; choose a multiple of 16 rows'
  with pytest.raises(InputError, match=message):
    run('llama', 'full', MESHES['data'], accumulate=2)
