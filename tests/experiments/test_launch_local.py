"""The launcher, with small programs of the shell in place of runs."""

import signal
import subprocess
from types import SimpleNamespace

import pytest

from experiments import entry, launch_local

QUIET = 'exit 0'
PATIENT = 'sleep 60'
OBEDIENT = f'trap "exit {entry.PREEMPTED}" TERM; echo ready; while :; do sleep 0.02; done'


@pytest.fixture
def launch(monkeypatch):
  """`launch(first, second)`: the exit code of the launcher over these two, and all their starts."""

  def run(*programs, restarts=0):
    flags = {'PROCESSES': len(programs), 'RESTARTS': restarts}
    for name, value in flags.items():
      monkeypatch.setattr(launch_local, name, SimpleNamespace(value=value))
    monkeypatch.setattr(launch_local, 'LAST_WORDS', 0.1)
    monkeypatch.setattr(launch_local, 'TERMINATION', 0.2)
    started = []

    def start(command, index, address):
      started.append(address)
      program = programs[index]
      return subprocess.Popen(
        ['sh', '-c', program.format(start=(len(started) - 1) // len(programs))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
      )

    monkeypatch.setattr(launch_local, 'start', start)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
      return launch_local.main(['launch_local', 'finetune']), started
    finally:
      for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)

  return run


def test_all_end_well(launch, capfd):
  code, started = launch('echo hello', 'echo there >&2')
  assert code == 0 and len(started) == 2
  assert capfd.readouterr() == ('[0] hello\n', '[1] there\n')


@pytest.mark.parametrize('other', [PATIENT, 'trap "" TERM; sleep 60'])
def test_one_that_fails_ends_the_others(launch, capfd, other):
  code, started = launch('exit 1', other, restarts=3)
  assert code == 1 and len(started) == 2, 'an error would only come again'
  assert 'process 0 ended with code 1' in capfd.readouterr().err


def test_all_start_again_when_one_is_killed(launch, capfd):
  once = '[ {start} = 1 ] || kill -KILL $$'
  code, started = launch(f'[ {{start}} = 1 ] || {PATIENT}', once, restarts=1)
  assert code == 0 and len(started) == 4
  assert started[0] == started[1] and started[2] == started[3], 'processes meet at one address'
  assert 'process 1 was ended by SIGKILL' in capfd.readouterr().err


def test_no_more_restarts_than_asked_for(launch):
  code, started = launch(f'exit {entry.PREEMPTED}', QUIET, restarts=2)
  assert code == entry.PREEMPTED and len(started) == 6
  code, started = launch('kill -KILL $$', QUIET)
  assert code == 128 + signal.SIGKILL and len(started) == 2


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_them_for_good(launch, monkeypatch, number):
  echo = launch_local.echo

  def listening(index, process):
    assert process.stdout.readline() == 'ready\n'
    if index == 1:
      signal.raise_signal(number)
    return echo(index, process)

  monkeypatch.setattr(launch_local, 'echo', listening)
  code, started = launch(OBEDIENT, OBEDIENT, restarts=3)
  assert code == (entry.INTERRUPTED if number == signal.SIGINT else entry.PREEMPTED)
  assert len(started) == 2


def test_a_script_that_is_none(capsys):
  assert launch_local.main(['launch_local', 'fintune', '--config=x.py']) == 1
  assert launch_local.main(['launch_local']) == 1
  assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ['error: '] * 2
