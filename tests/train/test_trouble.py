"""Early stopping and going back behind skipped steps, the same whether a run is stopped or not."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, optim, train
from jaxtune.losses import Loss
from jaxtune.train import checkpoint
from jaxtune.typing import InputError

STEPS = 12


class Rows:
  """Batch n holds n, or 0 where it breaks the gradient."""

  def __init__(self, broken=()):
    self.number, self.broken = 0, broken

  def __next__(self):
    self.number += 1
    tokens = np.full((8, 2), 0 if self.number in self.broken else self.number, np.int32)
    return {'tokens': tokens, 'mask': np.ones((8, 2), bool)}

  def get_state(self):
    return {'number': self.number}

  def set_state(self, state):
    self.number = state['number']


def objective(params, batch, key):
  number = jnp.mean(batch['tokens'].astype(jnp.float32))
  scale = jnp.where(number > 0, 1 + number / 100, jnp.nan)
  return Loss(jnp.sum(params['w'] ** 2) * scale, jnp.float32(1), {})


def after(numbers):
  """The weight after the steps on these batches, from 1."""
  return np.prod([1 - 0.2 * (1 + n / 100) for n in numbers])


@pytest.fixture(scope='module')
def prepared():
  class Model:
    units = None

    def axes(self, params):
      return jax.tree.map(lambda _: (None,), params)

  params = adapt.full(jax.random.key(0), {'w': jnp.ones(2)})
  return train.prepare(Model(), params, objective, optim.skip_spikes(optax.sgd(0.1)), Rows())


@pytest.fixture
def run(prepared, tmp_path):
  """`run(rows, stops)`: a run that is stopped after these steps; its last state and its log."""

  def make(rows, stops=(), during=lambda line, folder: None, **options):
    lines = []

    def cut(step):
      lines[:] = [line for line in lines if line['step'] <= step]

    def log(line):
      during(line, folder)
      if 'rollback/from' in line:
        cut(line['step'])
      else:
        lines.append({k: v for k, v in line.items() if k != 'tokens_per_second'})

    folder = tmp_path / 'run'
    for at in (*stops, None):
      checkpoints = train.open_checkpoints(folder)
      batches, state, rollbacks = Rows(rows), jax.tree.map(jnp.copy, prepared.state), (0, 0)
      restored = train.restore(checkpoints, state)
      if restored:
        state, rollbacks = restored.state, restored.note.rollbacks
        batches.set_state(restored.cursor)
        cut(int(state.step))

      asked = iter(range(STEPS * 9))
      first = int(state.step)
      state = train.fit(
        prepared,
        batches,
        steps=STEPS,
        state=state,
        rollbacks=rollbacks,
        checkpoints=checkpoints,
        log=log,
        stop=lambda at=at, asked=asked, first=first: (
          at is not None and first + next(asked) + 1 >= at
        ),
        **options,
      )
    return state, lines, checkpoints

  return make


def often(*stops):
  """These, where a stop tells most, and slowly one after every step."""
  others = [(at,) for at in range(1, STEPS) if (at,) not in stops]
  return [*stops, *(pytest.param(at, marks=pytest.mark.slow) for at in others)]


@pytest.mark.parametrize('stops', often((), (5,), (7,), (5, 6, 7, 8)))
def test_goes_back_and_on_behind_the_broken_batches(run, stops):
  state, lines, checkpoints = run({5, 6, 7}, stops, rollback=3, save_every=2)
  # Batch 8 was under way when the third was found broken.
  numbers = [1, 2, 3, 4, *range(9, 17)]
  np.testing.assert_allclose(state.trainable['w'], after(numbers), rtol=1e-5)
  assert [line['step'] for line in lines] == list(range(1, STEPS + 1))
  assert [line['rollbacks'] for line in lines] == [0] * 4 + [1] * 8
  assert {line['spikes/skipped'] for line in lines} == {0}
  assert checkpoints.steps == [10, 12]
  assert train.restore(checkpoints, state).note.rollbacks == [1, 0]


def test_fewer_in_a_row_are_skipped_and_counted(run):
  state, lines, _ = run({2, 3, 5, 6}, rollback=3, save_every=2)
  np.testing.assert_allclose(state.trainable['w'], after([1, 4, *range(7, 13)]), rtol=1e-5)
  assert [line['spikes/in_a_row'] for line in lines] == [0, 1, 2, 0, 1, 2] + [0] * 6
  assert lines[-1]['spikes/skipped'] == 4 and lines[-1]['rollbacks'] == 0


def test_a_damaged_checkpoint_is_not_gone_back_to(run):
  def damage(line, folder):
    if line['step'] == 6:
      while not (folder / '4').exists():  # it is written behind the steps
        time.sleep(0.001)
      (folder / '4' / 'digests.json').unlink(missing_ok=True)

  state, _, _ = run({5, 6, 7}, during=damage, rollback=3, save_every=2)
  np.testing.assert_allclose(state.trainable['w'], after([1, 2, *range(9, 19)]), rtol=1e-5)


@pytest.mark.parametrize('stops', [(), (9,)])
def test_it_does_not_go_back_for_ever(run, stops):
  with pytest.raises(InputError, match=r'2 steps in a row .* after going back 3 times; lower'):
    run(set(range(5, 99)), stops, rollback=2, save_every=4)


def test_nowhere_to_go_back_to(run, prepared):
  with pytest.raises(
    InputError, match=r'up to step 3, and no checkpoint is from before them; lower'
  ):
    run({1, 2, 3}, rollback=3, save_every=2)
  with pytest.raises(InputError, match='rollback is 3, and there are no checkpoints'):
    train.fit(prepared, Rows(), steps=3, rollback=3)


@pytest.mark.parametrize('stops', often((), (7,)))
@pytest.mark.parametrize('save_every', [0, pytest.param(3, marks=pytest.mark.slow)])
def test_ends_when_nothing_gets_better(run, stops, save_every):
  losses = {2: 0.9, 4: 0.5, 6: 0.7, 8: 0.5, 10: 0.1, 12: 0.0}
  seen = []

  def evaluate(weights):
    seen.append(weights['step'])
    return {'loss': losses[weights['step']]}

  state, lines, checkpoints = run(
    (),
    stops,
    eval_every=2,
    save_every=save_every,
    patience=2,
    evaluate=evaluate,
    weights=lambda state: {'step': int(state.step)},
  )
  assert int(state.step) == 8 and [line['step'] for line in lines if 'loss' in line][-1] == 8
  assert train.best(checkpoints) == (4, -0.5)
  before = len(seen)
  again = train.restore(checkpoints, state)
  assert int(again.state.step) == 8 and len(seen) == before


def test_what_fails_behind_the_steps_is_told_at_the_next_of_them(prepared, tmp_path, monkeypatch):
  logged = []

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoint, '_digests', full)
  checkpoints = train.open_checkpoints(tmp_path)

  def log(line):
    logged.append(line['step'])
    while checkpoints.manager.is_saving_in_progress():
      time.sleep(0.001)

  state = jax.tree.map(jnp.copy, prepared.state)
  options = {'state': state, 'checkpoints': checkpoints, 'log': log}
  with pytest.raises(InputError, match='/4: the checkpoint cannot be written.*No space left'):
    train.fit(prepared, Rows(), steps=9, save_every=4, **options)
  assert logged == [1, 2, 3, 4, 5]
