"""The metrics log of a run: one JSON object a line; TensorBoard and Weights & Biases if wanted.

A training line has `step, loss, learning_rate, grad_norm, tokens_per_second, ...`, an evaluation
line `step, eval/loss, eval/accuracy, ...`, the final test line `step, test/...`.
"""

import importlib.util
import json
import math
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from jaxtune.report.files import replace_file
from jaxtune.typing import InputError

FILE_NAME = 'metrics.jsonl'


class MetricsLog:
  """Appends to `workdir/metrics.jsonl`; made by `open_metrics`, closed by `with` or `close`.

  Without a path it writes nowhere.
  """

  def __init__(self, path: pathlib.Path | None, *, events: Any = None, board: Any = None):
    # A line is flushed as it ends.
    self._file = open(path, 'a', encoding='utf-8', buffering=1) if path else None
    self._path = path
    self._events = events  # a tensorboardX.SummaryWriter
    self._board = board  # a wandb run

  def cut(self, step: int) -> None:
    """Forgets the lines of later steps, which come again; Weights & Biases cannot."""
    if self._file is None or self._path is None:
      return
    self._file.close()
    truncate_after(self._path, step)
    self._file = open(self._path, 'a', encoding='utf-8', buffering=1)
    if self._events:
      self._events.close()
      self._events = _events(self._path.parent, step)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends `{"step": step, **values}`; NaN and infinities, which JSON lacks, become null."""
    if self._file is None:
      return
    line: dict[str, Any] = {'step': int(step)}
    line |= {name: _number(value) for name, value in values.items()}
    try:
      self._file.write(json.dumps(line, allow_nan=False) + '\n')
    except OSError as error:  # a full disk is reported without a name
      raise OSError(error.errno, error.strerror, self._file.name) from None
    if self._events:
      for name, value in line.items():
        if name != 'step' and value is not None:
          self._events.add_scalar(name, value, line['step'])
    if self._board:
      self._board.log(dict(values), step=line['step'])

  def close(self) -> None:
    if self._file:
      self._file.close()
    if self._events:
      self._events.close()
    if self._board:
      self._board.finish()

  def __enter__(self) -> 'MetricsLog':
    return self

  def __exit__(self, kind: object, *error: object) -> None:
    try:
      self.close()
    except OSError:
      if kind is None:  # else the fault that came first says more
        raise


def open_metrics(
  workdir: str | os.PathLike[str],
  *,
  resume_step: int | None = None,
  tensorboard: bool | None = None,
  wandb: str | None = None,
) -> MetricsLog:
  """Opens the log of a run, cut back to the step at which the run resumes.

  Args:
    workdir: an existing folder; the log is `metrics.jsonl` in it, the events are in `tensorboard/`.
    resume_step: lines of later steps are dropped, so that a resumed run holds each step once. None
      starts the log anew.
    tensorboard: write TensorBoard events; None does so where tensorboardX is installed.
    wandb: a Weights & Biases project to log to as well, under the name of the workdir.

  Raises:
    InputError: tensorboardX or wandb is asked for but not installed, or the log is damaged in its
      middle.
    OSError: the log cannot be written.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  installed = importlib.util.find_spec('tensorboardX') is not None
  if tensorboard and not installed:
    raise InputError('TensorBoard events need tensorboardX: pip install "jaxtune[tensorboard]"')
  if wandb and importlib.util.find_spec('wandb') is None:
    raise InputError('logging to Weights & Biases needs wandb: pip install "jaxtune[wandb]"')
  if resume_step is None:
    replace_file(path, b'')
  elif path.exists():
    truncate_after(path, resume_step)
  return MetricsLog(
    path,
    events=_events(path.parent, resume_step) if installed and tensorboard is not False else None,
    board=_board(wandb, path.parent) if wandb else None,
  )


def _events(workdir: pathlib.Path, resume_step: int | None) -> Any:
  from tensorboardX import SummaryWriter

  # TensorBoard hides the earlier events of the steps that are about to be written again.
  purge = 0 if resume_step is None else resume_step + 1
  return SummaryWriter(str(workdir / 'tensorboard'), purge_step=purge)


def _board(project: str, workdir: pathlib.Path) -> Any:
  import wandb

  # The id is made from the folder, so that a resumed run goes on in the same place.
  name = workdir.resolve()
  return wandb.init(
    project=project,
    name=name.name,
    id=f'{zlib.crc32(str(name).encode()):08x}',
    dir=str(name),
    resume='allow',
  )


def truncate_after(path: str | os.PathLike[str], step: int) -> None:
  """Drops the lines of later steps, and a torn last line, in one atomic replacement.

  The final numbers go too, whatever their step: a run that goes on measures them again.

  Raises:
    InputError: a line other than the last is not a JSON object with a step.
  """
  lines = [
    raw
    for raw, line in _lines(path)
    if line['step'] <= step and not any(name.startswith('test/') for name in line)
  ]
  replace_file(path, b''.join(raw + b'\n' for raw in lines))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The lines of a log, without a last line that a kill has torn.

  Raises:
    InputError: a line other than the last is not a JSON object with a step.
    OSError: the file cannot be read.
  """
  return [line for _, line in _lines(path)]


def _number(value: Any) -> int | float | None:
  if isinstance(value, int):
    return value
  return float(value) if math.isfinite(value) else None


def _lines(path: str | os.PathLike[str]) -> list[tuple[bytes, dict[str, Any]]]:
  raws = pathlib.Path(path).read_bytes().split(b'\n')
  while raws and not raws[-1].strip():
    raws.pop()
  lines = []
  for number, raw in enumerate(raws, 1):
    try:
      line = json.loads(raw.decode())
      if not isinstance(line, dict) or not isinstance(line.get('step'), int):
        raise ValueError
    except ValueError:
      if number == len(raws):
        break
      raise InputError(
        f'{os.fspath(path)}: line {number} is not a JSON object with an integer "step"; '
        'delete that line'
      ) from None
    lines.append((raw, line))
  return lines
