"""The page of an inspection: one HTML file that needs nothing but itself."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import markupsafe
import numpy as np

from experiments import page as frame
from experiments.inspection import terminal
from experiments.inspection.records import Token
from experiments.inspection.sizes import AtLength, Sizes, histogram
from jaxtune.report.plot import CURVE, GRID, INK, POINT, svg


class Record(NamedTuple):
  """A record as it is shown, its parts by name."""

  title: str
  parts: list[tuple[str, list[Token]]]


class Page(NamedTuple):
  """All that an inspection shows."""

  title: str
  headline: str
  facts: Mapping[str, str]
  warnings: Sequence[str]
  records: Sequence[Record]
  rows: Sequence[Sequence[Token]]
  rows_said: str
  sizes: Sizes
  at: Sequence[AtLength]
  max_length: int | None


def write(path: pathlib.Path, page: Page) -> None:
  """Writes the page, whole or not at all."""
  total = len(page.sizes.lengths)
  frame.write(
    path,
    pathlib.Path(__file__).with_name('page.html'),
    title=page.title,
    headlines=[page.headline],
    facts=page.facts,
    warnings=page.warnings,
    legend=terminal.MEANING,
    records=[
      {'title': r.title, 'parts': [(name, _lines(line)) for name, line in r.parts]}
      for r in page.records
    ],
    rows=[_lines(row) for row in page.rows],
    rows_said=page.rows_said,
    figure=markupsafe.Markup(figure(page.sizes, page.max_length)),
    columns=terminal.columns(page.at),
    lengths=[(terminal.cells(one, total), one.length == page.max_length) for one in page.at],
  )


def _lines(tokens: Sequence[Token]) -> list[tuple[str, list[str]]]:
  """Tokens with their text cut at line breaks, which are shown."""
  return [(kind, text.split('\n')) for kind, text in terminal.shortened(tokens)]


def figure(sizes: Sizes, max_length: int | None) -> str:
  """How many texts have how many tokens, and how many of these are learned."""
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  plot = Figure(figsize=(10.4, 3.2), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
  plot.patch.set_alpha(0)
  panels: Any = plot.subplots(1, 2)
  shares = sizes.learned / np.maximum(1, sizes.lengths)
  counts, edges = histogram(sizes.lengths, 40)
  _bars(panels[0], counts, edges, 'tokens')
  if edges[1] - edges[0] < 0.99 * (edges[-1] - edges[-2]):
    panels[0].set_xscale('log')
  if max_length:
    panels[0].axvline(max_length, color=POINT, linewidth=1.4)
  counts, edges = np.histogram(100 * shares, np.linspace(0, 100, 41))
  _bars(panels[1], counts, edges, '% learned')
  return svg(plot, 'Histograms of lengths and of the share that is learned')


def _bars(panel: Any, counts: np.ndarray, edges: np.ndarray, name: str) -> None:
  panel.stairs(counts, edges, fill=True, color=CURVE)
  panel.set_xlabel(name, color=INK, fontsize=9)
  panel.set_facecolor('none')
  panel.grid(axis='y', color=GRID, linewidth=0.8)
  panel.set_axisbelow(True)
  panel.tick_params(colors=INK, labelsize=9, length=0)
  for side, spine in panel.spines.items():
    spine.set_visible(side == 'bottom')
    spine.set_color(GRID)
