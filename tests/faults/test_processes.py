"""A run in two processes: it is the run of one, survives each of them, and goes on in one."""

import os
import pathlib
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import entry
from jaxtune import report

pytestmark = pytest.mark.faults
STEPS = 24
VALUES = {
  'train.steps': STEPS,
  'train.eval_every': 6,
  'train.save_every': 3,
  'method.name': 'full',
  'mesh.data': 1,
  'mesh.fsdp': 2,  # over the devices of both processes
}


@pytest.fixture(scope='module')
def arguments(config_file):
  """`arguments(folder)`: the command line of the one run that all of these tests make."""
  path = config_file('causal_lm', VALUES)
  return lambda folder: ('finetune', f'--config={path}', f'--workdir={folder}')


@pytest.fixture(scope='module')
def launched(shell, arguments):
  """`launched(folder, processes=2)`: the run in so many processes, on two devices in all."""

  def run(folder, processes=2, restarts=1, **options):
    flags = (f'--processes={processes}', f'--devices={2 // processes}', f'--restarts={restarts}')
    return shell('launch_local', *flags, *arguments(folder), **options)

  return run


@pytest.fixture(scope='module')
def undisturbed(launched, tmp_path_factory):
  folder = tmp_path_factory.mktemp('two') / 'run'
  done = launched(folder)
  assert done.code == 0, done.err
  return folder


@pytest.fixture(scope='module')
def alone(launched, tmp_path_factory):
  folder = tmp_path_factory.mktemp('one') / 'run'
  done = launched(folder, processes=1)
  assert done.code == 0, done.err
  return folder


@pytest.fixture
def together(shell):
  """`together((script, flag, ...), (script, flag, ...), ...)`: a process each; their results."""

  def run(*commands, variables, meanwhile=lambda processes: None):
    processes = [
      shell(*command, wait=False, variables=variables(index))
      for index, command in enumerate(commands)
    ]
    meanwhile(processes)
    ended = [process.communicate(timeout=120) for process in processes]
    return [
      SimpleNamespace(code=process.returncode, out=out, err=err)
      for process, (out, err) in zip(processes, ended, strict=True)
    ]

  return run


@pytest.fixture
def free_address():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def explicit(address):
  return lambda index: {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': str(index),
  }


def slurm(address):
  """What `srun --ntasks=2` sets, and a port where nobody else listens."""
  host, port = address.split(':')
  return lambda index: {
    'SLURM_JOB_ID': '7',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_STEP_NODELIST': host,
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': str(index),
    'JAX_COORDINATOR_PORT': port,
  }


def wait_for_step(process, folder, step):
  """Waits until the log of a running process holds that step."""
  log, deadline = folder / 'metrics.jsonl', time.monotonic() + 300
  while time.monotonic() < deadline and process.poll() is None:
    if log.exists() and f'"step": {step},' in log.read_text():
      return
    time.sleep(0.01)
  raise AssertionError(f'step {step} never came: {process.communicate()}')


def child(launcher, index):
  """The number of a process that a launcher has started."""
  tasks = pathlib.Path(f'/proc/{launcher.pid}/task')
  for pid in ' '.join(file.read_text() for file in tasks.glob('*/children')).split():
    environment = pathlib.Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
    if f'JAX_PROCESS_ID={index}'.encode() in environment:
      return int(pid)
  raise AssertionError(f'process {index} is not there')


def losses(folder):
  """Of every line of the log that has one, by step and name."""
  found = {}
  for line in report.read_metrics(folder / 'metrics.jsonl'):
    found |= {(line['step'], name): line[name] for name in line if name.endswith('loss')}
  return found


def assert_same_losses(first, second):
  first, second = losses(first), losses(second)
  assert first.keys() == second.keys()
  np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=0, atol=1e-5)


def test_two_processes_are_as_one(undisturbed, alone, trained_steps):
  assert trained_steps(undisturbed) == list(range(1, STEPS + 1))
  assert_same_losses(undisturbed, alone)


def test_launcher_restarts_both_when_one_is_killed(
  launched, tmp_path, undisturbed, assert_same_export, trained_steps
):
  folder = tmp_path / 'run'
  launcher = launched(folder, wait=False)
  wait_for_step(launcher, folder, 7)  # the checkpoint of step 3 is whole before that of 6 begins
  os.kill(child(launcher, 0), signal.SIGKILL)  # the other one loses its coordinator, too
  out, err = launcher.communicate(timeout=300)
  assert launcher.returncode == 0, err
  assert 'process 0 was ended by SIGKILL' in err and 'starting all of them again' in err
  assert '[0] resuming at step' in out and '[1]' not in out
  assert trained_steps(folder) == list(range(1, STEPS + 1))
  assert losses(folder) == losses(undisturbed)
  assert_same_export(undisturbed, folder)


def test_survivor_ends_by_itself(together, arguments, free_address, tmp_path):
  folder = tmp_path / 'run'

  def kill(processes):
    wait_for_step(processes[0], folder, 4)
    processes[1].kill()
    processes[0].wait(timeout=30)

  command = arguments(folder)
  survivor, _ = together(command, command, variables=explicit(free_address), meanwhile=kill)
  assert survivor.code == entry.PREEMPTED, survivor.err
  assert 'process 0 of 2 has lost another one' in survivor.err and 'Traceback' not in survivor.err


def test_stopped_in_two_processes_and_gone_on_from_in_one(launched, tmp_path, alone):
  folder = tmp_path / 'run'
  launcher = launched(folder, wait=False, restarts=0)
  wait_for_step(launcher, folder, 4)
  # JAX looks every second whether the signal has come: until then the other one does not go on.
  first, second = (child(launcher, index) for index in range(2))
  os.kill(first, signal.SIGSTOP)
  os.kill(second, signal.SIGTERM)
  time.sleep(1.5)
  os.kill(first, signal.SIGCONT)
  out, err = launcher.communicate(timeout=300)
  assert launcher.returncode == entry.PREEMPTED, err
  assert '[0] stopped at step' in out and 'was ended by' not in err
  done = launched(folder, processes=1)
  assert done.code == 0 and 'resuming at step' in done.out, done.err
  assert_same_losses(folder, alone)


def test_processes_found_by_slurm_that_differ(together, arguments, free_address, tmp_path):
  command = arguments(tmp_path / 'run')
  first, second = together(
    command, (*command, '--config.optim.lr=0.5'), variables=slurm(free_address)
  )
  assert first.code == second.code == 1
  assert 'process 1 has config.optim.lr=0.5, and process 0 has 0.01' in first.err, second.err
  assert first.err.count('\n') == 1 and not second.err
  assert not (tmp_path / 'run').exists()


def test_coordinator_that_does_not_answer(shell, arguments, free_address, tmp_path):
  # As Open MPI 4 says where its first process is.
  host, port = free_address.split(':')
  mpi = {
    'OMPI_MCA_orte_hnp_uri': f'4096.0;tcp://{host}:1',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
    'JAX_COORDINATOR_PORT': port,
    'JAX_INITIALIZATION_TIMEOUT': '1',
  }
  done = shell(*arguments(tmp_path / 'run'), variables=mpi)
  assert done.code == 1 and done.err.startswith('error: '), done.err
  assert done.err.count('\n') == 1 and f'did not answer at {free_address}' in done.err


def test_half_of_what_it_takes(shell, arguments, tmp_path):
  done = shell(*arguments(tmp_path / 'run'), variables={'JAX_COORDINATOR_ADDRESS': '127.0.0.1:9'})
  assert done.code == 1 and done.err.startswith('error: ') and done.err.count('\n') == 1
  assert 'JAX_NUM_PROCESSES' in done.err
