"""The loop over sweeps: its decisions, its files, interrupted, and on bad input."""

import json
import math

import pytest

from experiments.sweeping import runs
from experiments.sweeping import start as sweeps
from experiments.tuning import dimensions, moves, settings, start, words
from experiments.tuning.moves import Budget, Measured, Plan, Round
from jaxtune import plan as plans
from jaxtune.typing import InputError

pytest.importorskip('optuna')

SMALL = {
  'optim.lr': 1e-2,
  'train.steps': 3,
  'train.eval_every': 0,
  'train.save_every': 2,
  'sweep.seeds': 2,
  'tune.steps': 40,
  'tune.minutes': 0.0,
  'tune.order': ('optim.lr', 'method.rank', 'optim.weight_decay'),
}


@pytest.fixture(scope='module')
def small(configure):
  return lambda **values: configure(values={**SMALL, **values})


@pytest.fixture(scope='module')
def tuned(small, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tune') / 'w'
  assert start.start(small(), str(folder)) == 0
  return folder


def result(folder):
  return json.loads((folder / 'result.json').read_text())


def test_the_loop_ends_with_a_setting(tuned, small, capsys):
  found = result(tuned)
  assert found['headline'].startswith('learning rate ')
  print(json.dumps(found, indent=1))
