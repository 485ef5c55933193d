"""The curves of a run, as a matplotlib figure and as SVG for a page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Each colour has one meaning, so that a page can replace it by a variable of its theme.
INK, GRID, RAW, CURVE, POINT = '#57606a', '#d8dee4', '#a9c7ee', '#2463b8', '#c2571a'
_VARIABLES = {INK: 'muted', GRID: 'grid', RAW: 'raw', CURVE: 'curve', POINT: 'point'}
_MOST_POINTS = 800  # of one drawn line; a page must open fast after a million steps


def curves(metrics: Sequence[Mapping[str, Any]]) -> 'Figure':
  """Draws a run from the lines of `read_metrics`: loss, evaluation, learning rate, gradient norm.

  The training loss is drawn raw (light) and as a debiased exponential moving average over a
  twentieth of the run, with the evaluation loss as points. What was not logged is left out.
  The figure belongs to no pyplot state; a notebook shows it under `%matplotlib inline`.

  Raises:
    ValueError: there is nothing to draw.
  """
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  titles = _titles(metrics)
  if not titles:
    raise ValueError('no training or evaluation numbers to draw')
  small = [name for name in titles if name != 'loss']
  wide = ['loss'] * max(1, len(small))
  layout: list[Any] = [row for row in (wide if 'loss' in titles else [], small) if row]
  engine = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
  figure = Figure(figsize=(10.4, 5.6 if len(layout) == 2 else 3.2), layout=engine)
  figure.patch.set_alpha(0)
  figure.supxlabel('step', color=INK, fontsize=9)
  panels = figure.subplot_mosaic(layout, height_ratios=[1.7, 1][: len(layout)])
  for name, title in titles.items():
    panel = panels[name]
    steps, values = _series(metrics, name)
    _style(panel, title, max(line['step'] for line in metrics))
    if name == 'loss':
      panel.plot(*_thin(steps, values), color=RAW, linewidth=1, label='training, each step')
      smooth = _smooth(values, max(1, len(values) / 20))
      panel.plot(*_thin(steps, smooth), color=CURVE, linewidth=2, label='training, smoothed')
      _points(panel, *_series(metrics, 'eval/loss'), label='evaluation')
      # Above the panel, where it hides no data.
      place: Any = dict(loc='lower right', bbox_to_anchor=(1, 1), borderaxespad=0)
      panel.legend(**place, frameon=False, labelcolor=INK, fontsize=9, ncols=3)
    elif name.startswith('eval/'):
      _points(panel, steps, values)
    else:
      panel.plot(*_thin(steps, values), color=CURVE, linewidth=1.5)
  return figure


def curves_svg(metrics: Sequence[Mapping[str, Any]]) -> str:
  """`curves` as an `<svg>` element whose colours are the CSS variables of `page.html`.

  Empty where there is nothing to draw.
  """
  if not _titles(metrics):
    return ''
  return svg(curves(metrics), 'Curves of the run')


def svg(figure: 'Figure', label: str) -> str:
  """The figure as an `<svg>` element whose colours are the CSS variables of a page."""
  buffer = io.StringIO()
  nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r' (width|height)="[\d.]+pt"| xmlns(:xlink)?="[^"]*"', '', text, count=4)
  for colour, variable in _VARIABLES.items():
    text = text.replace(colour, f'var(--{variable})')
  return text.replace('<svg', f'<svg role="img" aria-label="{label}"', 1)


def _titles(metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Name -> title of each panel that has numbers; of many evaluation scores, the first."""
  names = dict.fromkeys(name for line in metrics for name in line)
  scores = [name for name in names if name.startswith('eval/') and name != 'eval/loss'][:1]
  titles = {'loss': 'loss'}
  titles |= {name: name.replace('eval/', 'evaluation ').replace('_', ' ') for name in scores}
  titles |= {'learning_rate': 'learning rate', 'grad_norm': 'gradient norm'}
  logged = [name for name in names if len(_series(metrics, name)[0])]
  if 'eval/loss' in logged:
    logged.append('loss')
  return {name: title for name, title in titles.items() if name in logged}


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
  pairs = [(line['step'], line[name]) for line in metrics if line.get(name) is not None]
  pairs = [pair for pair in pairs if math.isfinite(pair[1])]
  steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
  return steps, values


def _smooth(values: np.ndarray, span: float) -> np.ndarray:
  """m_t = d m_{t-1} + (1-d) v_t, shown as m_t / (1 - d^t), with d = 1 - 1/span."""
  decay = 1 - 1 / span
  mean = weight = 0.0
  smooth = np.empty_like(values)
  for i, value in enumerate(values):
    mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
    smooth[i] = mean / weight
  return smooth


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Means over equal bins where there are more points than a screen can show."""
  if len(steps) <= _MOST_POINTS:
    return steps, values
  starts = np.linspace(0, len(steps), _MOST_POINTS, endpoint=False).astype(int)
  counts = np.diff(starts, append=len(steps))
  return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _points(panel: 'Axes', steps: np.ndarray, values: np.ndarray, label: str = '') -> None:
  if len(steps):
    line: Any = dict(color=POINT, linewidth=1.2, marker='o', markersize=5, markeredgewidth=0)
    # Numbers of the first and the last step lie on the edge of the panel: do not cut the dot.
    panel.plot(steps, values, label=label, clip_on=False, zorder=3, **line)


def _style(panel: 'Axes', title: str, last: float) -> None:
  panel.set_title(title, loc='left', fontsize=10, color=INK, fontweight='bold')
  panel.set_facecolor('none')
  panel.set_xlim(0, max(last, 1))
  panel.grid(axis='y', color=GRID, linewidth=0.8)
  panel.set_axisbelow(True)
  panel.tick_params(colors=INK, labelsize=9, length=0)
  panel.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
  panel.locator_params(axis='y', nbins=5)
  for side, spine in panel.spines.items():
    spine.set_visible(side == 'bottom')
    spine.set_color(GRID)
