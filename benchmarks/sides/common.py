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
SHAPES: dict[str, dict[str, int]] = {  # in what they differ from that; `arguments` takes one
  'base': {},
  'long': {'BATCH': 1, 'LENGTH': 2048},
  'vocabulary': {'VOCABULARY': 32768},
  '1b': {  # of Llama 3.2 1B
    **{'VOCABULARY': 128256, 'WIDTH': 2048, 'HIDDEN': 8192, 'LAYERS': 16},
    **{'HEADS': 32, 'KV_HEADS': 8, 'HEAD_WIDTH': 64, 'BATCH': 8, 'LENGTH': 1024},
  },
}
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


def linear() -> dict[str, tuple[int, int]]:
  """The linear layers of one block, `[in, out]`."""
  return {
    'q': (WIDTH, HEADS * HEAD_WIDTH),
    'k': (WIDTH, KV_HEADS * HEAD_WIDTH),
    'v': (WIDTH, KV_HEADS * HEAD_WIDTH),
    'o': (HEADS * HEAD_WIDTH, WIDTH),
    'gate': (WIDTH, HIDDEN),
    'up': (WIDTH, HIDDEN),
    'down': (HIDDEN, WIDTH),
  }


def flops(method: str) -> float:
  """Of one step: 2 for each weight and token forwards, as many again for the gradient of its input,
  and of itself if it trains; and causal attention, whose backward pass is twice its forward one.
  The adapters' own, about 1%, do not count, nor what is computed again."""
  tokens = BATCH * LENGTH
  weights = LAYERS * sum(rows * columns for rows, columns in linear().values())
  attention = 2 * LENGTH * HEADS * HEAD_WIDTH * LAYERS
  passes = 3 if method == 'full' else 2
  return tokens * (2.0 * passes * (weights + VOCABULARY * WIDTH) + 3.0 * attention)


def embedding() -> np.ndarray:
  """`[V, D]`, the same for every side."""
  return _normal(0, (VOCABULARY, WIDTH))


def weights(layer: int) -> dict[str, np.ndarray]:
  """The matrices of one layer, `[in, out]`, the same for every side."""
  return {
    name: _normal(1 + layer * 16 + i, shape) for i, (name, shape) in enumerate(linear().items())
  }


def adapters(layer: int) -> dict[str, np.ndarray]:
  """LoRA's A of one layer, `[in, R]`; B starts at zero."""
  return {
    name: _normal(9 + layer * 16 + i, (inputs, RANK))
    for i, (name, (inputs, _)) in enumerate(linear().items())
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
  """The options of a side; the numbers above become those of the shape."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--shape', choices=SHAPES, default='base')
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  parser.add_argument('--chunk', type=int, default=None)
  parser.add_argument('--method', choices=METHODS, required=True)
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--threads', type=int, default=None)
  parser.add_argument('--remat', action='store_true')
  parser.add_argument('--accumulate', type=int, default=1)
  options = parser.parse_args()
  globals().update(SHAPES[options.shape])
  return options


def packages(*names: str) -> dict[str, str]:
  """Versions; where one is not installed, says so on standard output and ends this side."""
  try:
    return {name: importlib.metadata.version(name) for name in names}
  except importlib.metadata.PackageNotFoundError as error:
    print(json.dumps({'missing': error.name}))
    sys.exit(0)


def report(
  step: Callable[[np.ndarray], float],
  steps: int,
  versions: dict[str, str],
  method: str,
  device: str = '',
  device_peak: Callable[[], int] | None = None,
) -> None:
  """Times `step(tokens) -> loss` after two steps of warm-up and prints one line of JSON.

  The peak is the process's own, compiler and start-up included, in MB of 10^6 bytes; on a GPU that
  of the device's memory.
  """
  losses, seconds = [], []
  for tokens, _ in zip(batches(), range(2 + steps), strict=False):
    start = time.perf_counter()
    losses.append(float(step(tokens)))
    seconds.append(time.perf_counter() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
    1 if sys.platform == 'darwin' else 1024
  )
  peak = peak if device_peak is None else device_peak()
  result: dict[str, Any] = {
    'device': device,
    'tokens': BATCH * LENGTH,
    'flops': flops(method),
    'seconds': seconds[2:],
    'first_seconds': seconds[0],
    'losses': losses,
    'peak_mb': peak / 1e6,
    'versions': {'python': sys.version.split()[0], **versions},
  }
  print(json.dumps(result))
