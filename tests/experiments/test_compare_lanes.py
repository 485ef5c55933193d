"""Lanes are the runs that they stand for, and seeds are paired over rules and rates."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from configs import compare_optimizers
from experiments.comparison import lanes, memory, settings, tasks
from jaxtune import optim
from jaxtune.typing import InputError

STEPS = [0, 1, 2, 3, 7]
HUGE = float('inf')


@pytest.fixture(scope='module')
def task():
  config = compare_optimizers.get_config()
  config.quadratic.update({'rows': 6, 'columns': 4, 'condition': 100.0})
  return tasks.quadratic(config)


@pytest.fixture(scope='module')
def program(task):
  """`program('adamw', 4)`: a rule compiled for so many lanes, once for all tests."""

  @functools.cache
  def compiled(name, width, limit=HUGE, by='learning_rate', **hyperparameters):
    rule = optim.create(name, 1.0, **hyperparameters)
    return lanes.compile_lanes(task, rule, [by], width, seed=7, limit=limit)

  return compiled


def run(program, which):
  """Held-out and training losses `[lanes, points]`."""
  parts = list(lanes.run_lanes(program, which, STEPS))
  assert [part.step for part in parts] == STEPS * (len(parts) // len(STEPS))
  rows = [parts[i : i + len(STEPS)] for i in range(0, len(parts), len(STEPS))]
  return tuple(
    np.concatenate([np.stack([getattr(p, name) for p in row], axis=1) for row in rows])
    for name in ('loss', 'train_loss')
  )


def test_the_grid_has_every_seed_at_every_value():
  found = lanes.grid([3, 4], learning_rate=[0.1, 0.2], b0=[1.0, 2.0])
  np.testing.assert_array_equal(found.seeds, [3, 4, 3, 4])
  np.testing.assert_allclose(found.values['learning_rate'], [0.1, 0.1, 0.2, 0.2], rtol=1e-6)
  np.testing.assert_array_equal(found.values['b0'], [1, 1, 2, 2])


def test_lanes_are_separate_runs_written_out(task, program):
  rates, seeds = [0.03, 0.3], [5, 6]
  loss, train_loss = run(program('adamw', 4), lanes.grid(seeds, learning_rate=rates))
  held_out = jax.tree.map(lambda x: x[0], task.held_out)

  def value(params, batch):
    total = task.objective(params, batch, None)
    return total.total / total.weight

  gradient = jax.jit(jax.value_and_grad(value))
  measure = jax.jit(value)
  for lane, (rate, seed) in enumerate(itertools.product(rates, seeds)):
    rule = optim.create('adamw', rate)
    update = jax.jit(rule.update)
    init_key, data_key = jax.random.split(jax.random.fold_in(jax.random.key(7), seed))
    params = task.init(init_key)
    state, seen, measured = rule.init(params), [], [measure(params, held_out)]
    for step in range(STEPS[-1]):
      batch = task.draw(task.train, jax.random.fold_in(data_key, step))
      train, gradients = gradient(params, batch)
      updates, state = update(gradients, state, params)
      params = optax.apply_updates(params, updates)
      seen.append(train)
      measured.append(measure(params, held_out))
    np.testing.assert_allclose(loss[lane], [measured[step] for step in STEPS], rtol=1e-5)
    means = [np.mean(seen[a:b]) for a, b in itertools.pairwise(STEPS)]
    np.testing.assert_allclose(train_loss[lane], [0, *means], rtol=1e-5, atol=1e-6)


def test_any_width_gives_the_same_losses(program):
  which = lanes.grid([0, 1, 2], learning_rate=[0.01, 0.1])
  # One by one; and four at a time, so that a second part must be filled up.
  for a, b in zip(run(program('adamw', 1), which), run(program('adamw', 4), which), strict=True):
    assert len(a) == 6
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_seeds_are_paired_over_rules_and_rates(program):
  # At a rate of zero the training losses show the batches and nothing else.
  which = lanes.grid([0, 1, 2], learning_rate=[0.0, 0.1])
  adam, sgd = (run(program(name, 4), which) for name in ('adamw', 'sgd'))
  for loss, train_loss in (adam, sgd):
    np.testing.assert_array_equal(loss[:3, 0], loss[3:, 0])
    np.testing.assert_allclose(train_loss[:3, 1], train_loss[3:, 1], rtol=1e-6)
    assert len({*loss[:3, 0].tolist()}) == 3  # each seed has a start of its own
    assert np.ptp(train_loss[:3, 1:], axis=1).min() > 0  # and batches that differ
  np.testing.assert_allclose(adam[0][:, 0], sgd[0][:, 0], rtol=1e-6)
  np.testing.assert_allclose(adam[1][:3], sgd[1][:3], rtol=1e-5, atol=1e-6)
  assert not np.allclose(adam[0][3:, -1], sgd[0][3:, -1], rtol=1e-3)


def test_hyperparameters_other_than_the_rate_make_lanes(program):
  which = lanes.grid([0, 1], b0=[0.1, 100.0])
  loss, _ = run(program('adagrad_norm', 4, by='b0', b0=1.0), which)
  plain, _ = run(program('adagrad_norm', 2, b0=100.0), lanes.grid([0, 1], learning_rate=[1.0]))
  np.testing.assert_allclose(loss[2:], plain, rtol=1e-5)
  assert (loss[:2, -1] < loss[2:, -1]).all()


def test_a_limit_on_memory_cuts_the_lanes(program):
  whole = program('sgd', 16)
  limit = whole.bytes * 0.6
  less = program('sgd', 16, limit=limit)
  assert whole.width == 16 and 1 < less.width < 16
  assert less.bytes <= limit
  which = lanes.grid(range(16), learning_rate=[0.1])
  np.testing.assert_allclose(run(whole, which)[0], run(less, which)[0], rtol=1e-5)
  with pytest.raises(InputError, match='one lane of the task quadratic takes .* GB'):
    program('sgd', 16, limit=100)


def test_counts_have_no_lanes_so_that_a_costly_part_stays_a_branch(task, monkeypatch):
  def compiled():
    rule = optim.create('soap', 0.1)
    return lanes.compile_lanes(task, rule, ['learning_rate'], 2, seed=0, limit=HUGE).advance

  assert 'conditional(' in compiled().as_text()
  monkeypatch.setattr(
    lanes, 'lane_axes', lambda advance, lane, data: jax.tree.map(lambda _: 0, lane)
  )
  assert 'conditional(' not in compiled().as_text()


def test_a_count_that_depends_on_the_gradients_gets_lanes(task):
  rule = optim.skip_spikes(optim.create('sgd', 0.1))
  program = lanes.compile_lanes(task, rule, ['learning_rate'], 2, seed=7, limit=HUGE)
  loss, _ = run(program, lanes.grid([0], learning_rate=[1e-3, 1e3]))
  assert loss[0, -1] < loss[0, 0]  # and the other lane's spikes are its own


def test_the_limit_is_what_the_user_gave_or_half_of_what_is_free():
  assert memory.limit(2.5) == 2.5e9
  assert 0 < memory.limit(0.0) < memory.available()


def test_every_rule_gets_as_many_rates():
  config = compare_optimizers.get_config()
  for task in settings.TASKS:
    grids = [settings.rates(config, task, rule) for rule in settings.rules(config, [task])]
    assert {len(grid) for grid in grids} == {config[task].rates}
    for rule, grid in zip(settings.rules(config, [task]), grids, strict=True):
      np.testing.assert_allclose(np.divide(grid[1:], grid[:-1]), config.spacing, rtol=1e-5)
      assert np.exp(np.mean(np.log(grid))) == pytest.approx(rule.centres[task], rel=1e-5)
