"""A comparison of strategies: intervals, what is refused, and a small one from end to end."""

import importlib
import json
import pathlib
import types

import numpy as np
import pytest
from absl import flags

from configs import compare_methods
from experiments import entry
from experiments.strategies import contest, settings, verdict, words
from jaxtune import report
from jaxtune.typing import InputError


@pytest.fixture(scope='module')
def start():
  """The script's `start(config, folder)`; its flags are taken back after the import."""
  before = set(flags.FLAGS)
  module = importlib.import_module('experiments.compare_methods')
  for flag in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, flag)
  return module.start


@pytest.fixture(scope='module')
def tiny(files):
  """`tiny('probe,lora', {...})`: a comparison on the tiny encoder."""

  def make(strategies='zero_shot,few_shot,lora', values=None):
    config = compare_methods.get_config(strategies)
    given = {
      'model': str(files / 'encoder'),
      'data.path': str(files / 'films.csv'),
      'data.max_length': 16,
      'data.valid': 8.0,
      'data.test': 16.0,
      'method.rank': 4,
      'train.steps': 2,
      'train.batch_size': 8,
      'eval.batch_size': 16,
      'compare.seeds': 2,
      'compare.shots': 2,
      'compare.descriptions': 'bad=awful film|good=lovely film',
    }
    config.update_from_flattened_dict(given | (values or {}))
    for name in config.strategies:
      if config.strategies[name]:
        config.strategies[name].rates = (1e-3, 1e-2)
    return config

  return make


def test_intervals_cover_rows_and_seeds():
  """One seed: the binomial interval. Many rows: the spread of the seeds."""
  draw = np.random.default_rng(0)
  one = draw.random((1, 400)) < 0.8
  found = verdict.accuracy(one, 0.95)
  half = 1.96 * np.sqrt(one.mean() * (1 - one.mean()) / 400)
  assert found.value == one.mean()
  np.testing.assert_allclose([found.low, found.high], [one.mean() - half, one.mean() + half], 0.01)
  seeds = np.array([[True] * 500 + [False] * 500, [True] * 600 + [False] * 400])
  wide = verdict.accuracy(seeds, 0.95)
  assert wide.low < 0.5 + 0.02 and wide.high > 0.6 - 0.02


def test_differences_are_paired():
  """Rows on which both agree add nothing to the interval."""
  draw = np.random.default_rng(0)
  base = draw.random((3, 1000)) < 0.7
  other = base.copy()
  other[:, :20] = ~other[:, :20]
  d = verdict.difference(('a', other), ('b', base), 0.95).interval
  assert d.value == pytest.approx(other.mean() - base.mean())
  apart = verdict.accuracy(base, 0.95)
  assert d.high - d.low < 0.6 * (apart.high - apart.low)
  same = verdict.difference(('a', base), ('b', base), 0.95).interval
  assert same == (0.0, 0.0, 0.0)
  assert verdict.difference(('a', base[:1]), ('b', base), 0.95).interval.value != 0
  with pytest.raises(ValueError, match='cannot be paired'):
    verdict.difference(('a', base[:2]), ('b', base), 0.95)


def test_what_is_said_of_ties():
  def d(low, high):
    return verdict.Difference('x', 'lora', report.Interval((low + high) / 2, low, high))

  assert 'tie: x end within 2 points' in words.tie([d(-0.01, 0.015)], 0.02, 'lora')
  assert 'No difference is shown' in words.tie([d(-0.03, 0.01)], 0.02, 'lora')
  assert 'Not all variants' in words.tie([d(0.01, 0.05)], 0.02, 'lora')


def test_from_zero_shot_to_lora_and_again(start, tiny, tmp_path, capsys, monkeypatch):
  config = tiny()
  assert start(config, str(tmp_path / 'run'), dry_run=True) == 0
  assert 'lora: 4 runs of 2 steps' in capsys.readouterr().out
  assert start(config, str(tmp_path / 'run')) == 0
  lines = report.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert len(lines) == 1 + 2 + (2 + 2)
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  found = result['strategies']
  assert set(found) == {'zero_shot', 'few_shot', 'lora'}
  assert found['lora']['trained'] > 1000
  assert all(len(one['by_seed']) == 2 for name, one in found.items() if name != 'zero_shot')
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert '<svg' in page and 'few_shot' in page
  # What is in the log is not run again.
  (tmp_path / 'run' / 'result.json').unlink()
  monkeypatch.setattr(contest.trained, 'runner', None)
  assert start(config, str(tmp_path / 'run')) == 0
  again = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert again == result
  assert start(config, str(tmp_path / 'run')) == 0
  assert 'nothing to do' in capsys.readouterr().out


def test_a_method_that_the_model_cannot_take_is_left_out(tiny, monkeypatch):
  def refuse(*_):
    raise InputError('no biases')

  monkeypatch.setattr(contest.trained, 'runner', refuse)
  strategy = settings.Strategy('bitfit', 'bitfit', {}, (1e-3,))
  run = types.SimpleNamespace(model=None, params=None)
  log = contest.Log(pathlib.Path('unused'), [])
  found = contest.enter(tiny(), strategy, run, None, log, lambda text: None, lambda: False)
  assert found == 'no biases'


@pytest.mark.parametrize(
  'values, change, words_',
  [
    ({'compare.seeds': 1}, None, 'compare.seeds is 1; an interval needs at least 2'),
    ({'compare.reference': 'loar'}, None, "compare.reference is 'loar'; choose one of"),
    ({'compare.margin': 0.0}, None, 'compare.margin is 0.0'),
    ({'train.steps': 0}, None, 'train.steps is 0'),
    ({'data.test': 0.0}, None, 'data.test is 0'),
    ({'task': 'regression'}, None, "task is 'regression'"),
    ({}, {'lora': {'rates': ()}}, r'strategies.lora.rates are \(\)'),
    ({}, {'lora': {'rate': 1}}, "strategies.lora has 'rate'"),
    ({}, {'lora': {'rates': (1.0,), 'options': {'rnk': 4}}}, "strategies.lora sets 'rnk'"),
    ({}, {'loar': {'rates': (1.0,)}}, "strategies.loar is of the method 'loar'; known: full"),
    ({'compare.descriptions': 'bad=x'}, None, "without the label 'good'"),
  ],
)
def test_one_line_says_what_is_wrong(start, tiny, tmp_path, values, change, words_):
  config = tiny('zero_shot,lora', values)
  for name, fields in (change or {}).items():
    config.strategies[name] = fields
  with pytest.raises(InputError, match=words_) as error:
    start(config, str(tmp_path / 'run'))
  assert '\n' not in str(error.value)


def test_unknown_keys_are_refused():
  with pytest.raises(InputError, match="unknown config key 'compare.sed'.*compare.seeds"):
    settings.check_key('compare.sed')
  settings.check_key('strategies.mine.rates')
  assert entry.INTERRUPTED == 130
