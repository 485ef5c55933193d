"""The folder of a comparison, and where it prints."""

import pathlib

import rich.console

from experiments import workdir
from experiments.keys import Config
from jaxtune.typing import InputError


def console(width: int) -> rich.console.Console:
  """The terminal, or so many columns of a log file, which has no width of its own."""
  made = rich.console.Console(highlight=False)
  if not made.is_terminal:
    made.width = width
  return made


def unfinished(
  config: Config, folder: str | None, console: rich.console.Console
) -> pathlib.Path | None:
  """The folder in which a comparison is to run; None where it is finished, which is then said.

  Raises:
    InputError: no folder, or one that holds something else.
  """
  if not folder:
    raise InputError('--workdir is missing: the folder of this run')
  path = pathlib.Path(folder)
  workdir.check(path, config)
  done = workdir.result(path)
  if done is None:
    return path
  console.print(f'{path} holds this comparison, finished; nothing to do', soft_wrap=True)
  console.print(done['headline'], f'report   {path / "report.html"}', sep='\n', soft_wrap=True)
  return None
