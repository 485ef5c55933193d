"""Kills runs with SIGKILL at random moments until they end, and sees whether they end undisturbed.

  python benchmarks/faults.py --folder=runs/faults

Every run is `python -m experiments.finetune` on the quickstart's model and data, killed once in a
step, in a save, in an evaluation and in the export, each time started again with the same command.
It must end with the tensors of a run that nobody touched, bit for bit, and with each step once in
its log. The processes are those of a user: what they are at is read from a file, which a
`sitecustomize` has them write, that Python loads before anything else.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ('step', 'save', 'evaluation', 'export')
STEPS, EVAL_EVERY = 24, 4
CONFIG = (
  f'--config={ROOT}/configs/quickstart.py',
  f'--config.train.steps={STEPS}',
  '--config.train.batch_size=8',
  f'--config.train.eval_every={EVAL_EVERY}',
  '--config.train.save_every=2',
  '--config.data.max_length=32',
  '--config.data.valid=64.0',
  '--config.data.test=64.0',
)

# Name of the phase, where its function is, and where the phase ends if not with it: what is saved
# is written by another thread, behind the steps.
TRACER = """
import functools, importlib.abc, os, sys, time

PHASES = [
  ('step', 'jaxtune.train', 'fit', None),
  ('save', 'jaxtune.train.checkpoint', 'save', ('orbax.checkpoint:CheckpointManager', '_finalize')),
  ('evaluation', 'experiments.inputs', 'measure', None),
  ('export', 'experiments.finish', 'export', None),
]

def say(text):
  os.write(FILE, f'{time.monotonic():.6f} {text}\\n'.encode())

def wrap(owner, name, before, after):
  real = getattr(owner, name)

  @functools.wraps(real)
  def wrapped(*args, **kwargs):
    before and say(before)
    try:
      return real(*args, **kwargs)
    finally:
      after and say(after)

  setattr(owner, name, wrapped)

def arm():
  import pkgutil
  for phase, owner, name, end in PHASES:
    wrap(pkgutil.resolve_name(owner), name, '+' + phase, None if end else '-' + phase)
    if end:
      wrap(pkgutil.resolve_name(end[0]), end[1], None, '-' + phase)
  from jaxtune import report
  real = report.Progress.step
  def step(self, number, metrics):
    say(f'@{number}')
    real(self, number, metrics)
  report.Progress.step = step

class Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if name == 'experiments.start':
      sys.meta_path.remove(self)
      arm()

