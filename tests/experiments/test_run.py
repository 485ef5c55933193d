"""The contract of a run: its files, its repetition bit by bit, and going on after a stop."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from experiments import inputs, keys
from jaxtune import optim, report, train
from jaxtune.typing import InputError


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
  return {
    str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
    for path in folder.rglob('*')
    if path.is_file()
  }


def test_files(finished):
  for name in (
    'run.json',
    'result.json',
    'metrics.jsonl',
    'report.html',
    'checkpoints/4',
    'export/adapter_config.json',
    'export/adapter_model.safetensors',
    'export/README.md',
  ):
    assert (finished / name).exists(), name
  assert not list(finished.rglob('.*')), 'a temporary file is left'


def test_metrics_hold_each_step_once(finished, trained_steps):
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  assert trained_steps(finished) == [1, 2, 3, 4]
  for line in lines:
    if 'loss' in line:
      assert {'step', 'loss', 'learning_rate', 'grad_norm', 'tokens_per_second'} <= line.keys()
      assert all(np.isfinite(value) for value in line.values())
  evaluations = [line for line in lines if 'eval/loss' in line]
  assert [line['step'] for line in evaluations] == [2, 4]
  assert all(0 <= line['eval/accuracy'] <= 1 for line in evaluations)
  assert [line['step'] for line in lines if 'before/loss' in line] == [0]
  assert sum('test/accuracy' in line for line in lines) == 1


def test_run_keeps_configuration_versions_and_seed(finished, configure):
  run = json.loads((finished / 'run.json').read_text())
  assert run['config'] == json.loads(configure().to_json())
  assert run['config']['seed'] == 0
  assert {'python', 'jax', 'jaxtune', 'optax', 'flax'} <= run['versions'].keys()


def test_result_and_card_say_what_was_reached(finished, files):
  result = json.loads((finished / 'result.json').read_text())
  assert result['labels'] == ['bad', 'good']
  assert result['scores'].keys() == {'before', 'after'}
  card = (finished / 'export' / 'README.md').read_text()
  assert result['headline'] in card and 'bad, good' in card
  adapter = json.loads((finished / 'export' / 'adapter_config.json').read_text())
  assert adapter['base_model_name_or_path'] == str(files / 'encoder')
  assert (adapter['r'], adapter['lora_alpha']) == (4, 32)


def test_report_stands_alone(finished):
  page = (finished / 'report.html').read_text()
  result = json.loads((finished / 'result.json').read_text())
  assert result['headline'] in page
  assert 'src="http' not in page and 'href="http' not in page
  for key, _ in keys.flatten(keys.defaults()):
    assert f'>{key.rpartition(".")[2]}<' in page, key


def test_it_learns(configure, launch, tmp_path):
  values = {'train.steps': 40, 'train.eval_every': 0, 'train.save_every': 0}
  assert launch(configure(values=values), tmp_path / 'run') == 0
  scores = json.loads((tmp_path / 'run' / 'result.json').read_text())['scores']
  assert scores['after']['accuracy'] > 0.9
  assert scores['after']['loss'] < 0.5 * scores['before']['loss']


def test_same_seed_is_bitwise_the_same(finished, configure, launch, tmp_path, assert_same_export):
  assert launch(configure(), tmp_path / 'again') == 0
  assert_same_export(finished, tmp_path / 'again')


def test_another_seed_is_another_run(finished, configure, launch, tmp_path, exported):
  assert launch(configure(values={'seed': 1}), tmp_path / 'other') == 0
  a, b = exported(finished), exported(tmp_path / 'other')
  assert a.keys() == b.keys()
  assert all(not np.array_equal(a[name], b[name]) for name in a if 'lora' in name)


@pytest.mark.parametrize('save_every', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_interrupted_and_started_again_is_bitwise_the_same(
  finished,
  configure,
  launch,
  tmp_path,
  assert_same_export,
  trained_steps,
  interrupt_at,
  capsys,
  save_every,
):
  # Without checkpoints on the way the one written at the interruption is the only one.
  values = {'train.save_every': save_every, 'train.eval_every': 2 if save_every else 4}
  if not save_every:
    assert launch(configure(values=values), tmp_path / 'whole') == 0
  folder = tmp_path / 'run'
  interrupt_at(2)
  assert launch(configure(values=values), folder) == 130
  assert 'the same command goes on from there' in capsys.readouterr().out
  assert not (folder / 'result.json').exists()
  stopped = trained_steps(folder)[-1]
  assert stopped < 4
  interrupt_at(0)  # never
  assert launch(configure(values=values), folder) == 0
  assert f'resuming at step {stopped} of 4' in capsys.readouterr().out
  assert trained_steps(folder) == [1, 2, 3, 4]
  assert_same_export(finished if save_every else tmp_path / 'whole', folder)
  lines = report.read_metrics(folder / 'metrics.jsonl')
  assert sum('before/loss' in line for line in lines) == 1


def test_finished_and_started_again_changes_nothing(finished, configure, launch, capsys):
  before = snapshot(finished)
  assert launch(configure(), finished) == 0
  out = capsys.readouterr().out
  assert 'finished at step' in out and 'nothing to do' in out
  assert json.loads((finished / 'result.json').read_text())['headline'] in out
  assert snapshot(finished) == before


def test_killed_after_the_last_step_finishes_from_its_checkpoint(
  configure, launch, tmp_path, monkeypatch, assert_same_export, finished, trained_steps
):
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:

    def fail(*args, **kwargs):
      raise OSError('no space left')

    patch.setattr(report, 'write_report', fail)
    with pytest.raises(OSError, match='no space left'):
      launch(configure(), folder)
  assert not (folder / 'result.json').exists()
  assert launch(configure(), folder) == 0
  assert trained_steps(folder) == [1, 2, 3, 4]
  assert_same_export(finished, folder)


def test_a_finished_run_goes_on_with_more_steps(
  finished, configure, launch, tmp_path, trained_steps, capsys, monkeypatch
):
  folder = shutil.copytree(finished, tmp_path / 'run')
  longer = configure(values={'train.steps': 6})
  before = (folder / 'metrics.jsonl').read_text().splitlines()
  with monkeypatch.context() as patch:  # killed when it has claimed the folder

    def fail(*args, **kwargs):
      raise OSError('killed')

    patch.setattr(train, 'open_checkpoints', fail)
    with pytest.raises(OSError, match='killed'):
      launch(longer, folder)
  capsys.readouterr()
  assert launch(longer, folder) == 0
  assert 'resuming at step 4 of 6' in capsys.readouterr().out
  assert trained_steps(folder) == [1, 2, 3, 4, 5, 6]
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert lines[: len(before) - 1] == before[:-1]  # but the final numbers, which come anew
  assert [i for i, line in enumerate(lines) if 'test/' in line] == [len(lines) - 1]
  rates = [line['learning_rate'] for line in map(json.loads, lines) if 'learning_rate' in line]
  shape = optim.schedule('cosine', steps=6, warmup=0.06)  # goes on as that of six steps
  np.testing.assert_allclose(rates[4:], [1e-2 * shape(4), 1e-2 * shape(5)], rtol=1e-6)
  assert launch(longer, folder) == 0
  assert 'nothing to do' in capsys.readouterr().out
  with pytest.raises(InputError, match='train.steps is 6 there and 4 here'):
    launch(configure(), folder)


@pytest.mark.slow
def test_early_stopping(configure, launch, tmp_path, monkeypatch, capsys, trained_steps):
  # The score of step 2 stays the best.
  monkeypatch.setattr(inputs, 'measure', lambda *_: {'loss': 1.0, 'accuracy': 0.5})
  config = configure(values={'train.steps': 12, 'train.patience': 2})
  folder = tmp_path / 'run'
  assert launch(config, folder) == 0
  assert 'ended at step 6 of 12: 2 evaluations were no better' in capsys.readouterr().out
  assert trained_steps(folder) == [1, 2, 3, 4, 5, 6]
  found = json.loads((folder / 'result.json').read_text())
  assert found['step'] == 2 and 'the best of 6 steps' in found['headline']
  (folder / 'result.json').unlink()  # as if killed at the end
  assert launch(config, folder) == 0
  assert trained_steps(folder) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_going_back_is_the_same_after_an_interruption(
  configure, launch, tmp_path, interrupt_at, assert_same_export, trained_steps, capsys, monkeypatch
):
  # Gradients differ by more than a third, so two long ones in a row do come.
  values = {'train.steps': 40, 'optim.skip_spikes': 1.35, 'train.rollback': 2}
  values |= {'train.save_every': 2, 'train.eval_every': 8, 'seed': 1}
  values |= {'optim.lr': 1e-3, 'data.test': 0.0}
  config = configure(values=values)
  assert launch(config, tmp_path / 'whole') == 0
  out = capsys.readouterr().out
  found = re.search(r'2 steps in a row were skipped up to step \d+; going back to step (\d+),', out)
  interrupt_at(int(found[1]) + 1)
  assert launch(config, tmp_path / 'run') == 130
  monkeypatch.undo()
  assert launch(config, tmp_path / 'run') == 0
  logs = [report.read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'run')]
  for line in (*logs[0], *logs[1]):
    line.pop('tokens_per_second', None)
  assert logs[0] == logs[1] and logs[0][-2]['rollbacks'] >= 1
  assert trained_steps(tmp_path / 'run') == list(range(1, 41))
  assert_same_export(tmp_path / 'whole', tmp_path / 'run')
