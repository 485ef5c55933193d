"""What a run shows while it runs: a bar on a terminal, a few plain lines in a log file."""

import math
import time
from collections.abc import Mapping

import rich.console
import rich.progress

_PLAIN_LINES = 20
_MEMORY = 0.9  # of the smoothed loss, a step


class Progress:
  """Shows steps and evaluations; a context manager.

  It takes plain numbers and never touches a device: when to fetch them is the loop's choice.
  """

  def __init__(self, total: int, *, start: int = 0, console: rich.console.Console | None = None):
    """`total` and `start` are steps; a resumed run starts at the step of its checkpoint."""
    self._total = total
    self._console = console or rich.console.Console(highlight=False)
    self._interval, self._next = math.ceil((total - start) / _PLAIN_LINES), start
    self._loss = self._weight = 0.0
    self._first: tuple[int, float] | None = None
    self._bar: rich.progress.Progress | None = None
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('step {task.completed}/{task.total}'),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn('{task.description}'),
        rich.progress.TimeRemainingColumn(compact=True),
        console=self._console,
        expand=True,
      )
      self._task = self._bar.add_task('compiling', total=total, completed=start)

  def __enter__(self) -> 'Progress':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *error: object) -> None:
    if self._bar:
      self._bar.stop()

  def step(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows a finished step: its loss (smoothed), learning rate, tokens/s and the time left."""
    now = time.monotonic()
    self._first = self._first or (step, now)  # the first step compiles, so it is no measure
    text = self._describe(metrics)
    if self._bar:
      self._bar.update(self._task, completed=step, description=text)
    elif step == self._total or step >= self._next:
      self._next = step + self._interval
      first_step, first_time = self._first
      if first_step < step < self._total:
        seconds = (now - first_time) / (step - first_step) * (self._total - step)
        text += f'  {_clock(seconds)} left'
      self.say(f'step {step}/{self._total}  {text}')

  def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
    """Prints the numbers of an evaluation, above the bar if there is one."""
    numbers = '  '.join(f'{name.replace("/", " ")} {value:.4g}' for name, value in metrics.items())
    self.say(f'step {step}/{self._total}  {numbers}')

  def _describe(self, metrics: Mapping[str, float]) -> str:
    parts = []
    loss = metrics.get('loss')
    if loss is not None:
      if math.isfinite(loss):
        self._loss = _MEMORY * self._loss + (1 - _MEMORY) * loss
        self._weight = _MEMORY * self._weight + (1 - _MEMORY)
        loss = self._loss / self._weight
      parts.append(f'loss {loss:.4f}')
    if (rate := metrics.get('learning_rate')) is not None:
      parts.append(f'lr {rate:.2e}')
    if (speed := metrics.get('tokens_per_second')) is not None:
      parts.append(f'{speed:,.0f} tokens/s')
    return '  '.join(parts)

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    # soft_wrap: a log file has no width at which to break lines.
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
