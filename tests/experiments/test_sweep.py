"""A sweep from its command to its files, interrupted, and on bad input."""

import gc
import json
import math

import numpy as np
import pytest
import safetensors.numpy

from experiments import start
from experiments.sweeping import records, runs, search, settings, space
from experiments.sweeping import start as sweep
from jaxtune.typing import InputError

pytest.importorskip('optuna')

SPACE = ('optim.lr 1e-3..3e-2 log', 'method.rank 2, 4', 'seed 0, 1', 'optim.warmup 0, 0.3')
SMALL = {
  'method.rank': 4,
  'train.steps': 6,
  'train.eval_every': 0,
  'train.save_every': 0,
  'sweep.space': SPACE,
  'sweep.candidates': 5,
  'sweep.lanes': 4,
  'sweep.first': 0.34,
  'sweep.seeds': 2,
}


@pytest.fixture(scope='module')
def small(configure):
  return lambda **values: configure(values={**SMALL, **values})


@pytest.fixture(scope='module')
def swept(small, tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep') / 'w'
  assert sweep.start(small(), str(folder)) == 0
  return folder


def result(folder):
  return json.loads((folder / 'result.json').read_text())


def test_a_sweep_ends_with_a_winner(swept, capsys, small):
  found = result(swept)
  assert found['candidates'] == 5 and found['headline'].startswith('5 candidates; the winner is')
  record = records.read(swept)
  tried = record.of('search')
  assert tried[0].values == {
    'optim.lr': 1e-2,
    'method.rank': 4,
    'seed': 0,
    'optim.warmup': 0.06,
  } or (tried[0].values['optim.warmup'] in (0.0, 0.3))
  ended = [c for c in tried if 6 in c.losses]
  assert len(ended) == 1 and all(2 in c.losses for c in tried)
  assert ended[0].number == min(tried, key=lambda c: c.losses[2]).number
  assert {len(numbers) for numbers in record.confirm.values()} == {2}
  chosen = found['settings'][found['winner']['role']]
  assert np.mean(chosen['valid']) == min(np.mean(s['valid']) for s in found['settings'].values())
  assert all('accuracy' in metrics for s in found['settings'].values() for metrics in s['test'])
  page = (swept / 'report.html').read_text()
  assert found['headline'].split(':')[0] in page and page.count('<svg') >= 2
  assert sweep.start(small(), str(swept)) == 0
  assert 'nothing to do' in capsys.readouterr().out


def test_optuna_knows_every_trial(swept):
  import optuna

  storage = optuna.storages.RDBStorage(f'sqlite:///{swept}/study.db')
  study = optuna.load_study(study_name='sweep', storage=storage)
  states = [trial.state.name for trial in study.trials]
  assert sorted(states) == ['COMPLETE', *['PRUNED'] * 4]
  best = records.read(swept).candidates[study.best_trial.number]
  assert study.best_params == best.values and study.best_value == best.losses[6]
  storage.remove_session()
  storage.engine.dispose()


@pytest.mark.slow
def test_the_winner_is_made_again_by_one_ordinary_run(swept, tmp_path):
  scope = {}
  exec((swept / 'winner.py').read_text(), scope)
  config = scope['get_config']()
  assert start.start(config, str(tmp_path / 'w'), dry_run=False, pretrained=True) == 0
  mine, theirs = (
    safetensors.numpy.load_file(folder / 'export' / 'adapter_model.safetensors')
    for folder in (swept, tmp_path / 'w')
  )
  assert mine.keys() == theirs.keys()
  for name, x in mine.items():
    assert np.linalg.norm(x - theirs[name]) <= 1e-4 * max(np.linalg.norm(theirs[name]), 1e-3), name


def stopping(monkeypatch, stops):
  """Starts of a sweep end after so many steps each; the last one is not stopped."""
  steps = 0
  step = sweep.Table.step

  class Stopped:
    def __enter__(self):
      nonlocal steps
      steps, self.after = 0, stops.pop(0) if stops else math.inf
      return lambda: 75 if steps >= self.after else 0

    def __exit__(self, *_):
      pass

  def counted(self, *args):
    nonlocal steps
    steps += 1
    step(self, *args)

  monkeypatch.setattr(sweep.Table, 'step', counted)
  monkeypatch.setattr(sweep.entry, 'interruptible', Stopped)


def same(folder, other):
  """Two sweeps ended bitwise alike."""
  mine, theirs = records.read(folder), records.read(other)
  assert [c.values for c in mine.candidates] == [c.values for c in theirs.candidates]
  assert [c.digest for c in mine.candidates] == [c.digest for c in theirs.candidates]
  assert records.curves(folder) == records.curves(other)
  assert result(folder) == result(other) | {'seconds': result(folder)['seconds']}


@pytest.mark.slow
@pytest.mark.parametrize('stops', [[1, 5, 3]])
def test_interrupted_it_ends_bitwise_as_if_undisturbed(swept, small, tmp_path, monkeypatch, stops):
  """Stopped after so many steps of a start, in all waves; states are saved every second step."""
  folder, starts = tmp_path / 'w', len(stops)
  stopping(monkeypatch, stops)
  for _ in range(starts):
    assert sweep.start(small(), str(folder)) == 75
  assert sweep.start(small(), str(folder)) == 0
  same(folder, swept)


@pytest.mark.slow
def test_lanes_refilled_one_by_one(small, tmp_path):
  """No more go on than their share, and dead ones free their lane."""
  lines = ('optim.lr 1e-3, 3e-3, 1e38', 'method.rank 2, 4', 'seed 0, 1, 2')
  config = small(
    **{'sweep.scheduler': 'asha', 'sweep.space': lines, 'sweep.sampler': 'random'},
    **{'sweep.lanes': 2, 'sweep.candidates': 6, 'sweep.factor': 2.0, 'sweep.first': 1},
  )
  config.optim.clip_norm = 0.0
  assert sweep.start(config, str(tmp_path / 'whole')) == 0
  record = records.read(tmp_path / 'whole')
  found = record.of('search')
  dead = [c for c in found if c.dead]
  assert len(found) - len(dead) == 6 and dead and all(c.values['optim.lr'] > 1 for c in dead)
  counts = [sum(r in c.losses for c in found) for r in (1, 2, 6)]
  assert counts[0] == len(found) and 1 <= counts[2] <= counts[1] <= len(found) // 2 + 1
  assert record.lanes == [None, None]


@pytest.mark.slow
def test_dead_candidates_are_replaced(small, tmp_path):
  lines = ('optim.lr 1e-3, 1e38',)
  config = small(**{'sweep.space': lines, 'sweep.candidates': 3, 'sweep.sampler': 'random'})
  config.optim.clip_norm = 0.0
  assert sweep.start(config, str(tmp_path / 'w')) == 0
  found = records.read(tmp_path / 'w').of('search')
  assert sum(not c.dead for c in found) == 3 or len(found) == 6
  assert result(tmp_path / 'w')['settings']['best']['values'] == {'optim.lr': 1e-3}


@pytest.mark.slow
def test_what_the_objective_weighs_is_searched(small, tmp_path):
  """All are judged by the objective of the default setting, and rank and dropout vary as well."""
  space = ('objective.l2_sp 0, 100', 'objective.options.label_smoothing 0, 0.2')
  space += ('method.options.dropout 0, 0.5', 'method.rank 1, 2')
  config = small(**{'sweep.space': space, 'sweep.factor': 1.0, 'sweep.seeds': 1})
  assert sweep.start(config, str(tmp_path / 'w')) == 0
  record = records.read(tmp_path / 'w')
  default = record.candidates[record.confirm['default'][0]]
  assert default.values | {'seed': 0} == {
    'objective.l2_sp': 0.0,
    'objective.options.label_smoothing': 0.0,
    'method.options.dropout': 0.0,
    'method.rank': 4,
    'seed': 0,
  }
  assert all(np.isfinite(c.losses[6]) and c.losses[6] < 1 for c in record.candidates)


def test_a_damaged_state_begins_anew(swept, small, tmp_path):
  one = records.read(swept).candidates[0]
  job = runs.prepare(small(), settings.check(small()))
  assert records.load(swept, one, job.one[0]) is not None
  one.digest = 'other'
  assert records.load(swept, one, job.one[0]) is None


@pytest.mark.parametrize(
  'values, message',
  [
    ({'sweep.space': ()}, 'sweep.space is empty'),
    ({'sweep.space': ('optim.rl 1..2',)}, "unknown config key 'optim.rl'; did you mean 'optim.lr'"),
    ({'sweep.space': ('optim.lr',)}, 'no values; give a range'),
    ({'sweep.space': ('optim.lr 2..1',)}, 'the range is empty'),
    ({'sweep.space': ('optim.lr 0..1 log',)}, 'must be above 0'),
    ({'sweep.space': ('optim.lr 1e-3, fast',)}, "'fast' is no number"),
    ({'sweep.space': ('optim.lr 1e-3, 1e-3',)}, 'listed twice'),
    ({'sweep.space': ('optim.lr 1e-3', 'optim.lr 1e-2')}, 'has optim.lr twice'),
    ({'sweep.space': ('method.rank 2..8',)}, 'a whole number; list its values'),
    ({'sweep.space': ('method.rank 2.5',)}, 'method.rank is a whole number'),
    (
      {'sweep.space': ('train.batch_size 8, 16',)},
      '--config.train.batch_size=8; --config.train.batch_size=16',
    ),
    ({'sweep.space': ('method.options.dropout 0..0.3',), 'method.name': 'ia3'}, 'has no dropout'),
    ({'sweep.space': ('objective.options.beta 0..1',)}, 'the objective has no beta; it has'),
    (
      {'sweep.space': ('optim.hyperparameters.mu_dtype 0..1',)},
      'optim.hyperparameters.mu_dtype, whose default is None; give the number to compare with',
    ),
    ({'sweep.sampler': 'best'}, "sweep.sampler is 'best'; choose one of random, tpe, grid"),
    ({'sweep.scheduler': 'best'}, "sweep.scheduler is 'best'; choose one of halving, asha"),
    ({'sweep.sampler': 'grid'}, 'sweep.sampler is grid, and optim.lr has the range'),
    ({'sweep.candidates': 0}, 'sweep.candidates is 0; it must be at least 1'),
    ({'sweep.first': 7.0}, 'sweep.first is 7.0, but a run has 6 steps'),
    ({'data.valid': 0.0}, 'data.valid is 0; candidates are judged'),
    ({'optim.average': 0.9}, 'optim.average is set, which runs side by side cannot have'),
    ({'sweep.storage': 'nosql://x'}, 'Optuna cannot use this storage'),
  ],
)
def test_bad_input_is_one_line(small, tmp_path, values, message):
  with pytest.raises(InputError, match=message) as caught:
    sweep.start(small(**values), str(tmp_path / 'w'))
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'w').exists()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_study_is_one_line(small, tmp_path):
  (tmp_path / 'study.db').write_bytes(b'no database' * 100)
  with pytest.raises(InputError, match='study.db.* Optuna cannot use this storage'):
    sweep.start(small(), str(tmp_path))
  gc.collect()  # Optuna leaves the connection open


