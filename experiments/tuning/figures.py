"""The figures of a loop, as SVG in the colours of the page."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.comparison.figures import COLOURS, SHADE, panels, style
from experiments.sweeping import words
from experiments.tuning import moves
from experiments.tuning.dimensions import TUNABLE
from experiments.tuning.moves import Measured, Round
from jaxtune.report.plot import INK, svg

ROW = 3  # panels side by side


def progress(done: Sequence[Round]) -> str:
  """The held-out loss of the setting after each round, and of what was tried and not taken."""
  figure, (panel,) = panels(1)
  labels = ['start', *(f'{n + 1}: {TUNABLE[one.plan.key].name}' for n, one in enumerate(done))]
  held = [done[0].before, *(one.after if one.pays else one.before for one in done)]
  bars(panel, range(len(held)), held, COLOURS[0], 'the setting from here on', '-o')
  missed = [(n, one.after) for n, one in enumerate(done, 1) if one.value != one.best]
  places = [n + 0.08 for n, _ in missed]
  bars(panel, places, [one for _, one in missed], SHADE, 'the best value, not taken', 'o')
  style(panel, 'held-out loss, mean and standard deviation over seeds', '', False)
  panel.set_xticks(range(len(labels)), labels)
  panel.set_xlim(-0.4, len(labels) - 0.6)
  panel.legend(frameon=False, fontsize=9, labelcolor=INK)
  return svg(figure, 'Held-out loss after each round')


def bars(
  panel: Any, places: Sequence[float], found: Sequence[Measured], colour: str, label: str, form: str
) -> None:
  points = [
    (x, moves.mean(one.losses), moves.spread(one.losses))
    for x, one in zip(places, found, strict=True)
  ]
  points = [point for point in points if math.isfinite(point[1])]  # those that died are not drawn
  if not points:
    return
  look: Any = {'capsize': 4, 'linewidth': 1.6, 'markersize': 6}
  panel.errorbar(*zip(*points, strict=True), color=colour, label=label, fmt=form, **look)


def responses(done: Sequence[Round]) -> list[str]:
  """The held-out loss against the values of each round, `ROW` panels a figure."""
  made = []
  for first in range(0, len(done), ROW):
    row = done[first : first + ROW]
    figure, axes = panels(min(ROW, max(2, len(done))))
    for panel in axes[len(row) :]:
      panel.set_visible(False)
    for place, (panel, one) in enumerate(zip(axes, row, strict=False)):
      response(panel, one, first + place + 1)
    made.append(svg(figure, 'Held-out loss by value'))
  return made


def response(panel: Any, one: Round, number: int) -> None:
  """A curve of the first seed; the present and the best value with their spread over seeds."""
  tunable = TUNABLE[one.plan.key]
  places = dict(zip(one.plan.values, range(len(one.plan.values)), strict=True))  # as far apart
  found = {x: one.response.get(x, math.nan) for x in one.plan.values}
  alive = [x for x in found if math.isfinite(found[x])]
  line: Any = {'color': SHADE, 'linewidth': 1.4, 'marker': 'o', 'markersize': 4}
  panel.plot([places[x] for x in alive], [found[x] for x in alive], **line)
  bars(panel, [places[one.present]], [one.before], INK, 'before', 'o')
  if one.best != one.present:
    colour = COLOURS[0] if one.pays else COLOURS[1]
    bars(panel, [places[one.best]], [one.after], colour, 'taken' if one.pays else 'not taken', 'o')
  dead = [places[x] for x in found if x not in alive]
  panel.plot(dead, [0.97] * len(dead), 'x', color=COLOURS[7], transform=panel.get_xaxis_transform())
  style(panel, f'{number}: {tunable.name}', one.plan.key, False)
  panel.set_xticks([*places.values()], [words.short(x) for x in places])
  panel.legend(frameon=False, fontsize=9, labelcolor=INK)
