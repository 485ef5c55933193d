"""What both sides of the data pipeline share: options, a stopwatch, and the line they print."""

import argparse
import importlib.metadata
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

BATCH = 8
ROWS = 4  # of a batch of `input.py`, as of a step of `step.py`


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  parser.add_argument('--file', type=pathlib.Path, required=True, help='JSONL of {"text": ...}')
  parser.add_argument('--tokenizer', type=pathlib.Path, required=True, help='a tokenizer.json')
  parser.add_argument('--length', type=int, required=True)
  parser.add_argument('--mode', default='')
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--cursor', type=pathlib.Path)
  parser.add_argument('--batches', type=int, default=0, help='timed batches')
  return parser.parse_args()


class Watch:
  """`with watch('read'): ...` takes the seconds of 'read', and those of all processors."""

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}
    self.cpu: dict[str, float] = {}

  def __call__(self, name: str) -> 'Watch':
    self._name = name
    return self

  def __enter__(self) -> None:
    self._cpu, self._start = processors(), time.perf_counter()

  def __exit__(self, *_: object) -> None:
    self.seconds[self._name] = time.perf_counter() - self._start
    self.cpu[self._name] = processors() - self._cpu


def processors() -> float:
  """Seconds of all processors for this process and those that it has ended."""
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system


def peak_mb() -> float:
  """The most memory that this process has had, MB of 10^6 bytes."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def rate(
  one: Callable[[], int], count: int, packages: tuple[str, ...], stream: bool = False
) -> None:
  """Times `count` batches, which `one` makes and counts the real tokens of.

  The first is not among them, but of a stream: with it a window of rows is tokenized.
  """
  if not stream:
    one()
  cpu, start = processors(), time.perf_counter()
  tokens = sum(one() for _ in range(count))
  seconds, cpu = time.perf_counter() - start, processors() - cpu
  print(
    json.dumps(
      {
        'seconds': seconds / count,
        'cpu': cpu / count,
        'tokens': tokens / count,
        'peak_mb': peak_mb(),
        'versions': {name: importlib.metadata.version(name) for name in packages},
      }
    )
  )


def report(watch: Watch, packages: tuple[str, ...], **values: Any) -> None:
  versions = {name: importlib.metadata.version(name) for name in packages}
  versions = {'python': sys.version.split()[0], **versions}
  values |= {'seconds': watch.seconds, 'cpu': watch.cpu}
  print(json.dumps({**values, 'peak_mb': peak_mb(), 'versions': versions}))
