"""Real processes interrupted, killed, starved and damaged: they end as if nothing had happened.

A process takes seconds to start, so what can happen to one run after the other happens to one run.
"""

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

from benchmarks import faults
from jaxtune import train

pytestmark = pytest.mark.faults
STEPS = faults.STEPS
VALUES = {'train.steps': STEPS, 'train.eval_every': faults.EVAL_EVERY, 'train.save_every': 3}


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


@pytest.fixture(scope='module')
def stopped(shell, arguments, undisturbed, tmp_path_factory):
  """A run that was sent SIGTERM after some checkpoints; to be copied."""
  folder = tmp_path_factory.mktemp('stopped') / 'run'
  process = shell(*arguments(folder), wait=False)
  wait_for_step(process, folder, 8)
  process.terminate()
  out, err = process.communicate(timeout=300)
  assert process.returncode == 75 and not err, err
  assert 'the same command goes on from there' in out
  assert not (folder / 'lock').exists() and not (folder / 'result.json').exists()
  return folder


@pytest.fixture
def assert_as_undisturbed(undisturbed):
  def check(folder):
    assert faults.same(undisturbed, folder)
    assert faults.log(undisturbed) == faults.log(folder)  # each step once, with the same numbers

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


def assert_one_line(done, place):
  assert done.code == 1, done.out
  assert done.err.count('\n') == 1 and done.err.startswith('error: '), done.err
  assert str(place) in done.err


def test_interrupted_while_another_wants_its_folder(
  shell, arguments, tmp_path, assert_as_undisturbed
):
  folder = tmp_path / 'run'
  process = shell(*arguments(folder), wait=False)
  wait_for_step(process, folder, 4)
  process.send_signal(signal.SIGSTOP)  # so that it does not end before the other has begun
  done = shell(*arguments(folder))
  assert_one_line(done, f'{folder} is in use by another run, process {process.pid} on ')
  process.send_signal(signal.SIGCONT)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 130 and not err, err
  assert 'the same command goes on from there' in out
  done = shell(*arguments(folder))
  assert done.code == 0 and 'resuming at step' in done.out, done.err
  assert_as_undisturbed(folder)


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_ended_before_the_first_step(shell, arguments, tmp_path, number, code):
  process = shell(*arguments(tmp_path / 'run'), wait=False)
  for line in process.stdout:
    if 'compiling' in line:
      break
  process.send_signal(number)
  _, err = process.communicate(timeout=300)
  assert process.returncode == code and err.count('\n') == 1, err
  assert not (tmp_path / 'run' / 'lock').exists()


def test_compiled_anew_after_an_interruption(
  shell, arguments, stopped, tmp_path, assert_as_undisturbed
):
  # As on another machine of the kind: nothing is found of what another process has compiled.
  folder = shutil.copytree(stopped, tmp_path / 'run')
  assert shell(*arguments(folder), cache=False).code == 0
  assert_as_undisturbed(folder)


def test_killed_at_random(shell, arguments, tmp_path, assert_as_undisturbed):
  folder, trace, draw = tmp_path / 'run', tmp_path / 'trace', random.Random(7)
  (tmp_path / 'sitecustomize.py').write_text(faults.TRACER)
  for phase in ('step', 'save', 'evaluation', 'export'):
    trace.unlink(missing_ok=True)
    process = shell(*arguments(folder), wait=False, path=tmp_path, variables={'TRACE': str(trace)})
    number = 1 if phase == 'export' else draw.randint(1, 3)
    assert faults.kill_in(process, trace, phase, number, draw.random() * 0.02)
  assert shell(*arguments(folder)).code == 0
  assert_as_undisturbed(folder)


MOMENTS = (
  ('orbax.checkpoint:CheckpointManager save', 1, 'before the first save'),
  ('jaxtune.train.checkpoint _digests', 1, 'before the first checkpoint is proved'),
  ('jaxtune.train.checkpoint _digests', 3, 'before the third one is'),
  ('jaxtune.report.metrics truncate_after', 1, 'before the log is cut'),
  ('jaxtune.interop save_peft', 1, 'before the export'),
  ('jaxtune.report write_report', 1, 'before the report'),
)


