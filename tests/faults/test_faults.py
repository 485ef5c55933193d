"""Real processes interrupted, killed, starved and damaged: they end as if nothing had happened."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.faults
STEPS = 24
VALUES = {'train.steps': STEPS, 'train.eval_every': 6, 'train.save_every': 3}


@pytest.fixture(scope='module')
def arguments(config_file):
  """`arguments(folder)`: the command line of the one run that all of these tests make."""
  path = config_file('classification', VALUES)
  return lambda folder: ('finetune', f'--config={path}', f'--workdir={folder}')


@pytest.fixture(scope='module')
def undisturbed(shell, arguments, tmp_path_factory):
  """A run that nothing happened to."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = shell(*arguments(folder))
  assert done.code == 0, done.err
  return folder


@pytest.fixture
def assert_as_undisturbed(undisturbed, assert_same_export, trained_steps):
  def check(folder):
    assert trained_steps(folder) == list(range(1, STEPS + 1))
    assert_same_export(undisturbed, folder)
    first, second = (json.loads((run / 'result.json').read_text()) for run in (undisturbed, folder))
    assert first['scores'] == second['scores'] and first['step'] == second['step']

  return check


def wait_for_step(process, folder, step):
  """Waits until the log of a running process holds that step."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline and process.poll() is None:
    if (folder / 'metrics.jsonl').exists() and f'"step": {step}, "acc' in (
      folder / 'metrics.jsonl'
    ).read_text():
      return
    time.sleep(0.002)
  raise AssertionError(f'step {step} never came: {process.poll()}')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted(shell, arguments, tmp_path, number, assert_as_undisturbed):
  folder = tmp_path / 'run'
  process = shell(*arguments(folder), wait=False)
  wait_for_step(process, folder, 4)
  process.send_signal(number)
  out, err = process.communicate(timeout=300)
  assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}[number], err
  assert 'the same command goes on from there' in out and 'Traceback' not in err
  done = shell(*arguments(folder))
  assert done.code == 0, done.err
  assert 'resuming at step' in done.out
  assert_as_undisturbed(folder)


def test_compiled_anew_after_an_interruption(shell, arguments, tmp_path, assert_as_undisturbed):
  # As on a user's machine: neither process finds what another one has compiled.
  folder = tmp_path / 'run'
  process = shell(*arguments(folder), wait=False, cache=False)
  wait_for_step(process, folder, 5)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=300)
  assert process.returncode == 130
  assert shell(*arguments(folder), cache=False).code == 0
  assert_as_undisturbed(folder)


def test_interrupted_before_the_first_step(shell, arguments, tmp_path, assert_as_undisturbed):
  folder = tmp_path / 'run'
  process = shell(*arguments(folder), wait=False)
  for line in process.stdout:
    if 'compiling' in line:
      break
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 130 and 'Traceback' not in err, err
  assert shell(*arguments(folder)).code == 0
  assert_as_undisturbed(folder)


@pytest.mark.parametrize('seed', range(3))
def test_killed_at_random_until_it_ends(
  shell, arguments, tmp_path, undisturbed, assert_as_undisturbed, seed
):
  folder, draw = tmp_path / 'run', random.Random(seed)
  kills = 0
  while True:
    process = shell(*arguments(folder), wait=False)
    # The first kills come wherever the process is; later ones wait for a step, so that it ends.
    target = draw.randrange(2, STEPS) if kills < 6 else STEPS + 1
    try:
      if target <= STEPS:
        wait_for_step(process, folder, target)
        time.sleep(draw.random() * 0.05)
        process.kill()
        kills += 1
    except AssertionError:
      assert process.returncode == 0 or kills  # it ended first
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), err
    if process.returncode == 0:
      break
  assert kills > 1
  assert_as_undisturbed(folder)


MOMENTS = {
  'before the first step is saved': 'orbax.checkpoint.CheckpointManager.save',
  'between a checkpoint and its digests': 'jaxtune.train.checkpoint._digests',
  'before the log is cut': 'jaxtune.report.metrics.truncate_after',
  'before the export': 'jaxtune.interop.save_peft',
  'before the report': 'jaxtune.report.write_report',
}


@pytest.mark.parametrize('moment', MOMENTS)
@pytest.mark.parametrize('call', [1, 2])
def test_killed_at_a_bad_moment(
  shell, arguments, tmp_path, moment, call, assert_as_undisturbed, undisturbed
):
  """The process ends itself, as SIGKILL would, at the first or second call of a function."""
  folder = tmp_path / 'run'
  module, _, name = MOMENTS[moment].rpartition('.')
  (tmp_path / 'sitecustomize.py').write_text(KILLER.format(module=module, name=name, call=call))
  if 'log' in moment:  # there is one to cut only where a run goes on
    process = shell(*arguments(folder), wait=False)
    wait_for_step(process, folder, 7)
    process.kill()
    process.communicate()
  script, *rest = arguments(folder)
  process = shell(script, *rest, wait=False, path=tmp_path)
  out, err = process.communicate(timeout=300)
  once = 'log' in moment or 'export' in moment or 'report' in moment
  assert process.returncode == (0 if once and call == 2 else -signal.SIGKILL), err
  done = shell(*arguments(folder))
  assert done.code == 0, done.err
  assert_as_undisturbed(folder)


KILLER = """
import importlib.abc, os, signal, sys