def test_a_study_of_another_space_is_one_line(small, tmp_path):
  storage = {'sweep.storage': f'journal:{tmp_path}/shared.log', 'sweep.candidates': 1}
  assert sweep.start(small(**storage, **{'sweep.seeds': 1}), str(tmp_path / 'a')) == 0
  other = storage | {'sweep.space': ('method.rank 1, 2, 3',)}
  with pytest.raises(InputError, match="study 'sweep': it was searched in another space"):
    sweep.start(small(**other), str(tmp_path / 'b'))


def test_more_lanes_than_memory_is_one_line(small, tmp_path, monkeypatch):
  monkeypatch.setattr(runs.memory, 'available', lambda: 3_000_000)
  with pytest.raises(InputError, match=r'sweep.lanes is 4, whose step needs .* about \d lanes fit'):
    sweep.start(small(), str(tmp_path / 'w'))


def test_a_grid_is_every_combination(small):
  config = small(**{'sweep.space': ('optim.lr 1e-3, 1e-2', 'method.rank 2, 4')})
  found = space.grid(settings.check(config))
  assert len(found) == 4 and {'optim.lr': 1e-3, 'method.rank': 4} in found


def test_the_rungs_of_the_quickstart():
  from configs import sweep_quickstart

  config = sweep_quickstart.get_config()
  settings.check(config)
  assert settings.rungs(config, 48) == [16, 48]


def test_waves_take_the_lowest_rung_first():
  class Config:
    class sweep:  # noqa: N801
      lanes, factor, sampler, candidates = 2, 2.0, 'random', 4

  def candidate(number, losses, step):
    return records.Candidate(number, {}, losses=losses, step=step)

  record = records.Record(
    [candidate(0, {2: 1.0}, 2), candidate(1, {2: 2.0}, 2), candidate(2, {}, 1)]
  )
  it = search.Sweep(Config, [], None, [2, 4], None, None, record)
  assert search.missing(it) == 1
  wave = search.next_wave(it)
  assert ([c.number for c in wave.members], wave.start, wave.end) == ([2], 1, 2)
  record.candidates[2] = candidate(2, {2: 0.5}, 2)
  record.candidates.append(candidate(3, {2: 3.0}, 2))
  wave = search.next_wave(it)
  assert ([c.number for c in wave.members], wave.start, wave.end) == ([2, 0], 2, 4)