def test_killed_at_bad_moments(shell, arguments, tmp_path, assert_as_undisturbed):
  """One run that kills itself, as SIGKILL would, when it comes to one of these after the other."""
  folder = tmp_path / 'run'
  (tmp_path / 'sitecustomize.py').write_text(KILLER)
  for place, call, moment in MOMENTS:
    variables = {'KILL': f'{place} {call}'}
    done = shell(*arguments(folder), path=tmp_path, variables=variables)
    assert done.code == -signal.SIGKILL, (moment, done.err)
  done = shell(*arguments(folder))
  assert done.code == 0 and 'resuming at step 24 of 24' in done.out, done.err
  assert_as_undisturbed(folder)


KILLER = """
import importlib.abc, os, pkgutil, signal, sys

def arm(owner, name, call):
  owner = pkgutil.resolve_name(owner)
  real, calls = getattr(owner, name), []

  def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == int(call):
      os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

  setattr(owner, name, killed)

class Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if name == 'experiments.start':
      sys.meta_path.remove(self)
      arm(*os.environ['KILL'].split())

if 'KILL' in os.environ:
  sys.meta_path.insert(0, Finder())
"""


def test_a_damaged_newest_checkpoint_and_a_torn_log(
  shell, arguments, stopped, tmp_path, assert_as_undisturbed
):
  folder = shutil.copytree(stopped, tmp_path / 'run')
  newest = folder / 'checkpoints' / str(train.open_checkpoints(folder / 'checkpoints').steps[-1])
  files = [path for path in (newest / 'state').rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  with open(folder / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 9, "lo')
  done = shell(*arguments(folder))
  assert done.code == 0, done.err
  assert f'checkpoint of step {newest.name} is damaged; going on from an older one' in done.out
  assert_as_undisturbed(folder)


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


def test_no_space_for_a_run(shell, arguments, disk, assert_as_undisturbed):
  for room in (0, 256 << 10):
    ballast = fill(disk, room)
    assert_one_line(shell(*arguments(disk / 'run')), disk)
    ballast.unlink()
  assert shell(*arguments(disk / 'run')).code == 0
  assert_as_undisturbed(disk / 'run')


def content(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_no_space_for_a_checkpoint(shell, arguments, stopped, disk, assert_as_undisturbed):
  folder = shutil.copytree(stopped, disk / 'run')
  before = content(folder / 'checkpoints')
  ballast = fill(disk, 100 << 10)
  done = shell(*arguments(folder))
  assert_one_line(done, folder / 'checkpoints')
  assert 'make room' in done.err and 'resuming at step' in done.out
  assert content(folder / 'checkpoints') == before
  ballast.unlink()
  assert shell(*arguments(folder)).code == 0
  assert_as_undisturbed(folder)


def test_no_space_for_an_export(shell, undisturbed, disk):
  fill(disk, 256 << 10)
  done = shell('export', f'--workdir={undisturbed}', f'--folder={disk}/merged')
  assert_one_line(done, disk / 'merged')
  assert [path.name for path in disk.iterdir()] == ['ballast']


def limited(shell, arguments, folder, size):
  """A run none of whose files may have more bytes: to it, a disk that fills up as it writes."""
  process = shell(*arguments(folder), wait=False)
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
  out, err = process.communicate(timeout=300)
  return SimpleNamespace(code=process.returncode, out=out, err=err)


def test_no_space_behind_the_steps_and_for_the_report(
  shell, arguments, stopped, tmp_path, assert_as_undisturbed
):
  folder = shutil.copytree(stopped, tmp_path / 'run')
  before = content(folder / 'checkpoints')
  largest = max(len(found) for found in before.values())
  done = limited(shell, arguments, folder, largest // 2)
  assert_one_line(done, folder / 'checkpoints')
  assert 'cannot be written' in done.err and 'make room' in done.err
  after = content(folder / 'checkpoints')
  assert {path: after[path] for path in before} == before
  done = limited(shell, arguments, folder, 60_000)  # less than the report has
  assert_one_line(done, folder / 'report.html')
  assert json.loads((folder / 'run.json').read_text()) and not (folder / 'result.json').exists()
  assert shell(*arguments(folder)).code == 0
  assert_as_undisturbed(folder)
