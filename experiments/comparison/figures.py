"""The figures of a comparison, as SVG in the colours of the page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.comparison.contest import Contest
from experiments.comparison.effects import BY_RATE, STOCHASTIC, Flips, Robustness, Stall
from experiments.comparison.verdict import settled
from jaxtune.report.plot import GRID, INK, svg

# Readable on white and on black; one a rule.
COLOURS = (
  '#3578d4', '#dd7333', '#2f9e6e', '#c0508f', '#8266d0', '#a98612', '#2a9fb4', '#d24a4a', '#7b8794',
)  # fmt: skip
SHADE = '#8a94a0'
LATER = (
  0.15  # of a run; what comes before it may leave the panel, so that the end can be told apart
)


def losses(contest: Contest, decay: int | None) -> str:
  """Left: the loss at the tuned rates; right: the final loss at every rate."""
  figure, (left, right) = panels(2)
  orders, entries = contest.task.orders, contest.entries
  colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(sorted(entries))}
  later, ends = [], []
  for i, (label, entry) in enumerate(entries.items()):
    colour, steps = colours[label], entry.compared.steps
    band(left, steps, entry.compared.loss, colour, label, orders)
    later.append(entry.compared.loss[:, steps >= LATER * steps[-1]].mean(axis=0))
    final = settled(entry.tuned.loss).reshape(len(entry.rates), -1)
    ends.append(average(final, 1, orders))
    by_rate(right, np.array(entry.rates), final, orders, colour, i)
    ring: Any = dict(marker='o', markersize=8, markerfacecolor='none', markeredgewidth=1.8)
    right.plot(entry.rates[entry.best], ends[-1][entry.best], color=colour, **ring)
  if decay is not None:
    left.axvspan(decay, steps[-1], color=SHADE, alpha=0.13, linewidth=0)
  style(left, 'loss at the tuned rate', 'step', orders)
  style(right, 'final loss by learning rate', 'learning rate', orders)
  clip(left, np.concatenate(later), later[0][0] if orders else None)
  # What a few bad rates come to must not flatten the rest.
  clip(right, np.concatenate(ends), max(entry.tuned.loss[0, 0] for entry in entries.values()))
  figure.legend(loc='outside upper left', ncols=8, frameon=False, fontsize=9, labelcolor=INK)
  return svg(figure, f'Losses of the rules on the task {contest.task.name}')


def by_rate(
  panel: Axes,
  rates: np.ndarray,
  final: np.ndarray,
  orders: bool,
  colour: str,
  row: int,
  **line: Any,
) -> None:
  """Mean final losses of `[rates, seeds]`, and crosses at the top where a run diverged."""
  fine = np.isfinite(final).all(axis=1)
  panel.plot(
    rates[fine], average(final[fine], 1, orders), color=colour, marker='o', markersize=3.5, **line
  )
  top = np.full((~fine).sum(), 0.97 - 0.04 * row)
  place: Any = panel.get_xaxis_transform()
  panel.plot(rates[~fine], top, 'x', color=colour, transform=place, markersize=5)
  panel.set_xscale('log')


def robustness(found: Sequence[Robustness]) -> str:
  """The final loss against the rate of the first step, a panel a task."""
  figure, axes = panels(len(found))
  for panel, one in zip(axes, found, strict=True):
    for i, (label, final) in enumerate(one.final.items()):
      line: Any = {'dashes': (4, 2)} if label == BY_RATE else {}
      if panel is axes[0]:
        line['label'] = label
      losses = 10**final if one.task.orders else final
      by_rate(panel, np.array(one.sizes), losses, one.task.orders, COLOURS[i], i, **line)
    below = 'first rate (of AdaGrad-Norm: η / b0)'
    style(panel, f'{one.task.name}: final loss', below, one.task.orders)
  figure.legend(loc='outside upper left', ncols=3, frameon=False, fontsize=9, labelcolor=INK)
  return svg(figure, 'Final loss of SGD and AdaGrad-Norm against the rate')


def flips(found: Sequence[Flips]) -> str:
  """The clearest pair of each task whose order the decay turns around."""
  found = [one for one in found if one.shown]
  if not found:
    return ''
  figure, axes = panels(len(found))
  for panel, one in zip(axes, found, strict=True):
    flip = one.shown[0]
    near = slice(max(1, one.at // 3), None)
    for i, label in enumerate((flip.first, flip.second)):
      loss = 10 ** one.loss[label] if one.task.orders else one.loss[label]
      band(panel, one.steps[near], loss[:, near], COLOURS[i], label, one.task.orders)
    panel.axvspan(one.steps[one.at], one.steps[-1], color=SHADE, alpha=0.13, linewidth=0)
    style(panel, f'{one.task.name}: loss', 'step', one.task.orders)
    panel.legend(frameon=False, fontsize=9, labelcolor=INK)
  return svg(figure, 'Losses of pairs of runs whose order flips in the decay')


def stall(one: Stall) -> str:
  """The loss of parameters stored in three ways."""
  figure, (panel,) = panels(1)
  for i, (label, loss) in enumerate(one.loss.items()):
    values = 10**loss if one.task.orders else loss
    # Drawn over the line of float32, which it hides otherwise.
    dashes: Any = {'dashes': (3, 3)} if label == STOCHASTIC else {}
    band(panel, one.steps, values, COLOURS[i], label, one.task.orders, **dashes)
  style(panel, f'{one.task.name}: loss', 'step', one.task.orders)
  panel.legend(frameon=False, fontsize=9, labelcolor=INK)
  return svg(figure, 'Loss with parameters in float32 and bfloat16')


def panels(count: int) -> tuple[Figure, list[Axes]]:
  figure = Figure(figsize=(10.4, 3.9), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.12))
  figure.patch.set_alpha(0)
  return figure, list(np.atleast_1d(figure.subplots(1, count)))


def band(
  panel: Axes, steps: np.ndarray, loss: np.ndarray, colour: str, label: str, orders: bool,
  **line: Any,
) -> None:  # fmt: skip
  """The mean over seeds, and all that they span; runs that diverged end where they leave."""
  shown = np.where(np.isfinite(loss), loss, np.nan)
  panel.plot(steps, average(shown, 0, orders), color=colour, linewidth=1.8, label=label, **line)
  panel.fill_between(
    steps, shown.min(axis=0), shown.max(axis=0), color=colour, alpha=0.18, linewidth=0
  )


def average(loss: np.ndarray, axis: int, orders: bool) -> np.ndarray:
  """The mean on the scale on which the task compares."""
  if not orders:
    return loss.mean(axis=axis)
  return 10 ** np.log10(np.maximum(loss, 1e-30)).mean(axis=axis)


def clip(panel: Axes, values: np.ndarray, top: float | None = None) -> None:
  """The axis of losses from the lowest value to `top`, or to the highest value."""
  finite = values[np.isfinite(values)]
  if not len(finite):
    return
  low, high = float(finite.min()), float(finite.max()) if top is None else float(top)
  if panel.get_yscale() == 'log':
    panel.set_ylim(low / 1.3, high * 1.3)
  elif high > low:
    panel.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def style(panel: Axes, title: str, below: str, orders: bool) -> None:
  if orders:
    panel.set_yscale('log')
    panel.yaxis.set_major_formatter('{x:g}')
    panel.yaxis.set_minor_formatter(lambda x, _: f'{x:g}' if f'{x:e}'[0] in '25' else '')
  panel.set_title(title, loc='left', fontsize=10, color=INK, fontweight='bold')
  panel.set_xlabel(below, fontsize=9, color=INK)
  panel.set_facecolor('none')
  panel.grid(axis='y', color=GRID, linewidth=0.8)
  panel.set_axisbelow(True)
  panel.tick_params(which='both', colors=INK, labelsize=9, length=0)
  for side, spine in panel.spines.items():
    spine.set_visible(side == 'bottom')
    spine.set_color(GRID)