if os.environ.get('TRACE'):
  FILE = os.open(os.environ['TRACE'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  sys.meta_path.insert(0, Finder())
"""


class Event(NamedTuple):
  """When, in seconds of the machine's own clock; `+save`, `-save`, `@12` when step 12 is logged."""

  when: float
  what: str


class Kill(NamedTuple):
  """What the process was at, `save` together with what went on meanwhile, and its last step."""

  phases: tuple[str, ...]
  step: int


def events(trace: pathlib.Path) -> list[Event]:
  """What a process has said so far."""
  if not trace.exists():
    return []
  lines = [line.split() for line in trace.read_text().split('\n')[:-1]]
  return [Event(float(when), what) for when, what in lines]


def at(found: Sequence[Event]) -> Kill:
  """Where a process was that said no more than this."""
  opened = {name: sum(e.what == f'+{name}' for e in found) for name in PHASES}
  for name in PHASES:
    opened[name] -= sum(e.what == f'-{name}' for e in found)
  inside = [name for name in PHASES if opened[name]]
  if 'evaluation' in inside or 'export' in inside:
    inside = [name for name in inside if name != 'step']  # they lie in it, or behind it
  steps = [int(e.what[1:]) for e in found if e.what[0] == '@']
  return Kill(tuple(inside), steps[-1] if steps else 0)


def lengths(found: Sequence[Event], phase: str) -> list[float]:
  """Seconds that each of a phase took; of steps from one to the next."""
  if phase == 'step':
    steps = [e.when for e in found if e.what[0] == '@']
    return [b - a for a, b in zip(steps, steps[1:], strict=False)]
  begun = [e.when for e in found if e.what == f'+{phase}']
  ended = [e.when for e in found if e.what == f'-{phase}']
  return [b - a for a, b in zip(begun, ended, strict=False)]


def begin(command: Sequence[str], tracer: pathlib.Path, trace: pathlib.Path) -> subprocess.Popen:
  """A process of `python -m experiments...` that says what it is at."""
  trace.unlink(missing_ok=True)
  path = os.pathsep.join(filter(None, [str(tracer), os.environ.get('PYTHONPATH')]))
  environment = {**os.environ, 'PYTHONPATH': path, 'TRACE': str(trace), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    [sys.executable, '-m', *command],
    cwd=ROOT,
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def kill_in(
  process: subprocess.Popen, trace: pathlib.Path, phase: str, number: int, delay: float
) -> Kill | None:
  """Kills a process `delay` seconds after the n-th beginning of a phase; None if it ended first.

  Steps that an evaluation follows do not count, and what is saved at them does neither.
  """
  while process.poll() is None:
    found, step = [], 0
    for event in events(trace):
      step = int(event.what[1:]) if event.what[0] == '@' else step
      begins = event.what == f'+{phase}' or (phase == 'step' and event.what[0] == '@')
      if begins and (phase not in ('step', 'save') or step % EVAL_EVERY):
        found.append(event)
    if len(found) >= number:
      time.sleep(max(0.0, found[number - 1].when + delay - time.monotonic()))
      process.kill()
      process.communicate()
      return at(events(trace))
    time.sleep(0.0005)
  return None


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Of the export, and of the newest checkpoint: all that was trained, and the optimizer's."""
  (file,) = (folder / 'export').glob('*.safetensors')
  newest = max((folder / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  state = ocp.StandardCheckpointer().restore(newest / 'state')
  state['key'] = jax.random.key_data(state['key'])
  leaves = jax.tree_util.tree_leaves_with_path(state)
  held = {f'{newest.name}{jax.tree_util.keystr(path)}': np.asarray(leaf) for path, leaf in leaves}
  return {**safetensors.numpy.load_file(file), **held}


def same(first: pathlib.Path, second: pathlib.Path) -> bool:
  """Whether two runs ended with the same tensors, bit for bit, and the same scores."""
  a, b = tensors(first), tensors(second)
  scores = [json.loads((run / 'result.json').read_text())['scores'] for run in (first, second)]
  return (
    a.keys() == b.keys()
    and all(a[name].tobytes() == b[name].tobytes() for name in a)
    and scores[0] == scores[1]
  )


def log(folder: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a run's log without what depends on the clock."""
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'tokens_per_second'} for line in lines]


def disturbed(
  command: Sequence[str],
  trace: pathlib.Path,
  tracer: pathlib.Path,
  shortest: dict[str, float],
  draw: random.Random,
) -> list[Kill]:
  """A run that is killed in each phase, the export last, and then ends."""
  kills = []
  for phase in (*draw.sample(PHASES[:-1], 3), 'export'):
    process = begin(command, tracer, trace)
    number = 1 if phase == 'export' else draw.randint(1, 3)
    kill = kill_in(process, trace, phase, number, draw.random() * shortest[phase] / 2)
    if kill is None:
      sys.exit(f'the run ended before its {phase} {number}:\n{process.communicate()[0][-2000:]}')
    print(f'killed in {" and ".join(kill.phases) or "nothing"}, step {kill.step}', file=sys.stderr)
    kills.append(kill)
  process = begin(command, tracer, trace)
  out, _ = process.communicate()
  if process.returncode:
    sys.exit(f'a restarted run failed:\n{out[-2000:]}')
  return kills


def main() -> None:
  from step import machine, markdown  # beside this file, where tests do not look

  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--folder', help='of the runs; a temporary one by default')
  parser.add_argument('--runs', type=int, default=5, help='each is killed four times')
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  folder = pathlib.Path(options.folder or tempfile.mkdtemp()).absolute()
  tracer, trace = folder / 'tracer', folder / 'trace'
  tracer.mkdir(parents=True)
  (tracer / 'sitecustomize.py').write_text(TRACER)

  def command(name: str) -> list[str]:
    return ['experiments.finetune', *CONFIG, f'--workdir={folder / name}']

  for name in ('warm', 'undisturbed'):  # the first fills the cache of compiled programs
    process = begin(command(name), tracer, trace)
    out, _ = process.communicate()
    if process.returncode:
      sys.exit(f'the undisturbed run failed:\n{out[-2000:]}')
  whole, found = folder / 'undisturbed', events(trace)
  shortest = {phase: min(lengths(found, phase)) for phase in PHASES}
  draw = random.Random(options.seed)
  rows, right = [['run', 'killed in', 'at step', 'bitwise equal', 'each step once']], True
  for number in range(1, options.runs + 1):
    run = folder / str(number)
    kills = disturbed(command(str(number)), trace, tracer, shortest, draw)
    steps = [line['step'] for line in log(run) if 'loss' in line]
    once = steps == list(range(1, STEPS + 1)) and log(run) == log(whole)
    equal = same(whole, run)
    right &= once and equal
    for kill in kills:
      answers = [{True: 'yes', False: 'NO'}[answer] for answer in (equal, once)]
      phases = ' and '.join(kill.phases) or 'between'
      rows.append([str(number), phases, str(kill.step), *answers])
  print(machine())
  print('shortest: ' + ', '.join(f'{name} {1e3 * shortest[name]:.0f} ms' for name in PHASES))
  print(markdown(rows))
  if not right:
    sys.exit('a run did not end as if nothing had happened')


if __name__ == '__main__':
  main()
