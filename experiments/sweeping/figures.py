"""The figures of a sweep, as SVG in the colours of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison.figures import COLOURS, SHADE, clip, panels, style
from experiments.sweeping.records import Candidate
from experiments.sweeping.space import Dimension
from jaxtune.report.plot import INK, svg


def curves(
  lines: Sequence[Mapping[str, float]], candidates: Sequence[Candidate], front: int
) -> str:
  """Left: the training loss of each run; right: its held-out loss where it was judged."""
  figure, (left, right) = panels(2)
  ends = []
  for candidate in candidates:
    best = candidate.number == front
    look: Any = {'color': COLOURS[0] if best else SHADE, 'linewidth': 2.2 if best else 0.9}
    look |= {'alpha': 1.0 if best else 0.55, 'zorder': 3 if best else 2}
    own = [x for x in lines if x['candidate'] == candidate.number and 'loss' in x]
    if own:
      loss = _smooth([x['loss'] for x in own])
      left.plot([x['step'] for x in own], loss, **look)
      ends += [*loss[len(loss) // 5 :]]
    held = {step: loss for step, loss in candidate.losses.items() if np.isfinite(loss)}
    right.plot([*held], [*held.values()], marker='o', markersize=3.5, **look)
  style(left, 'training loss, smoothed (the best in blue)', 'step', False)
  style(right, 'held-out loss at the rungs', 'step', False)
  clip(left, np.array(ends))
  return svg(figure, 'Losses of all candidates')


def surface(candidates: Sequence[Candidate], space: Sequence[Dimension], front: int) -> str:
  """The last held-out loss against each searched number, coloured by the rank where it varies."""
  ranges = [d for d in space if not d.choices] or list(space)
  rank = next((d for d in space if d.key == 'method.rank' and d not in ranges), None)
  figure, axes = panels(len(ranges))
  for panel, dimension in zip(axes, ranges, strict=True):
    groups = [None] if rank is None else sorted(rank.choices)
    for i, group in enumerate(groups):
      own = [c for c in candidates if c.losses and (rank is None or c.values[rank.key] == group)]
      own = [c for c in own if np.isfinite(list(c.losses.values())[-1])]
      steps = max((max(c.losses) for c in candidates if c.losses), default=1)
      panel.scatter(
        [c.values[dimension.key] for c in own],
        [list(c.losses.values())[-1] for c in own],
        s=[20 + 90 * max(c.losses) / steps for c in own],
        color=COLOURS[i % len(COLOURS)],
        alpha=0.8,
        label=None if group is None else f'rank {group}',
      )
    best = next(c for c in candidates if c.number == front)
    place = (best.values[dimension.key], list(best.losses.values())[-1])
    panel.plot(*place, 'o', markersize=15, markerfacecolor='none', markeredgecolor=INK)
    style(panel, f'held-out loss by {dimension.key}', dimension.key, False)
    if dimension.log:
      panel.set_xscale('log')
  if rank is not None:
    axes[0].legend(frameon=False, fontsize=9, labelcolor=INK)
  return svg(figure, 'Held-out loss against what was searched')


def _smooth(values: Sequence[float]) -> np.ndarray:
  """A running mean over a twentieth of the values."""
  width = max(1, len(values) // 20)
  sums = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(0, ends - width)
  return (sums[ends] - sums[starts]) / (ends - starts)
