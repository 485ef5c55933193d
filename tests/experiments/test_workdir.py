"""A work directory belongs to one configuration; what else it may hold is refused in one line."""

import errno
import json
import os
import shutil
import socket

import pytest

from experiments import workdir
from jaxtune import typing


def test_two_live_runs_do_not_share_a_folder(configure, launch, tmp_path):
  folder = tmp_path / 'run'
  with workdir.locked(folder):
    message = refused(launch, configure(), folder)
    owner = f'process {os.getpid()} on {socket.gethostname()} since 2'
    assert f'{folder} is in use by another run, {owner}' in message and '--workdir' in message
  assert not folder.exists()


def test_the_lock_of_a_dead_run_is_taken_over(tmp_path):
  (tmp_path / workdir.LOCK).write_text('process 1 on elsewhere since 2999-01-01T00:00:00+00:00')
  with workdir.locked(tmp_path):
    assert str(os.getpid()) in (tmp_path / workdir.LOCK).read_text()
  assert not (tmp_path / workdir.LOCK).exists()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
  def flock(file, operation):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(workdir.fcntl, 'flock', flock)
  with workdir.locked(tmp_path / 'run'):
    pass
  assert 'cannot be locked (Operation not supported)' in capsys.readouterr().out


@pytest.fixture
def copy(finished, tmp_path):
  """A finished run of its own."""
  shutil.copytree(finished, tmp_path / 'run')
  return tmp_path / 'run'


def refused(launch, config, folder):
  before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  with pytest.raises(typing.InputError) as caught:
    launch(config, folder)
  message = str(caught.value)
  assert '\n' not in message
  after = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  assert after == before
  return message


def test_another_configuration_is_refused_and_shown(finished, configure, launch):
  config = configure(values={'optim.lr': 0.5, 'train.steps': 3})
  message = refused(launch, config, finished)
  assert str(finished) in message and '--workdir' in message
  assert 'optim.lr is 0.01 there and 0.5 here' in message
  assert 'train.steps is 4 there and 3 here' in message
  assert 'seed' not in message


def test_a_newer_format_is_refused(copy, configure, launch):
  run = json.loads((copy / 'run.json').read_text())
  (copy / 'run.json').write_text(json.dumps({'format': workdir.FORMAT + 1, 'shape': 'unknown'}))
  message = refused(launch, configure(), copy)
  assert f'format {workdir.FORMAT + 1}' in message and 'upgrade jaxtune' in message
  (copy / 'run.json').write_text(json.dumps(run | {'format': workdir.FORMAT}))
  assert launch(configure(), copy) == 0


@pytest.mark.parametrize('name', ['run.json', 'result.json'])
@pytest.mark.parametrize('content', [b'', b'{"for', b'\xff\xfe', b'[1]', b'{}', b'{"format": "1"}'])
def test_a_damaged_file_is_refused(copy, configure, launch, command, name, content):
  (copy / name).write_bytes(content)
  message = refused(launch, configure(), copy)
  assert str(copy / name) in message and 'damaged' in message
  with pytest.raises(typing.InputError, match='damaged'):
    command('evaluate', workdir=copy)


@pytest.mark.parametrize('script', ['evaluate', 'predict', 'export'])
def test_a_folder_without_a_run_is_refused(script, command, files, tmp_path):
  values = {'input': files / 'films.csv', 'folder': tmp_path / 'merged'}
  for folder in (tmp_path, tmp_path / 'nothing'):
    with pytest.raises(typing.InputError, match='holds no run.*give the --workdir of a run'):
      command(script, workdir=folder, **values)


@pytest.mark.parametrize('script', ['evaluate', 'predict', 'export'])
def test_an_unfinished_run_is_refused(script, copy, command, files, tmp_path):
  (copy / 'result.json').unlink()
  with pytest.raises(typing.InputError, match='not finished; start it again'):
    command(script, workdir=copy, input=files / 'films.csv', folder=tmp_path / 'merged')
