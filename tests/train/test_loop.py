"""The loop: what it logs, keeps and refuses, and that stopping changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import data, train
from jaxtune.losses import Loss
from jaxtune.typing import InputError


@pytest.fixture(scope='module')
def step(tiny):
  return jax.jit(train.make_step(tiny.objective, tiny.optimizer()), donate_argnums=0)


def start(tiny):
  return train.init_state(tiny.trainable, tiny.optimizer(), jax.random.key(0))


def rows(tiny):
  evaluation = jax.jit(train.make_evaluation(tiny.objective))
  held = data.eval_batches(tiny.examples[:20], 8, max_length=12)
  return lambda trainable: train.evaluate(evaluation, trainable, tiny.frozen, held)


def test_logs_every_step_and_evaluation_in_order(tiny, step):
  lines = []
  state = train.fit(
    step, start(tiny), tiny.frozen, tiny.batches(), steps=5, evaluate=rows(tiny), eval_every=2,
    log=lambda number, values: lines.append((number, values)),
  )  # fmt: skip
  assert int(state.step) == 5
  assert [n for n, v in lines if 'loss' in v] == [1, 2, 3, 4, 5]
  assert [n for n, v in lines if 'eval/loss' in v] == [2, 4, 5]
  assert [n for n, _ in lines] == [1, 2, 2, 3, 4, 4, 5, 5]
  values = lines[0][1]
  expected = {'loss', 'accuracy', 'grad_norm', 'weight', 'learning_rate', 'tokens_per_second'}
  assert expected == set(values)
  assert all(isinstance(value, float) for value in values.values())


def test_stopped_and_resumed_is_bitwise_the_run_never_stopped(tiny, step, tmp_path):
  straight = train.fit(step, start(tiny), tiny.frozen, tiny.batches(), steps=7)
  asked = iter([False, False, True])
  manager = train.open_checkpoints(tmp_path)
  stopped = train.fit(
    step, start(tiny), tiny.frozen, tiny.batches(), steps=7, checkpoints=manager,
    stop=lambda: next(asked),
  )  # fmt: skip
  assert int(stopped.step) == 3
  batches = tiny.batches()
  restored = train.restore(train.open_checkpoints(tmp_path), start(tiny))
  batches.set_state(restored.cursor)
  resumed = train.fit(step, restored.state, tiny.frozen, batches, steps=7)
  for a, b in zip(
    jax.tree.leaves((straight.trainable, straight.opt)),
    jax.tree.leaves((resumed.trainable, resumed.opt)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_best_evaluation_is_saved_even_between_saves(tiny, step, tmp_path):
  scores = iter([0.1, 0.9, 0.3, 0.2])
  manager = train.open_checkpoints(tmp_path)
  train.fit(
    step, start(tiny), tiny.frozen, tiny.batches(), steps=8, evaluate=lambda trainable: {'loss': 0.0},
    eval_every=2, save_every=5, checkpoints=manager, score=lambda m: next(scores),
  )  # fmt: skip
  assert train.best(manager) == (4, 0.9)
  assert sorted(manager.all_steps()) == [4, 5, 8]


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  def objective(params, batch, key):
    bad = jnp.where(batch['tokens'][0, 0] == 9, jnp.nan, 1.0)
    return Loss(jnp.sum(params['w'] ** 2) * bad, jnp.float32(1), {})

  class Rows:
    number = 0

    def __next__(self):
      self.number += 1
      tokens = np.full((1, 2), 9 if self.number == 5 else 1, np.int32)
      return {'tokens': tokens, 'mask': np.ones((1, 2), bool)}

    def get_state(self):
      return {'number': self.number}

  import optax

  step = jax.jit(train.make_step(objective, optax.sgd(0.1)))
  state = train.init_state({'w': jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
  manager = train.open_checkpoints(tmp_path)
  with pytest.raises(InputError, match=r'loss is nan at step 5.*checkpoint is that of step 4'):
    train.fit(
      step, state, {'w': None}, Rows(), steps=10, save_every=1, checkpoints=manager
    )  # fmt: skip
  restored = train.restore(train.open_checkpoints(tmp_path), state)
  assert int(restored.state.step) == 4
  assert np.isfinite(restored.state.trainable['w']).all()


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