def arm():
  import pkgutil
  owner = pkgutil.resolve_name('{module}'.replace('.CheckpointManager', ':CheckpointManager'))
  real, calls = getattr(owner, '{name}'), []

  def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == {call}:
      os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

  setattr(owner, '{name}', killed)

class Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if name == 'experiments.start':
      sys.meta_path.remove(self)
      arm()

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def stopped(shell, arguments, tmp_path):
  """The folder of a run that was interrupted after some checkpoints."""
  folder = tmp_path / 'run'
  process = shell(*arguments(folder), wait=False)
  wait_for_step(process, folder, 8)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=300)
  assert process.returncode == 130
  return folder


def newest(folder):
  return max((path for path in (folder / 'checkpoints').iterdir()), key=lambda p: int(p.name))


@pytest.mark.parametrize('damage', ['cut', 'remove', 'no digests'])
def test_a_damaged_newest_checkpoint(shell, arguments, stopped, damage, assert_as_undisturbed):
  checkpoint = newest(stopped)
  files = [path for path in (checkpoint / 'state').rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  if damage == 'cut':
    os.truncate(largest, largest.stat().st_size // 2)
  elif damage == 'remove':
    largest.unlink()
  else:
    (checkpoint / 'digests.json').unlink()
  done = shell(*arguments(stopped))
  assert done.code == 0, done.err
  assert f'checkpoint of step {checkpoint.name} is damaged; going on from an older one' in done.out
  assert_as_undisturbed(stopped)


def test_a_torn_last_line_of_the_log(shell, arguments, stopped, assert_as_undisturbed):
  with open(stopped / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 9, "lo')
  assert shell(*arguments(stopped)).code == 0
  assert_as_undisturbed(stopped)


def test_all_checkpoints_damaged(shell, arguments, stopped):
  for path in (stopped / 'checkpoints').iterdir():
    os.truncate(path / 'digests.json', 10)
  done = shell(*arguments(stopped))
  assert done.code == 1 and done.err.count('\n') == 1, done.err
  assert 'all damaged' in done.err and 'remove the folder' in done.err


@pytest.fixture
def disk(tmp_path):
  """A disk of 8 MiB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
  if shutil.which('mount') is None or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('a small disk cannot be mounted here')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(disk, room):
  """Leaves `room` bytes of the disk; returns what to remove to have it all again."""
  ballast = disk / 'ballast'
  ballast.write_bytes(bytes(shutil.disk_usage(disk).free - room))
  return ballast


def assert_one_line(done, place):
  assert done.code == 1, done.out
  assert done.err.count('\n') == 1 and done.err.startswith('error: '), done.err
  assert str(place) in done.err


@pytest.mark.parametrize('room', [0, 16 << 10, 256 << 10])
def test_no_space_for_a_run(shell, arguments, disk, room, assert_as_undisturbed):
  ballast = fill(disk, room)
  assert_one_line(shell(*arguments(disk / 'run')), disk)
  ballast.unlink()
  assert shell(*arguments(disk / 'run')).code == 0
  assert_as_undisturbed(disk / 'run')


def test_no_space_for_a_checkpoint(shell, arguments, stopped, disk, assert_as_undisturbed):
  folder = shutil.copytree(stopped, disk / 'run')
  before = {path: path.read_bytes() for path in newest(folder).rglob('*') if path.is_file()}
  ballast = fill(disk, 100 << 10)
  done = shell(*arguments(folder))
  assert_one_line(done, folder / 'checkpoints')
  assert 'make room' in done.err and 'resuming at step' in done.out
  assert {path: path.read_bytes() for path in before} == before
  ballast.unlink()
  assert shell(*arguments(folder)).code == 0
  assert_as_undisturbed(folder)


def test_no_space_for_an_export(shell, undisturbed, disk):
  fill(disk, 256 << 10)
  done = shell('export', f'--workdir={undisturbed}', f'--folder={disk}/merged')
  assert_one_line(done, disk / 'merged')
  assert [path.name for path in disk.iterdir()] == ['ballast']


def test_no_space_for_the_report(shell, arguments, tmp_path, assert_as_undisturbed):
  folder = tmp_path / 'run'
  process = shell(*arguments(folder), wait=False)
  limit = 60_000  # bytes of any file: more than a checkpoint's have, and less than the report
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
  out, err = process.communicate(timeout=300)
  assert_one_line(SimpleNamespace(code=process.returncode, out=out, err=err), folder)
  assert 'report.html' in err
  assert shell(*arguments(folder)).code == 0
  assert_as_undisturbed(folder)
