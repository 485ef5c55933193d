"""The lanes of a sweep on the terminal."""

import time
from typing import Any

import numpy as np
import rich.console
import rich.live
import rich.table

from experiments.comparison.folder import console
from experiments.sweeping import words
from experiments.sweeping.search import Sweep, Wave

PAUSE = 0.5  # seconds between pictures


class Table:
  """A live table of lanes; where there is no terminal, a line for every wave."""

  def __init__(self, it: Sweep):
    self._it = it
    self._console = console(100)
    self._live = rich.live.Live(console=self._console, auto_refresh=False, transient=True)
    self._wave: Wave | None = None
    self._shown = 0.0

  def __enter__(self) -> 'Table':
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._live.stop()

  def begins(self, wave: Wave) -> None:
    self._wave = wave

  def step(self, step: int, losses: np.ndarray) -> None:
    if self._console.is_terminal and time.monotonic() - self._shown > PAUSE and self._wave:
      self._shown = time.monotonic()
      self._live.update(self._picture(self._wave, step, losses), refresh=True)

  def judged(self, wave: Wave) -> None:
    lines = [words.judged(self._it, wave)]
    self._console.print(*lines, sep='\n', soft_wrap=True)

  def _picture(self, wave: Wave, step: int, losses: np.ndarray) -> rich.table.Table:
    made = rich.table.Table(title=f'step {step} of {wave.end}', box=None)
    for name in ('lane', 'candidate', 'values', 'loss', 'held out'):
      made.add_column(name)
    for lane, (candidate, loss) in enumerate(zip(wave.members, losses, strict=True)):
      before = list(candidate.losses.values())
      made.add_row(
        str(lane),
        str(candidate.number),
        words.values(candidate.values),
        f'{loss:.4f}',
        f'{before[-1]:.4f}' if before else '',
      )
    return made
