"""How parameters lie on the devices, as a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtune.report.plot import CURVE, GRID, INK, POINT, svg

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_MOST_BARS = 24


def draw_placement(rows: Sequence[Any]) -> 'Figure':
  """A bar for each of the largest parameters: light what the whole array has, full what one device
  holds of it, with the mesh axes that cut it beside.

  Args:
    rows: of `shard.placement`; fields of one weight (`attn/q/a`, `attn/q/b`) stay apart.
  """
  from matplotlib.figure import Figure

  shown = sorted(rows, key=lambda row: -row.bytes)[:_MOST_BARS]
  rest = sorted(rows, key=lambda row: -row.bytes)[_MOST_BARS:]
  figure = Figure(figsize=(10.4, 1.2 + 0.26 * (len(shown) + bool(rest))), layout='constrained')
  figure.patch.set_alpha(0)
  panel = figure.subplots()
  panel.patch.set_alpha(0)
  bars = [(row.path, row.cut or 'replicated', row.bytes, row.device_bytes) for row in shown]
  if rest:
    sums = sum(row.bytes for row in rest), sum(row.device_bytes for row in rest)
    bars.append((f'{len(rest)} smaller ones', '', *sums))
  for place, (_, cut, whole, own) in enumerate(bars):
    panel.barh(place, whole / 2**20, color=GRID)
    panel.barh(place, own / 2**20, color=CURVE if own < whole else POINT)
    panel.text(whole / 2**20, place, f'  {cut}', va='center', color=INK, fontsize=8)
  panel.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8, color=INK)
  panel.invert_yaxis()
  panel.margins(x=0.2)
  panel.set_xlabel('MiB of the whole array, and what one device holds', color=INK, fontsize=9)
  panel.tick_params(colors=INK, length=0)
  panel.spines[:].set_visible(False)
  return figure


def placement_svg(rows: Sequence[Any]) -> str:
  """`draw_placement` as an `<svg>` element; empty where nothing is cut."""
  if not any(row.cut for row in rows):
    return ''
  return svg(draw_placement(rows), 'Parameters on the devices')
