import importlib.machinery
import importlib.util
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.report import open_metrics, read_metrics, truncate_after
from jaxtune.typing import InputError

names = st.text(min_size=1).filter(lambda name: name != 'step')


def write(folder, rows, **options):
  with open_metrics(folder, tensorboard=False, **options) as log:
    for step, values in rows:
      log.write(step, values)
  return folder / 'metrics.jsonl'


@given(rows=st.lists(st.tuples(st.integers(0, 10**9), st.dictionaries(names, st.floats()))))
def test_round_trip_keeps_every_bit_and_every_line_is_json(tmp_path_factory, rows):
  path = write(tmp_path_factory.mktemp('log'), rows)

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  for line in path.read_text().splitlines():
    assert next(iter(json.loads(line, parse_constant=refuse))) == 'step'
  expected = [
    {'step': step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    for step, values in rows
  ]
  assert read_metrics(path) == expected


def test_scalars_of_jax_and_numpy_are_written_as_numbers(tmp_path):
  import jax.numpy as jnp
  import numpy as np

  values = {'a': jnp.float32(0.5), 'b': np.float64(np.nan), 'c': np.int64(3), 'd': 7}
  path = write(tmp_path, [(np.int32(4), values)])
  assert read_metrics(path) == [{'step': 4, 'a': 0.5, 'b': None, 'c': 3, 'd': 7}]


@given(kept=st.integers(0, 12), torn=st.integers(0, 40), resume=st.integers(0, 12))
def test_an_interrupted_log_resumes_to_the_log_of_a_whole_run(tmp_path_factory, kept, torn, resume):
  rows = [(step, {'loss': step / 7}) for step in range(1, 13)]
  rows += [(12, {'test/accuracy': 0.8})]
  whole = write(tmp_path_factory.mktemp('whole'), rows).read_bytes()
  folder = tmp_path_factory.mktemp('cut')
  path = write(folder, rows[:kept])
  resume = min(resume, kept)
  with open(path, 'ab') as file:
    file.write(b'{"step": 13, "loss": 0.123456789012345678}\n'[:torn])
  write(folder, [row for row in rows if row[0] > resume], resume_step=resume)
  if resume < 12:
    assert path.read_bytes() == whole


def test_a_whole_line_without_its_newline_is_kept(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}')
  assert [line['step'] for line in read_metrics(path)] == [1, 2]
  write(tmp_path, [(3, {})], resume_step=2)
  assert [line['step'] for line in read_metrics(path)] == [1, 2, 3]


def test_a_torn_character_is_a_torn_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n{"step": 2, "\xc3')
  assert read_metrics(path) == [{'step': 1}]


@pytest.mark.parametrize('bad', ['{"step": 1, "lo', '[1]', '{"loss": 1.0}', '', '\x00\x00'])
def test_damage_in_the_middle_is_named(tmp_path, bad):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
  before = path.read_bytes()
  for action in (read_metrics, lambda p: truncate_after(p, 1)):
    with pytest.raises(InputError, match=r'metrics\.jsonl: line 2 ') as error:
      action(path)
    assert '\n' not in str(error.value)
  assert path.read_bytes() == before


def test_a_new_run_starts_its_log_anew(tmp_path):
  write(tmp_path, [(1, {'loss': 1.0})])
  path = write(tmp_path, [(1, {'loss': 2.0})])
  assert read_metrics(path) == [{'step': 1, 'loss': 2.0}]
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_kill_loses_no_finished_line(tmp_path):
  code = (
    'import os, signal, sys\n'
    'from jaxtune.report.metrics import open_metrics\n'
    'log = open_metrics(sys.argv[1], tensorboard=False)\n'
    'for step in range(50): log.write(step, {"loss": 1.0})\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', code, tmp_path], cwd=root, env=dict(os.environ))
  assert done.returncode == -signal.SIGKILL
  assert len(read_metrics(tmp_path / 'metrics.jsonl')) == 50


def test_tensorboard_holds_the_same_numbers(tmp_path):
  pytest.importorskip('tensorboardX')
  from tensorboardX.proto.event_pb2 import Event

  with open_metrics(tmp_path, tensorboard=True) as log:
    log.write(1, {'loss': 0.5, 'grad_norm': math.nan})
    log.write(2, {'loss': 0.25})
  (file,) = (tmp_path / 'tensorboard').iterdir()
  data, found = file.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], 'little')  # length, its checksum, the event, its checksum
    event = Event.FromString(data[12 : 12 + size])
    found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    data = data[16 + size :]
  assert found == [(1, 'loss', 0.5), (2, 'loss', 0.25)]


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install'):
    open_metrics(tmp_path, tensorboard=True)
  open_metrics(tmp_path).close()
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_failed_replacement_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
  path = write(tmp_path, [(1, {}), (2, {})])
  before = path.read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    truncate_after(path, 1)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_wandb_gets_the_same_lines_under_one_id(tmp_path, monkeypatch):
  calls = []
  board = types.SimpleNamespace(
    log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append('finish')
  )
  module = types.ModuleType('wandb')
  module.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
  settings = []
  module.init = lambda **options: settings.append(options) or board
  monkeypatch.setitem(sys.modules, 'wandb', module)
  for resume_step in (None, 1):
    with open_metrics(tmp_path, resume_step=resume_step, tensorboard=False, wandb='project') as log:
      log.write(2, {'loss': 0.5})
  assert calls == [(2, {'loss': 0.5}), 'finish'] * 2
  assert settings[0] == settings[1]
  assert settings[0]['project'] == 'project' and settings[0]['resume'] == 'allow'


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'needs wandb: pip install "jaxtune\[wandb\]"'):
    open_metrics(tmp_path, wandb='project')
