"""Sweeps in real processes that are killed, and a study that somebody else holds."""

import json
import sqlite3
import time

import pytest

from experiments.sweeping import records

pytest.importorskip('optuna')
pytestmark = pytest.mark.faults
VALUES = {
  'train.steps': 8,
  'train.eval_every': 0,
  'train.save_every': 2,
  'sweep.space': ('optim.lr 1e-3..3e-2 log', 'method.rank 2, 4', 'seed 0, 1'),
  'sweep.candidates': 4,
  'sweep.lanes': 2,
  'sweep.first': 2,
  'sweep.factor': 2.0,
  'sweep.seeds': 1,
}


def ended(folder):
  """All that a sweep has found, without its times."""
  record = records.read(folder)
  result = json.loads((folder / 'result.json').read_text())
  states = [(c.values, c.digest, c.losses, c.scores) for c in record.candidates]
  return states, records.curves(folder), result | {'seconds': 0}


def test_killed_it_ends_bitwise_as_if_undisturbed(shell, config_file, tmp_path):
  """SIGKILL while lanes are refilled; tests/experiments stop waves and rounds in one process."""
  path = config_file('classification', VALUES | {'sweep.scheduler': 'asha'})

  def start(folder, **options):
    return shell('sweep', f'--config={path}', f'--workdir={folder}', **options)

  assert start(tmp_path / 'whole').code == 0
  folder = tmp_path / 'killed'
  process = start(folder, wait=False)
  while process.poll() is None and saves(folder) < 5:
    time.sleep(0.001)
  process.kill()
  process.communicate()
  assert process.returncode == -9
  done = start(folder)
  assert done.code == 0, done.err
  assert ended(folder) == ended(tmp_path / 'whole')


def saves(folder):
  """Steps that the states on disk have taken, in units of `train.save_every`."""
  names = [path.stem for path in (folder / 'states').glob('*.safetensors')]
  return sum(int(name.partition('-')[2]) for name in names) // 2


def test_a_locked_study_is_one_line(shell, config_file, tmp_path):
  path = config_file('classification', VALUES)
  place = tmp_path / 'shared.db'
  held = sqlite3.connect(place)
  held.execute('create table other (x)')
  held.execute('begin exclusive')
  done = shell(
    'sweep',
    f'--config={path}',
    f'--workdir={tmp_path / "w"}',
    f'--config.sweep.storage=sqlite:///{place}?timeout=1',
  )
  held.close()
  assert done.code == 1 and done.err.count('\n') == 1, done.err
  assert 'Optuna cannot use this storage' in done.err and 'locked' in done.err
  assert not (tmp_path / 'w').exists() or not any((tmp_path / 'w').iterdir())
