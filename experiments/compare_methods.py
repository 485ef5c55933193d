"""Compares fine-tuning strategies on one real job: the same rows, budget and seeds for all.

  python -m experiments.compare_methods --config=configs/compare_methods.py --workdir=runs/methods

From zero-shot to full fine-tuning, each with learning rates of its own, tuned on validation rows;
accuracy against trained parameters, time and memory, with intervals. The same command goes on
where an interrupted one stopped. Any value of the configuration can be given on the command line,
as in --config.train.steps=200; configs/compare_methods.py and configs/base.py list them all.
"""

import pathlib

import rich.console
import rich.table
from absl import flags
from ml_collections import config_flags

from experiments import dataset, entry, sources, workdir
from experiments.comparison import folder as folders
from experiments.comparison.log import open_log
from experiments.keys import Config
from experiments.strategies import contest, page, settings, verdict, words
from experiments.tuned import Tuned
from jaxtune import interop
from jaxtune.typing import InputError

CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration, a file in configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this comparison.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run; stop.')


def main() -> int:
  return start(CONFIG.value, WORKDIR.value, dry_run=DRY_RUN.value)


def start(config: Config, folder: str | None, *, dry_run: bool = False) -> int:
  """Runs a comparison in a folder, or prints what it would do; returns the exit code."""
  settings.check(config)
  console = folders.console(110)
  if dry_run:
    plan(console, config)
    return 0
  path = folders.unfinished(config, folder, console)
  if path is None:
    return 0
  with workdir.locked(path):
    run, corpus = prepared(config)
    workdir.claim(path, config)  # only now: a comparison that cannot be built leaves no trace
    return compare(config, path, run, corpus, console)


def plan(console: rich.console.Console, config: Config) -> None:
  """What would run."""
  c = config.compare
  for strategy in settings.strategies(config):
    if not strategy.method:
      console.print(f'{strategy.label}: no training')
      continue
    rates = ', '.join(f'{rate:g}' for rate in strategy.rates)
    runs = len(strategy.rates) * c.tuning_seeds + c.seeds
    console.print(
      f'{strategy.label}: {runs} runs of {config.train.steps} steps, learning rates {rates}'
    )


def prepared(config: Config) -> tuple[Tuned, dataset.Corpus]:
  """The model as it is, and the rows of the job."""
  one = settings.base(config)
  source = sources.resolve(config.model)
  # Weights that train are float32: a small update to a bfloat16 weight rounds to none.
  model, params = interop.load(source, dtype='float32')
  tok = interop.tokenizer(source)
  corpus = dataset.encode(one, tok, model, sources.read(one))
  if corpus.stream is not None:
    raise InputError('data.also or data.stream is set; a comparison learns from one file in memory')
  run = Tuned(one, model, params, tok, corpus.names, source)
  return run, corpus


def compare(
  config: Config,
  folder: pathlib.Path,
  run: Tuned,
  corpus: dataset.Corpus,
  console: rich.console.Console,
) -> int:
  """All strategies, then the page; returns the exit code."""
  log = open_log(folder)
  entries: dict[str, contest.Entry] = {}
  skipped: dict[str, str] = {}
  with entry.interruptible() as stop, console.status('starting') as status:
    for strategy in settings.strategies(config):
      try:
        found = contest.enter(config, strategy, run, corpus, log, status.update, stop)
      except KeyboardInterrupt:
        console.print('stopped; the same command goes on from there')
        return stop() or entry.INTERRUPTED
      if isinstance(found, str):
        skipped[strategy.label] = found
        console.print(f'{strategy.label}: {found}', soft_wrap=True)
        continue
      entries[strategy.label] = found
      console.print(f'{strategy.label}: accuracy {found.correct.mean():.3f}', soft_wrap=True)
  results = judged(config, entries, skipped, corpus)
  page.write(folder, config, results)
  workdir.write_json(folder / workdir.RESULT, page.as_json(config, results))
  table = rich.table.Table()
  for name in words.COLUMNS:
    table.add_column(name, justify='left' if name == 'strategy' else 'right')
  for row in words.rows(entries, config.compare.confidence):
    table.add_row(*row)
  console.print(table)
  console.print(page.as_json(config, results)['headline'], soft_wrap=True)
  console.print(f'\nreport   {folder / "report.html"}', soft_wrap=True)
  return 0


def judged(
  config: Config,
  entries: dict[str, contest.Entry],
  skipped: dict[str, str],
  corpus: dataset.Corpus,
) -> page.Results:
  """The differences between strategies."""
  c = config.compare
  if c.reference not in entries:
    raise InputError(
      f'compare.reference {c.reference!r} cannot be used: {skipped[c.reference]}; choose another'
    )
  correct = {label: one.correct for label, one in entries.items()}
  variants = [name.strip() for name in c.variants.split(',')]
  # All against the reference, and the variants of LoRA among them once more with the margin.
  every = verdict.ties(correct, list(correct), c.reference, c.confidence)
  tied = verdict.ties(correct, variants, c.reference, c.confidence)
  return page.Results(
    entries=entries,
    skipped=skipped,
    differences=every,
    ties=tied if c.reference in variants else [],
    rows=len(corpus.test.examples),
    about=corpus.remarks(),
  )


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  entry.launch(main, settings.check_key)
