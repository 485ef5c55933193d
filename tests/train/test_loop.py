"""The loop: what it logs, keeps and refuses, and that stopping changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, data, optim, train
from jaxtune.losses import Loss
from jaxtune.typing import InputError


@pytest.fixture(scope='module')
def prepared(tiny):
  return train.prepare(tiny.model, tiny.params, tiny.objective, tiny.optimizer(), tiny.batches())


@pytest.fixture
def program(prepared):
  """The compiled program with a state of its own, since a run donates it."""
  return prepared._replace(state=jax.tree.map(jnp.copy, prepared.state))


def rows(tiny):
  return data.eval_batches(tiny.examples[:20], 8, max_length=12)


def test_logs_every_step_and_evaluation_in_order(tiny, program):
  lines = []
  held_out = rows(tiny)
  state = train.fit(
    program,
    tiny.batches(),
    steps=5,
    evaluate=lambda trainable: program.evaluate(trainable, held_out),
    eval_every=2,
    log=lines.append,
  )
  assert int(state.step) == 5
  assert [line['step'] for line in lines if 'loss' in line] == [1, 2, 3, 4, 5]
  assert [line['step'] for line in lines if 'eval/loss' in line] == [2, 4, 5]
  assert [line['step'] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 5]
  names = 'step loss accuracy grad_norm weight learning_rate tokens_per_second'
  assert set(lines[0]) == set(names.split())
  assert all(isinstance(value, float | int) for value in lines[0].values())


def test_other_weights_than_the_trained_ones_may_be_evaluated(tiny, program):
  seen = []
  train.fit(
    program,
    tiny.batches(),
    steps=1,
    evaluate=lambda given: seen.append(given) or {'loss': 0.0},
    weights=lambda state: {'average of step': int(state.step)},
  )
  assert seen == [{'average of step': 1}]


def test_stopped_and_resumed_is_bitwise_the_run_never_stopped(tiny, prepared, tmp_path):
  def program():
    return prepared._replace(state=jax.tree.map(jnp.copy, prepared.state))

  straight = train.fit(program(), tiny.batches(), steps=7)
  asked = iter([False, False, True])
  checkpoints = train.open_checkpoints(tmp_path)
  stopped = train.fit(
    program(), tiny.batches(), steps=7, checkpoints=checkpoints, stop=lambda: next(asked)
  )
  assert int(stopped.step) == 3
  batches = tiny.batches()
  restored = train.restore(train.open_checkpoints(tmp_path), prepared.state)
  batches.set_state(restored.cursor)
  resumed = train.fit(program(), batches, steps=7, state=restored.state)
  for a, b in zip(
    jax.tree.leaves((straight.trainable, straight.opt)),
    jax.tree.leaves((resumed.trainable, resumed.opt)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_best_evaluation_is_saved_even_between_saves(tiny, program, tmp_path):
  scores = iter([0.1, 0.9, 0.3, 0.2])
  checkpoints = train.open_checkpoints(tmp_path)
  train.fit(
    program,
    tiny.batches(),
    steps=8,
    evaluate=lambda trainable: {'loss': 0.0},
    eval_every=2,
    save_every=5,
    checkpoints=checkpoints,
    score=lambda metrics: next(scores),
  )
  assert train.best(checkpoints) == (4, 0.9)
  assert checkpoints.steps == [4, 5, 8]


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  def objective(params, batch, key):
    bad = jnp.where(batch['tokens'][0, 0] == 9, jnp.nan, 1.0)
    return Loss(jnp.sum(params['w'] ** 2) * bad, jnp.float32(1), {})

  class Rows:
    number = 0

    def __next__(self):
      self.number += 1
      tokens = np.full((8, 2), 9 if self.number == 5 else 1, np.int32)
      return {'tokens': tokens, 'mask': np.ones((8, 2), bool)}

    def get_state(self):
      return {'number': self.number}

    def set_state(self, state):
      self.number = state['number']

  class Model:
    units = None

    def axes(self, params):
      return jax.tree.map(lambda _: (None,), params)

  adapted = adapt.full(jax.random.key(0), {'w': jnp.ones(2)})
  program = train.prepare(Model(), adapted, objective, optax.sgd(0.1), Rows())
  checkpoints = train.open_checkpoints(tmp_path)
  with pytest.raises(InputError, match=r'loss is nan at step 5.*checkpoint is that of step 4'):
    train.fit(program, Rows(), steps=10, save_every=1, checkpoints=checkpoints)
  restored = train.restore(train.open_checkpoints(tmp_path), program.state)
  assert int(restored.state.step) == 4
  assert np.isfinite(restored.state.trainable['w']).all()

  lines = []
  rule = optim.skip_spikes(optax.sgd(0.1))
  program = train.prepare(Model(), adapted, objective, rule, Rows())
  state = train.fit(program, Rows(), steps=10, log=lines.append)
  np.testing.assert_allclose(state.trainable['w'], 0.8**9, rtol=1e-5)
  assert [line['spikes/skipped'] for line in lines] == [0] * 4 + [1] * 6


def test_nothing_to_evaluate_is_an_error(tiny):
  evaluation = jax.jit(train.make_evaluation(tiny.objective))
  with pytest.raises(InputError, match='nothing to evaluate'):
    train.evaluate(evaluation, tiny.trainable, tiny.frozen, [])


def test_evaluation_is_exact_whatever_the_batch(tiny):
  evaluation = jax.jit(train.make_evaluation(tiny.objective))
  found = [
    train.evaluate(
      evaluation, tiny.trainable, tiny.frozen, data.eval_batches(tiny.examples, n, max_length=12)
    )
    for n in (1, 7, 40)
  ]
  for other in found[1:]:
    for name, value in found[0].items():
      np.testing.assert_allclose(other[name], value, rtol=1e-6)


def test_batches_of_several_widths_compile_one_step_each_and_resume(tiny, prepared):
  def batches():
    return data.batches(tiny.examples, 8, max_length=12, seed=3, buckets=(8,))

  def losses(state, stream, steps):
    lines = []
    program = prepared._replace(state=jax.tree.map(jnp.copy, state))
    state = train.fit(program, stream, steps=steps, log=lines.append)
    return state, [line['loss'] for line in lines]

  stream = batches()
  assert [next(stream)['tokens'].shape[1] for _ in range(12)].count(8) in range(1, 12)
  whole = losses(prepared.state, batches(), 12)[1]
  compiles = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **kwargs: compiles.append(event) if 'compile' in event else None
  )
  stream, fresh = batches(), batches()
  state, first = losses(prepared.state, stream, 5)
  fresh.set_state(stream.get_state())
  assert first + losses(state, fresh, 12)[1] == whole
  jax.monitoring.clear_event_listeners()
  assert not compiles
