"""A profile of some steps, for TensorBoard (its profile plugin) or ui.perfetto.dev."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from jaxtune.train import Program
from jaxtune.typing import InputError

FOLDER = 'trace'


def steps_of(text: str) -> range:
  """The steps that `train.profile` names: '10-12', or '3' for so many behind the first; '' none.

  Raises:
    InputError: it names none.
  """
  if not text:
    return range(0)
  match = re.fullmatch(r'(?:(\d+)-)?(\d+)', text)
  if match:
    first, last = int(match[1] or 2), int(match[2]) + (0 if match[1] else 1)
    if 1 <= first <= last:
      return range(first, last + 1)
  raise InputError(
    f'train.profile is {text!r}; give steps as 10-12, or how many behind the first as 3'
  )


def check(text: str, steps: int) -> None:
  """Refuses steps that a run of so many does not take."""
  wanted = steps_of(text)
  if wanted and wanted[-1] > steps:
    raise InputError(
      f'train.profile is {text!r}, up to step {wanted[-1]}, but the run has {steps} steps; '
      'choose earlier ones'
    )


@contextlib.contextmanager
def traced(program: Program, text: str, taken: int, folder: pathlib.Path) -> Iterator[Program]:
  """The program with a step that writes a trace of the steps in `text`; `taken` went before.

  Waiting for the devices at both ends, it holds these steps and nothing else, and the work of the
  host between them. Without wanted steps, and in other processes than the first, it is the program
  itself.
  """
  wanted = steps_of(text)
  if not wanted or jax.process_index():
    yield program
    return
  number, tracing = taken, False

  def stop() -> None:
    nonlocal tracing
    if tracing:
      tracing = False
      jax.profiler.stop_trace()

  def step(state, frozen, batch):
    nonlocal number, tracing
    number += 1
    if number in wanted and not tracing:
      jax.block_until_ready(state)
      jax.profiler.start_trace(folder)
      tracing = True
    with jax.profiler.StepTraceAnnotation('train', step_num=number):
      made = program.step(state, frozen, batch)
    if number == wanted[-1]:
      jax.block_until_ready(made)
      stop()
    return made

  try:
    yield program._replace(step=step)
  finally:
    stop()
