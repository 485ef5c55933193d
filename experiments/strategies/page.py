"""The page of a comparison of strategies: one HTML file that needs nothing but itself."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import markupsafe
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from configs import compare_methods
from experiments import page
from experiments.comparison.figures import COLOURS
from experiments.keys import Config
from experiments.strategies import words
from experiments.strategies.contest import Entry
from experiments.strategies.verdict import Difference, accuracy
from jaxtune.report.plot import GRID, INK, svg


class Results(NamedTuple):
  """All that a comparison found; `skipped` says of a strategy why the model cannot take it."""

  entries: Mapping[str, Entry]
  skipped: Mapping[str, str]
  differences: list[Difference]
  ties: list[Difference]
  rows: int
  about: list[str]


def write(folder: pathlib.Path, config: Config, results: Results) -> None:
  """Writes `report.html`."""
  c = config.compare
  page.write(
    folder / 'report.html',
    pathlib.Path(__file__).with_name('page.html'),
    title=folder.name,
    headlines=[
      words.headline(results.entries, results.skipped),
      words.tie(results.ties, c.margin, c.reference),
    ],
    facts={
      'model': pathlib.PurePath(config.model).name,
      'test rows': f'{results.rows:,}, the same for all',
      'budget': f'{config.train.steps} steps of {config.train.batch_size} rows',
      'seeds': f'{c.tuning_seeds} to tune, {c.seeds} others to compare',
    },
    columns=words.COLUMNS,
    rows=words.rows(results.entries, c.confidence),
    figure=markupsafe.Markup(figure(results.entries, c.confidence)),
    rates=markupsafe.Markup(rates(results.entries)),
    differences=[words.by(d) for d in results.differences],
    ties=[words.by(d) for d in results.ties],
    skipped=results.skipped,
    about=results.about,
    config=page.marked(config, compare_methods.get_config()),
  )


def figure(entries: Mapping[str, Entry], confidence: float) -> str:
  """Accuracy against trained parameters; what trains nothing as lines across."""
  plot, panel = _panel(4.2)
  for i, (label, entry) in enumerate(entries.items()):
    colour = COLOURS[i % len(COLOURS)]
    found = accuracy(entry.correct, confidence)
    if entry.cost is None:
      panel.axhline(found.value, color=colour, dashes=(4, 2), linewidth=1.2, label=label)
      continue
    error = [[found.value - found.low], [found.high - found.value]]
    panel.errorbar(
      entry.cost.trained, found.value, error, color=colour, marker='o', capsize=3, label=label
    )
  panel.set_xscale('log')
  panel.set_xlabel('trained parameters', color=INK)
  panel.set_ylabel('accuracy', color=INK)
  plot.legend(loc='outside upper left', ncols=7, frameon=False, fontsize=9, labelcolor=INK)
  return svg(plot, 'Accuracy against trained parameters')


def rates(entries: Mapping[str, Entry]) -> str:
  """The validation loss at each learning rate."""
  plot, panel = _panel(3.2)
  for i, entry in enumerate(entries.values()):
    if len(entry.tuning) > 1:
      tried = sorted(entry.tuning)
      loss = [entry.tuning[rate] if np.isfinite(entry.tuning[rate]) else np.nan for rate in tried]
      panel.plot(tried, loss, color=COLOURS[i % len(COLOURS)], marker='o', markersize=3.5)
  panel.set_xscale('log')
  panel.set_xlabel('learning rate', color=INK)
  panel.set_ylabel('validation loss', color=INK)
  return svg(plot, 'Validation loss by learning rate')


def _panel(height: float) -> tuple[Figure, Any]:
  plot = Figure(figsize=(10.5, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
  panel = plot.add_subplot()
  panel.grid(color=GRID, linewidth=0.7)
  panel.tick_params(colors=INK, labelsize=9)
  for spine in panel.spines.values():
    spine.set_color(GRID)
  return plot, panel


def as_json(config: Config, results: Results) -> dict[str, Any]:
  """The results as plain numbers."""
  c = config.compare
  found = {}
  for label, entry in words.ranked(results.entries).items():
    found[label] = {
      'accuracy': accuracy(entry.correct, c.confidence)._asdict(),
      'by_seed': entry.correct.mean(axis=1).tolist(),
      'learning_rate': entry.rate,
      'seconds': entry.seconds,
      **(entry.cost._asdict() if entry.cost else {}),
    }
  headline = words.headline(results.entries, results.skipped)
  return {
    'headline': f'{headline} {words.tie(results.ties, c.margin, c.reference)}',
    'step': config.train.steps,
    'strategies': found,
    'differences': [_plain(d) for d in results.differences],
    'ties': [_plain(d) for d in results.ties],
    'skipped': dict(results.skipped),
  }


def _plain(d: Difference) -> dict[str, Any]:
  return {'first': d.first, 'second': d.second, **d.interval._asdict()}
