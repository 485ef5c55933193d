"""A run from its command to its first step, cold and warm; and how compiling grows with depth.

  python benchmarks/startup.py --json=startup.json

Every start is a process of its own (`sides/jaxtune_start.py`), which does what
`python -m experiments.finetune` does up to the first step. Cold, JAX's persistent cache is empty;
warm, a process before it has filled it. The files of Python, model and data have been read before.
Depth: the step of a decoder of 12 and of 48 layers, without the cache (`sides/jaxtune_depth.py`).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from step import METHODS, SIDES, machine, markdown

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ('interpreter', 'import', 'load', 'compile', 'first step')
DEPTHS = (12, 48)


def call(side: str, *options: str, cache: str = '') -> dict[str, Any]:
  """What a side measured."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  if cache:
    env['JAX_COMPILATION_CACHE_DIR'] = cache
  print(f'{side} {" ".join(options)}', file=sys.stderr)
  command = [sys.executable, str(SIDES / f'{side}.py'), *options]
  done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
  if done.returncode:
    sys.exit(f'{side} failed:\n{done.stderr[-2000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def starts(config: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
  """Cold and warm starts by turns."""
  found: dict[str, list[dict[str, Any]]] = {'cold': [], 'warm': []}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as cache:
      for kind in found:
        options = (f'--config={config}', f'--called={time.time()}')
        found[kind].append(call('jaxtune_start', *options, cache=cache))
  return found


def median(found: list[dict[str, Any]], clock: str, phases: tuple[str, ...]) -> float:
  """Of the sum of the phases, over the processes."""
  return statistics.median(sum(one[clock][phase] for phase in phases) for one in found)


def start_table(found: dict[str, list[dict[str, Any]]]) -> str:
  """A line a phase, in seconds; the contract is about the sum up to the first step."""
  lines = [['phase', 'cold s', 'warm s', 'warm / cold', 'cold CPU s', 'warm CPU s']]
  sums = {'up to the first step': PHASES[:-1], 'with the first step': PHASES}
  for name, phases in {**{phase: (phase,) for phase in PHASES}, **sums}.items():
    cold, warm = (median(found[kind], 'seconds', phases) for kind in ('cold', 'warm'))
    spent = [f'{median(found[kind], "cpu", phases):.2f}' for kind in ('cold', 'warm')]
    lines.append([name, f'{cold:.2f}', f'{warm:.2f}', f'{warm / cold:.2f}', *spent])
  last = {kind: found[kind][-1] for kind in found}
  counts = '; '.join(
    f'{kind}: {one["compiled"]} programs compiled, {one["found"]} found, '
    f'{one["tracing"]:.2f} s of tracing'
    for kind, one in last.items()
  )
  return f'{markdown(lines)}\n\n{counts}'


def depths(rounds: int) -> list[dict[str, Any]]:
  """The fastest compile of each method and depth."""
  table = []
  for method in METHODS:
    for layers in DEPTHS:
      options = (f'--method={method}', f'--layers={layers}')
      found = [call('jaxtune_depth', *options) for _ in range(rounds)]
      best = min(found, key=lambda one: one['trace'] + one['compile'])
      table.append({'method': method, 'layers': layers, **best})
  return table


def depth_table(table: list[dict[str, Any]]) -> str:
  """A line a method and depth; ratios are over 12 layers."""
  names = 'step, layers, trace s, compile s, ratio, CPU s, CPU ratio, lowered kB, optimized kB'
  lines = [names.split(', ')]
  for row in table:
    first = next(one for one in table if one['method'] == row['method'])
    lines.append(
      [
        METHODS[row['method']],
        str(row['layers']),
        f'{row["trace"]:.2f}',
        f'{row["compile"]:.2f}',
        f'{row["compile"] / first["compile"]:.2f}',
        f'{row["cpu"]:.2f}',
        f'{row["cpu"] / first["cpu"]:.2f}',
        f'{row["lowered_kb"]:.0f}',
        f'{row["optimized_kb"]:.0f}',
      ]
    )
  return markdown(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--configs', nargs='+', default=['configs/quickstart.py'], help='what starts')
  parser.add_argument('--rounds', type=int, default=3, help='processes of each kind')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  if options.rounds < 1:
    parser.error('--rounds must be at least 1')
  load = os.getloadavg()[0]
  starts(str(ROOT / options.configs[0]), 1)  # writes Python's own compiled files
  record: dict[str, Any] = {'machine': machine(), 'load': load, 'starts': {}}
  for config in options.configs:
    found = starts(str(ROOT / config), options.rounds)
    record['starts'][config] = found
    print(f'\n{config}, median of {options.rounds}:\n\n{start_table(found)}')
  record['depths'] = depths(options.rounds)
  print(f'\n{depth_table(record["depths"])}')
  versions = found['cold'][0]['versions']
  print(f'\n{machine()}; load {load:.1f}; {", ".join(" ".join(i) for i in versions.items())}')
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if options.json:
    options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
