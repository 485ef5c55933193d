"""Compares update rules fairly: one model, one budget, rates tuned alike, seeds paired.

  python -m experiments.compare_optimizers --config=configs/compare_optimizers.py \
    --workdir=runs/optimizers

Every rule gets the same number of learning rates; the best of them meets those of the other rules
on new seeds, and one rule is called better only where a confidence interval says so. The same
command goes on where an interrupted run stopped. Any value of the configuration can be given on
the command line, as in --config.language.steps=1000; configs/compare_optimizers.py lists them all.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import rich.console
from absl import flags
from ml_collections import config_flags

from experiments import entry, workdir
from experiments.comparison import contest, effects, memory, page, settings, summary
from experiments.comparison import folder as folders
from experiments.comparison.lanes import Segment
from experiments.comparison.language import language
from experiments.comparison.log import open_log
from experiments.comparison.tasks import Task, digits, quadratic
from experiments.keys import Config

CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration, a file in configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this run.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run and what it takes; stop.')
MAKE = {'quadratic': quadratic, 'digits': digits, 'language': language}


def main() -> int:
  return start(CONFIG.value, WORKDIR.value, dry_run=DRY_RUN.value)


def start(config: Config, folder: str | None, *, dry_run: bool = False) -> int:
  """Runs a comparison in a folder, or prints what it would do; returns the exit code."""
  settings.check(config)
  console = folders.console(100)
  if dry_run:
    summary.plan(console, config, make_tasks(config))
    return 0
  path = folders.unfinished(config, folder, console)
  if path is None:
    return 0
  with workdir.locked(path):
    tasks = make_tasks(config)
    workdir.claim(path, config)  # only now: a comparison that cannot be built leaves no trace
    return run(config, path, tasks, console)


def make_tasks(config: Config) -> dict[str, Task]:
  """The tasks that rules or effects need."""
  return {name: MAKE[name](config) for name in settings.needed(config)}


def run(
  config: Config, folder: pathlib.Path, tasks: dict[str, Task], console: rich.console.Console
) -> int:
  """Contests, then effects, then the page; returns the exit code."""
  started = time.time()
  log, limit = open_log(folder), memory.limit(config.memory_limit_gb)
  wanted = settings.chosen(config, 'effects', settings.EFFECTS)
  with progress(console) as show:
    contests = []
    for name in settings.chosen(config, 'tasks', settings.TASKS):
      contests.append(contest.hold(config, tasks[name], log, limit, show))
      summary.standings(console, contests[-1])
    robust, stalls = [], []
    if 'adagrad_norm' in wanted:
      chosen = [task for task in tasks.values() if config.adagrad_norm.eta.get(task.name)]
      robust = [effects.robustness(config, task, log, limit, show) for task in chosen]
    if 'bfloat16' in wanted:
      stalls = [effects.stall(config, tasks[config.bfloat16.task], log, limit, show)]
  flips = [effects.flips(config, c) for c in contests] if 'rank_flips' in wanted else []
  results = page.Results(contests, robust, flips, stalls, config.confidence, time.time() - started)
  page.write(folder, config, results)
  workdir.write_json(folder / workdir.RESULT, page.as_json(results))
  summary.end(console, folder, results)
  return 0


@contextlib.contextmanager
def progress(console: rich.console.Console) -> Iterator[Callable[[str, Segment], None]]:
  """Yields a function that shows which lanes are where, and ends a run that is to be interrupted.

  Raises:
    KeyboardInterrupt, SystemExit: after the segment in which Ctrl-C or SIGTERM came, when no
      program runs.
  """
  with entry.interruptible() as stop, console.status('compiling') as status:

    def show(label: str, segment: Segment) -> None:
      best = np.min(segment.loss, initial=np.inf, where=np.isfinite(segment.loss))
      status.update(f'{label}  step {segment.step}  best loss {best:.4g}')
      if stop():
        console.print('stopped; the same command goes on from there')
        raise KeyboardInterrupt if stop() == entry.INTERRUPTED else SystemExit(stop())

    yield show


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  entry.launch(main, settings.check_key)
