"""Runs a script in several processes on this machine, and starts them again when one dies.

  python -m experiments.launch_local --processes=2 finetune --config=configs/quickstart.py \\
    --workdir=runs/two

The flags of the script follow its name. The processes share the machine's cores (JAX_PLATFORMS is
cpu), each with as many devices as --devices says. Where one is killed or crashes, or is stopped to
make room (SIGTERM), all are ended and started again, and the script goes on where it was. A script
that ends by itself with an error would only do so again: it is not restarted. Ctrl-C, or SIGTERM to
this process, stops all of them for good. On a cluster its own launcher does this, see docs/cluster.
"""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from absl import app, flags

PROCESSES = flags.DEFINE_integer('processes', 2, 'How many.', lower_bound=1)
DEVICES = flags.DEFINE_integer('devices', 1, 'CPU devices of each process.', lower_bound=1)
RESTARTS = flags.DEFINE_integer('restarts', 3, 'Most restarts of all.', lower_bound=0)

INTERRUPTED, PREEMPTED = 130, 75  # as experiments.entry has them, which would import JAX
LAST_WORDS = 3.0  # seconds in which the others may end by themselves when one has failed
TERMINATION = 5.0  # seconds from SIGTERM to SIGKILL

Processes = dict[int, 'subprocess.Popen[str]']


def main(arguments: list[str]) -> int:
  _, *command = arguments
  if not command or importlib.util.find_spec(f'experiments.{command[0]}') is None:
    return fail(f'{command[:1] or "nothing"} is no script of experiments; give one, as finetune')
  asked: list[int] = []
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
  for restart in range(RESTARTS.value + 1):
    if restart:
      say(f'starting all of them again, {restart} of at most {RESTARTS.value} times')
    codes = run(command, asked)
    code = next((code for code in codes if code), 0)  # of the first to fail: others follow it
    if asked or (code >= 0 and code != PREEMPTED):
      break
  if asked[:1] == [signal.SIGINT] and code == PREEMPTED:
    return INTERRUPTED
  return 128 - code if code < 0 else code


def run(command: list[str], asked: list[int]) -> list[int]:
  """Starts the processes and sees to it that all end; their exit codes, the first to end first."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  running = {index: start(command, index, address) for index in range(PROCESSES.value)}
  echoes = [echo(index, process) for index, process in running.items()]
  codes: list[int] = []

  def failed() -> bool:
    return any(code not in (0, PREEMPTED) for code in codes)

  wait(running, codes, lambda: bool(asked) or failed())
  if asked:
    tell(running, signal.SIGTERM)  # they save and stop, however long that takes
    wait(running, codes, lambda: len(asked) > 1)
  else:
    wait(running, codes, after(LAST_WORDS))
    tell(running, signal.SIGTERM)
    wait(running, codes, after(TERMINATION))
  tell(running, signal.SIGKILL)
  wait(running, codes, lambda: False)
  for thread in [thread for pair in echoes for thread in pair]:
    thread.join(timeout=1)
  return codes


def start(command: list[str], index: int, address: str) -> 'subprocess.Popen[str]':
  others = re.sub(
    r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', '')
  )
  environment = {
    'JAX_INITIALIZATION_TIMEOUT': '60',
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': str(PROCESSES.value),
    'JAX_PROCESS_ID': str(index),
    'PYTHONUNBUFFERED': '1',
    'XLA_FLAGS': f'{others} --xla_force_host_platform_device_count={DEVICES.value}'.strip(),
  }
  script, *rest = command
  return subprocess.Popen(
    [sys.executable, '-m', f'experiments.{script}', *rest],
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    errors='replace',
    start_new_session=True,  # Ctrl-C comes to this process alone, which tells them
  )


def echo(index: int, process: 'subprocess.Popen[str]') -> list[threading.Thread]:
  """Prints what a process prints, its number ahead of every line."""

  def copy(source: IO[str], target: IO[str]) -> None:
    with source:
      for line in source:
        target.write(f'[{index}] {line}')
        target.flush()

  pipes = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
  threads = [threading.Thread(target=copy, args=pipe, daemon=True) for pipe in pipes]
  for thread in threads:
    thread.start()
  return threads


def wait(running: Processes, codes: list[int], enough: Callable[[], bool]) -> None:
  """Waits until all have ended, or it is enough."""
  while running and not enough():
    for index, process in list(running.items()):
      code = process.poll()
      if code is not None:
        del running[index]
        codes.append(code)
        if code < 0:
          say(f'process {index} was ended by {signal.Signals(-code).name}')
        elif code:
          say(f'process {index} ended with code {code}')
    time.sleep(0.05)


def after(seconds: float) -> Callable[[], bool]:
  end = time.monotonic() + seconds
  return lambda: time.monotonic() > end


def tell(running: Processes, number: int) -> None:
  for process in running.values():
    os.killpg(process.pid, number)  # and what it has started itself


def say(text: str) -> None:
  print(f'launch_local: {text}', file=sys.stderr, flush=True)


def fail(text: str) -> int:
  print('error: ' + ' '.join(str(text).split()), file=sys.stderr)
  return 1


def parse(arguments: list[str]) -> list[str]:
  flags.FLAGS.set_gnu_getopt(False)  # what follows the name of the script is the script's
  try:
    return flags.FLAGS(arguments)
  except flags.Error as error:
    sys.exit(fail(str(error)))


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
