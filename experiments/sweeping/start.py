"""What experiments/sweep.py does with its flags."""

import pathlib
import time
from collections.abc import Callable, Sequence

from experiments import entry, workdir
from experiments.keys import Config
from experiments.sweeping import page, records, refill, runs, search, settings, study, words
from experiments.sweeping.show import Table
from experiments.sweeping.space import Dimension
from jaxtune.typing import InputError


def start(
  config: Config,
  folder: str | None,
  *,
  dry_run: bool = False,
  prepare: Callable[[Config, Sequence[Dimension]], runs.Runs] = runs.prepare,
) -> int:
  """Runs a sweep in a folder, or prints what it would do; returns the exit code.

  `prepare` loads what all runs share.
  """
  space = settings.check(config)
  if dry_run:
    prepared = prepare(config, space)
    print(words.plan(config, space, prepared))
    return 0
  if not folder:
    raise InputError('--workdir is missing: the folder of this sweep')
  path = pathlib.Path(folder)
  workdir.check(path, config)
  done = workdir.result(path)
  if done:
    print(f'{path} holds this sweep, finished; nothing to do')
    words.end(path, done['headline'])
    return 0
  with workdir.locked(path):
    prepared = prepare(config, space)
    rungs = settings.rungs(config, prepared.job.steps)
    prepared.check_memory()
    with study.opened(config, path) as trials:
      workdir.claim(path, config)  # only now: a sweep that cannot be built leaves no trace
      record = records.read(path)
      return run(search.Sweep(config, space, prepared, rungs, path, trials, record))


def run(it: search.Sweep) -> int:
  """Goes on from wherever the record says that it is; returns the exit code."""
  started = time.time()
  records.cut_curves(it.folder, it.record)
  print(words.plan(it.config, it.space, it.runs), flush=True)
  if it.record.candidates:
    print(f'going on with {len(it.record.candidates)} candidates')
  with entry.interruptible() as stop, Table(it) as table:
    ended = refill.refill(it, table, stop) and search.search(it, table, stop)
  it.record.seconds += time.time() - started
  records.write(it.folder, it.record)
  if not ended:
    print('stopped; the same command goes on from there')
    return stop()
  words.end(it.folder, page.finish_sweep(it))
  return 0
