"""A script as its command line runs it, with a stopwatch around its phases.

  python benchmarks/sides/timed.py 0 experiments.finetune --config=... --workdir=...

The first argument is time.time() before this process; `seconds` of each phase are the last line.
"""

import time

BEGAN = time.time()  # before anything is imported

import collections  # noqa: E402
import functools  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import runpy  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

seconds: dict[str, float] = collections.defaultdict(float)
running: list[str] = ['other']
since = BEGAN


def turn() -> None:
  """What has passed belongs to the innermost phase."""
  global since
  now = time.time()
  seconds[running[-1]] += now - since
  since = now


def watch(owner: Any, name: str, phase: str) -> None:
  """Counts calls of a function as a phase, without the phases that it calls."""
  function = getattr(owner, name)

  @functools.wraps(function)
  def timed(*args: Any, **options: Any) -> Any:
    turn()
    running.append(phase)
    try:
      return function(*args, **options)
    finally:
      turn()
      running.pop()

  setattr(owner, name, timed)


def main() -> None:
  called, script, *flags = sys.argv[1:]
  from experiments import build, inputs

  if script == 'experiments.sweep':
    import experiments.sweeping.start  # noqa: F401  # what it imports is of its start
    from experiments.sweeping.runs import Runs

    watch(Runs, 'program', 'compile')
    watch(Runs, 'start', 'begin runs')
    watch(Runs, 'advance', 'train')
    watch(Runs, 'measure', 'evaluate')
  else:
    from experiments import run

    watch(run, 'prepare', 'compile')
    watch(run.train, 'fit', 'train')
    watch(inputs, 'measure', 'evaluate')
  watch(build, 'load', 'load')
  watch(inputs, 'features', 'features')
  turn()
  seconds['start'] = seconds.pop('other') + BEGAN - float(called)
  sys.argv = [script, *flags]
  code: Any = 0
  try:
    runpy.run_module(script, run_name='__main__')
  except SystemExit as ended:
    code = ended.code
  turn()
  versions = {'python': sys.version.split()[0]}
  versions |= {name: importlib.metadata.version(name) for name in ('jax', 'optuna')}
  print(json.dumps({'seconds': seconds, 'versions': versions}))
  sys.exit(code)


if __name__ == '__main__':
  main()
