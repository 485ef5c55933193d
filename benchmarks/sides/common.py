"""What every side shares: the shape, the numbers that it starts from, and the stopwatch.

Only NumPy and the standard library at import, so that each side runs in an interpreter of its own.
"""

import argparse
import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

VOCABULARY, WIDTH, HIDDEN, LAYERS = 8192, 512, 1408, 12
HEADS, KV_HEADS, HEAD_WIDTH = 8, 4, 64
BATCH, LENGTH = 4, 256
RANK, ALPHA = 16, 32.0
EPSILON, ROPE_BASE = 1e-5, 1_000_000.0  # the base that Tunix has built in
LEARNING_RATE = {'full': 3e-4}
OTHER_RATE = 1e-3
# The methods and their options, by our names; every matrix of the layers but where a method has
# others of its own.
METHODS: dict[str, dict[str, Any]] = {
  'lora': {'rank': RANK, 'alpha': ALPHA},
  'full': {},
  'dora': {'rank': RANK, 'alpha': ALPHA},
  'ia3': {},
  'vera': {'rank': 64},
  'adalora': {'rank': RANK, 'alpha': ALPHA},
  'loha': {'rank': 8, 'alpha': 16.0},
  'lokr': {'rank': 8, 'alpha': 16.0},
  'prompt': {'tokens': 20},
  'prefix': {'tokens': 20},
}
BETAS, ADAM_EPSILON, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01

# The linear layers of one block, `[in, out]`.
LINEAR = {
  'q': (WIDTH, HEADS * HEAD_WIDTH),
  'k': (WIDTH, KV_HEADS * HEAD_WIDTH),
  'v': (WIDTH, KV_HEADS * HEAD_WIDTH),
  'o': (HEADS * HEAD_WIDTH, WIDTH),
  'gate': (WIDTH, HIDDEN),
  'up': (WIDTH, HIDDEN),
  'down': (HIDDEN, WIDTH),
}


def embedding() -> np.ndarray:
  """`[V, D]`, the same for every side."""
  return _normal(0, (VOCABULARY, WIDTH))


def weights(layer: int) -> dict[str, np.ndarray]:
  """The matrices of one layer, `[in, out]`, the same for every side."""
  return {
    name: _normal(1 + layer * 16 + i, shape) for i, (name, shape) in enumerate(LINEAR.items())
  }


def adapters(layer: int) -> dict[str, np.ndarray]:
  """LoRA's A of one layer, `[in, R]`; B starts at zero."""
  return {
    name: _normal(9 + layer * 16 + i, (inputs, RANK))
    for i, (name, (inputs, _)) in enumerate(LINEAR.items())
  }


def batches() -> Iterator[np.ndarray]:
  """int32 `[B, T]` tokens without end: a few batches by turns, so that the loss can fall."""
  draw = np.random.default_rng(1)
  pool = draw.integers(0, VOCABULARY, (4, BATCH, LENGTH), dtype=np.int32)
  while True:
    yield from pool


def adamw(method: str):
  """AdamW of Optax, the update rule of both JAX sides."""
  import optax

  return optax.adamw(rate(method), *BETAS, eps=ADAM_EPSILON, weight_decay=WEIGHT_DECAY)


def rate(method: str) -> float:
  return LEARNING_RATE.get(method, OTHER_RATE)


def _normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
  return 0.02 * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  parser.add_argument('--method', choices=METHODS, required=True)
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--threads', type=int, default=None)
  parser.add_argument('--remat', action='store_true')
  return parser.parse_args()


def packages(*names: str) -> dict[str, str]:
  """Versions; where one is not installed, says so on standard output and ends this side."""
  try:
    return {name: importlib.metadata.version(name) for name in names}
  except importlib.metadata.PackageNotFoundError as error:
    print(json.dumps({'missing': error.name}))
    sys.exit(0)


def report(step: Callable[[np.ndarray], float], steps: int, versions: dict[str, str]) -> None:
  """Times `step(tokens) -> loss` after two steps of warm-up and prints one line of JSON.

  The peak is the process's own, compiler and start-up included, in MB of 10^6 bytes.
  """
  losses, seconds = [], []
  for tokens, _ in zip(batches(), range(2 + steps), strict=False):
    start = time.perf_counter()
    losses.append(float(step(tokens)))
    seconds.append(time.perf_counter() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
    1 if sys.platform == 'darwin' else 1024
  )
  result: dict[str, Any] = {
    'seconds': seconds[2:],
    'first_seconds': seconds[0],
    'losses': losses,
    'peak_mb': peak / 1e6,
    'versions': {'python': sys.version.split()[0], **versions},
  }
  print(json.dumps(result))
