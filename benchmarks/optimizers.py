"""Update rules of jaxtune beside those of Optax in one run: time, program, bytes, state, imports.

  python benchmarks/optimizers.py

Sides of a pair take turns, so that a disturbance hits both. Ratios are peer over jaxtune: above 1,
jaxtune is faster or smaller. What an H100 would move is read from a program compiled for one
without one; that part needs jax-cuda12-plugin and jax-cuda12-pjrt of jax's own version.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'
# XLA has threads of its own; with those of OpenBLAS on top decompositions wait for each other.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from step import machine

from jaxtune import optim, tree

LAYERS, WIDTH = 48, 64

Pair = tuple[str, Callable[[], Any], Callable[[], Any] | None]


def separate() -> dict[str, Any]:
  """48 layers of one matrix, each a leaf of its own."""
  rng = np.random.default_rng(0)
  return {
    f'layer_{i:02}': {'w': jnp.asarray(rng.standard_normal((WIDTH, WIDTH)), jnp.float32)}
    for i in range(LAYERS)
  }


def stacked() -> dict[str, Any]:
  """The same as one leaf `[48, 64, 64]`."""
  layers = [layer['w'] for layer in separate().values()]
  return {'decoder': {f'0-{LAYERS - 1}': {'w': jnp.stack(layers)}}}


PAIRS: list[Pair] = [
  ('muon', lambda: optim.create('muon', 1e-3), lambda: optax.contrib.muon(1e-3)),
  ('adamw', lambda: optim.create('adamw', 1e-3), lambda: optax.adamw(1e-3)),
  ('lion', lambda: optim.create('lion', 1e-3), lambda: optax.lion(1e-3)),
  ('adafactor', lambda: optim.create('adafactor', 1e-3), lambda: optax.adafactor(1e-3)),
  ('adamw_8bit', lambda: optim.create('adamw_8bit', 1e-3), lambda: optax.adamw(1e-3)),
  ('normuon', lambda: optim.create('normuon', 1e-3), None),
  ('soap', lambda: optim.create('soap', 1e-3), None),
  ('kron', lambda: optim.create('kron', 1e-3), None),
]


class Program:
  r"""The compiled update of a rule on a tree, and what it takes.

  Timed are steps down $\lVert\theta\rVert^2/2$, whose gradient is $\theta$ and costs nothing: as in
  training, no update starts before the last one is done.
  """

  def __init__(self, rule: optax.GradientTransformation, params: Any):
    self.params, self.state = params, jax.jit(rule.init)(params)
    start = time.perf_counter()
    update = jax.jit(rule.update).lower(params, self.state, params).compile()
    self.compile_seconds = time.perf_counter() - start
    self.size = len(update.as_text())

    def step(params, state):
      updates, state = rule.update(params, state, params)
      return optax.apply_updates(params, updates), state

    self.step = jax.jit(step).lower(params, self.state).compile()
    self.seconds: list[float] = []

  def turn(self, calls: int) -> None:
    start = time.perf_counter()
    for _ in range(calls):
      self.params, self.state = self.step(self.params, self.state)
    jax.block_until_ready((self.params, self.state))
    self.seconds.append((time.perf_counter() - start) / calls)


def measure(pairs: list[Pair], calls: int, rounds: int) -> list[dict[str, Any]]:
  """Time, size of the optimized HLO text and compile time; jaxtune also on the stacked tree."""
  rows = []
  for name, ours, theirs in pairs:
    print(f'{name} ...', file=sys.stderr)
    sides = {'jaxtune': Program(ours(), separate()), 'jaxtune, stacked': Program(ours(), stacked())}
    if theirs is not None:
      sides['optax'] = Program(theirs(), separate())
    for _ in range(rounds + 1):
      for side in sides.values():
        side.turn(calls)
    for label, side in sides.items():
      rows.append(
        {
          'rule': name,
          'side': label,
          'ms': 1e3 * min(side.seconds[1:]),
          'hlo_kb': side.size / 1e3,
          'compile_s': side.compile_seconds,
        }
      )
  return rows


def ratios(rows: list[dict[str, Any]]) -> list[list[str]]:
  table = []
  for row in rows:
    ours = next(r for r in rows if r['rule'] == row['rule'] and r['side'] == 'jaxtune')
    cells = [row['rule'], row['side']]
    for key, form in (('ms', '.2f'), ('hlo_kb', ',.0f'), ('compile_s', '.2f')):
      cells += [format(row[key], form), format(row[key] / ours[key], '.2f')]
    table.append(cells)
  return table


def traffic(place: Any) -> list[list[str]]:
  """Bytes moved a parameter in one update with its addition, from the compiled module."""
  params = {
    'decoder': {'0-3': {'mlp': {'up': jax.ShapeDtypeStruct((4, 1024, 4096), jnp.float32)}}},
    'embed': {'tokens': jax.ShapeDtypeStruct((4096, 1024), jnp.float32)},
  }
  rules = {
    'adamw (floor 28)': (optim.create('adamw', 1e-3), optax.adamw(1e-3)),
    'lion (floor 20)': (optim.create('lion', 1e-3), optax.lion(1e-3)),
    'sgd (floor 12)': (optim.create('sgd', 1e-3), optax.sgd(1e-3)),
    'momentum (floor 20)': (optim.momentum(1e-3), optax.sgd(1e-3, momentum=0.9)),
    'adamw_8bit (floor 16)': (optim.create('adamw_8bit', 1e-3), optax.adamw(1e-3)),
  }
  table = []
  for name, pair in rules.items():
    moved = [_moved(rule, params, place) / tree.count(params) for rule in pair]
    table.append([name, *(f'{x:.1f}' for x in moved), f'{moved[1] / moved[0]:.2f}'])
  return table


def _moved(rule: optax.GradientTransformation, params: Any, place: Any) -> int:
  def step(params, state, gradients):
    updates, state = rule.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  state = jax.eval_shape(rule.init, params)
  at = [compiled.shapes(x, place) for x in (params, state, params)]
  return compiled.bytes_moved(jax.jit(step, donate_argnums=(0, 1)).lower(*at).compile())


def memory() -> list[list[str]]:
  """Bytes of state a parameter on a tree of matrices, embeddings and norms."""
  shape = jax.ShapeDtypeStruct
  params = {
    'embed': {'tokens': shape((32000, 2048), jnp.bfloat16)},
    'decoder': {
      '0-15': {
        'mlp': {'up': shape((16, 2048, 8192), jnp.bfloat16)},
        'norm': {'scale': shape((16, 2048), jnp.bfloat16)},
      }
    },
  }
  rules = ('adamw', 'adamw_8bit', 'muon', 'normuon', 'adam_mini', 'soap', 'apollo', 'adafactor')
  adamw = optim.state_bytes(optim.create('adamw', 1e-3), params)
  table = []
  for name in rules:
    size = optim.state_bytes(optim.create(name, 1e-3), params)
    table.append([name, f'{size / tree.count(params):.2f}', f'{adamw / size:.2f}'])
  return table


def imports(rounds: int) -> list[list[str]]:
  """Seconds to import, the least of several fresh interpreters."""
  seconds: dict[str, list[float]] = {'import jax, optax': [], 'from jaxtune import optim': []}
  for _ in range(rounds):
    for code, taken in seconds.items():
      start = time.perf_counter()
      subprocess.run([sys.executable, '-c', code], check=True)
      taken.append(time.perf_counter() - start)
  base = min(seconds['import jax, optax'])
  return [[code, f'{min(t):.2f}', f'{min(t) / base:.2f}'] for code, t in seconds.items()]


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
  print(f'\n{title}\n')
  for line in (head, ['---'] * len(head), *rows):
    print('| ' + ' | '.join(line) + ' |')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--calls', type=int, default=50, help='updates a turn')
  parser.add_argument('--rounds', type=int, default=10, help='turns a side')
  parser.add_argument('--json', type=pathlib.Path, help='where to write the figures of the updates')
  options = parser.parse_args()
  if options.calls < 1 or options.rounds < 1:
    parser.error('--calls and --rounds must be at least 1')
  load = os.getloadavg()[0]
  print(f'{machine()}; load {load:.1f}; jax {jax.__version__}, optax {optax.__version__}')

  rows = measure(PAIRS, options.calls, options.rounds)
  show(
    f'One update of {LAYERS} leaves of {WIDTH} x {WIDTH} (the stack is one leaf)',
    ['rule', 'side', 'ms', 'ratio', 'HLO kB', 'ratio', 'compile s', 'ratio'],
    ratios(rows),
  )
  head = ['rule', 'jaxtune', 'optax', 'ratio']
  show('Bytes moved a parameter, compiled for this CPU', head, traffic(None))
  try:
    place = compiled.h100()
  except Exception as e:  # whatever the plugin raises, the other parts are worth printing
    print(f'\nNot compiled for an H100: {str(e).splitlines()[0]}')
  else:
    show('Bytes moved a parameter, compiled for an H100 without one', head, traffic(place))
  show('Bytes of state a parameter (adamw over the rule)', ['rule', 'bytes', 'ratio'], memory())
  show('Import', ['code', 's', 'ratio'], imports(5))
  if options.json:
    options.json.write_text(json.dumps({'machine': machine(), 'load': load, 'rows': rows}) + '\n')


if __name__ == '__main__':
  main()
