"""What both sides of the benchmark of generation share: the arguments and the stopwatch."""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True)
  parser.add_argument('--prompt', type=json.loads, required=True)
  parser.add_argument('--tokens', type=int, required=True)
  parser.add_argument('--steps', type=int, default=3, help='timed texts')
  parser.add_argument('--threads', type=int, default=None)
  parser.add_argument('--dtype', default='float32')
  return parser.parse_args()


def timed(work: Callable[[], Any]) -> float:
  """Seconds."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def report(
  write: Callable[[list[int], int], list[int]],
  options: argparse.Namespace,
  packages: tuple[str, ...],
  others: dict[str, Any],
) -> None:
  """Times `write(prompt, count) -> tokens` after a warm-up and prints one line of JSON.

  `first` are seconds to one token behind the prompt, `whole` to all of them.
  """
  tokens = write(options.prompt, options.tokens)
  first, whole = [], []
  for _ in range(options.steps):
    first.append(timed(lambda: write(options.prompt, 1)))
    whole.append(timed(lambda: write(options.prompt, options.tokens)))
  versions = {name: importlib.metadata.version(name) for name in packages}
  python = sys.version.split()[0]
  print(
    json.dumps(
      {
        'tokens': tokens,
        'first': first,
        'whole': whole,
        'versions': {'python': python, **versions},
        **others,
      }
    )
  )
