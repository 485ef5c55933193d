"""What a comparison prints: the plan of a dry run, the standings, the last lines."""

import pathlib
from collections.abc import Mapping

import rich.console
import rich.table

from experiments.comparison import memory, settings, words
from experiments.comparison.contest import Contest, comparison_seeds, tuning_seeds
from experiments.comparison.lanes import compile_lanes
from experiments.comparison.page import Results
from experiments.comparison.tasks import Task
from experiments.keys import Config


def standings(console: rich.console.Console, contest: Contest) -> None:
  """The table of a task, the best rule first."""
  table = rich.table.Table(title=contest.task.name, title_justify='left', title_style='bold')
  for name, justify in zip(words.COLUMNS, words.JUSTIFY, strict=True):
    table.add_column(name, justify=justify)
  for row in words.rows(contest):
    table.add_row(*row)
  console.print(table)
  if note := words.edges(contest):
    console.print(note, soft_wrap=True)


def plan(console: rich.console.Console, config: Config, tasks: Mapping[str, Task]) -> None:
  """What would run: lanes, steps and the memory of a lane of the first rule on each task."""
  for name in settings.chosen(config, 'tasks', settings.TASKS):
    task, c = tasks[name], config[name]
    rules = settings.rules(config, [name])
    lanes = c.rates * len(tuning_seeds(config, name)) + len(comparison_seeds(config, name))
    console.print(f'[bold]{name}[/bold]  {task.about}', soft_wrap=True)
    for rule in rules:
      rates = ', '.join(map(settings.short, settings.rates(config, name, rule)))
      console.print(f'  {rule.label}: learning rates {rates}', soft_wrap=True)
    transformation = settings.make(config, name, rules[0])
    one = compile_lanes(
      task, transformation, ['learning_rate'], 1, seed=config.seed, limit=float('inf')
    )
    console.print(
      f'  {len(rules)} rules x {lanes} lanes of {c.steps} steps; a lane of {rules[0].label} takes '
      f'{one.bytes / 1e6:.1f} MB of {memory.limit(config.memory_limit_gb) / 1e6:,.0f} MB',
      soft_wrap=True,
    )
  effects = settings.chosen(config, 'effects', settings.EFFECTS)
  console.print(f'effects: {", ".join(effects) or "none"}', soft_wrap=True)


def end(console: rich.console.Console, folder: pathlib.Path, results: Results) -> None:
  """What was seen, and where the page is."""
  for sentence in results.sentences():
    console.print(f'\n{sentence}', soft_wrap=True)
  console.print(f'\nreport   {folder / "report.html"}', soft_wrap=True)
