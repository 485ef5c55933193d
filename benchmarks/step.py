"""One training step of jaxtune beside its peers, as seconds, memory and ratios.

  python benchmarks/step.py --peers=<virtual environment with torch, peft, google-tunix>
  python benchmarks/step.py --peers=<...> --platform=gpu

Every side is a script of `benchmarks/sides` in a process of its own: jaxtune in this interpreter,
the peers in theirs. All start from the same weights and see the same tokens, so their losses must
agree; the table shows them. Rounds visit the sides by turns, so that a disturbance hits all alike.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from sides import common

SIDES = pathlib.Path(__file__).parent / 'sides'
METHODS = {'lora': 'LoRA', 'full': 'full'}
SHAPES = {'cpu': ('base', 'long', 'vocabulary'), 'gpu': ('1b',)}
# Products in bfloat16 without sparsity, FLOP/s, from the makers' data sheets; the first that a
# device's name contains.
PEAKS = {'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'L40S': 362e12, 'L4': 121e12}


class Side(NamedTuple):
  """One row of a table; where several commands are given, the fastest speaks for the row."""

  name: str
  method: str
  commands: list[list[str]]
  shape: str = 'base'


def sides(peers: pathlib.Path | None, shapes: Sequence[str], device: str = 'cpu') -> list[Side]:
  """The rows, jaxtune's first of each shape and method."""
  rows = []
  for shape, method in itertools.product(shapes, METHODS):

    def command(python, script, *options, shape=shape, method=method):
      where = [f'--method={method}', f'--shape={shape}', f'--device={device}']
      return [str(python), str(SIDES / f'{script}_step.py'), *where, *options]

    def row(name, *commands, shape=shape, method=method):
      rows.append(Side(name, method, list(commands), shape))

    row('jaxtune', command(sys.executable, 'jaxtune'))
    for n in (2, 4):
      if common.SHAPES[shape].get('BATCH', common.BATCH) % n == 0:
        row(f'jaxtune, {n} micro-batches', command(sys.executable, 'jaxtune', f'--accumulate={n}'))
    row('jaxtune, remat full', command(sys.executable, 'jaxtune', '--remat'))
    if shape == 'vocabulary':
      row('jaxtune, whole logits', command(sys.executable, 'jaxtune', '--chunk=1000000'))
    if peers is None:
      continue
    python = peers / 'bin' / 'python'
    threads = sorted({1, os.cpu_count() or 1}) if device == 'cpu' else [0]
    name = 'torch + PEFT' if method == 'lora' else 'torch'
    row(name, *[command(python, 'torch', f'--threads={n}') for n in threads])
    if device == 'cpu':
      row('Tunix', command(python, 'tunix'))
  return rows


def has_gpu() -> bool:
  """Whether this interpreter's JAX finds a GPU; asked in a process of its own, which frees it."""
  ask = "import jax; jax.devices('gpu')"
  return (
    subprocess.run([sys.executable, '-c', ask], capture_output=True, check=False).returncode == 0
  )


def run(command: list[str], steps: int) -> dict[str, Any] | str:
  """What a side measured, or one line that says why it did not."""
  env = dict(os.environ) if '--device=gpu' in command else {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [*command, f'--steps={steps}'], capture_output=True, text=True, env=env, check=False
  )
  if done.returncode:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if 'Error' in line.split(':')[0]]
    return (errors or lines or [f'exit status {done.returncode}'])[-1].strip()
  result = json.loads(done.stdout.splitlines()[-1])
  return result if 'missing' not in result else f'package {result["missing"]} is not installed'


def measure(rows: list[Side], steps: int, rounds: int) -> list[dict[str, Any]]:
  """One dict a row that ran: seconds of all rounds, losses, peak, versions."""
  pooled: dict[tuple[int, int], dict[str, Any]] = {}
  broken: set[int] = set()
  for turn in range(rounds):
    for i, side in enumerate(rows):
      for j, command in enumerate(side.commands):
        if i in broken:
          continue
        print(f'round {turn + 1}/{rounds}: {" ".join(command[1:])}', file=sys.stderr)
        result = run(command, steps)
        if isinstance(result, str):
          what = f'{side.name} ({METHODS.get(side.method, side.method)}, {side.shape})'
          print(f'{what} left out: {result}')
          broken.add(i)
          continue
        options = [option for option in command[2:] if option.startswith('--threads')]
        known = pooled.setdefault((i, j), {**result, 'seconds': [], 'options': options})
        known['seconds'] += result['seconds']
        known['peak_mb'] = max(known['peak_mb'], result['peak_mb'])
  table = []
  for i, side in enumerate(rows):
    runs = [value for (row, _), value in pooled.items() if row == i]
    if runs:
      best = min(runs, key=lambda value: min(value['seconds']))
      table.append({'name': side.name, 'method': side.method, 'shape': side.shape, **best})
  return table


def markdown(lines: list[list[str]]) -> str:
  """The first line as the head of a table of the others."""
  rows = [lines[0], ['---'] * len(lines[0]), *lines[1:]]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def render(table: list[dict[str, Any]]) -> str:
  """A Markdown table; ratios are peer over jaxtune, so above 1 jaxtune is faster or leaner."""
  gpu = bool(table[0].get('device') not in ('', 'cpu', None))
  head = ['shape', 'step', 'side', 'min s', 'median s', 'time ratio', 'peak MB', 'memory ratio']
  lines = [[*head, *(['tokens/s', 'of peak'] if gpu else []), 'loss 1, N']]
  for row in table:
    same = (r for r in table if (r['shape'], r['method']) == (row['shape'], row['method']))
    ours = next((r for r in same if r['name'] == 'jaxtune'), None)
    time, memory = '-', '-'
    if ours:
      time = f'{min(row["seconds"]) / min(ours["seconds"]):.2f}'
      memory = f'{row["peak_mb"] / ours["peak_mb"]:.2f}'
    threads = [o[2:].replace('=', ' ') for o in row['options'] if not o.endswith('=0')]
    lines.append(
      [
        row['shape'],
        METHODS[row['method']],
        ', '.join([row['name'], *threads]),
        f'{min(row["seconds"]):.3f}',
        f'{statistics.median(row["seconds"]):.3f}',
        time,
        f'{row["peak_mb"]:,.0f}',
        memory,
        *(_throughput(row) if gpu else []),
        f'{row["losses"][0]:.4f}, {row["losses"][-1]:.4f}',
      ]
    )
  return markdown(lines)


def _throughput(row: dict[str, Any]) -> list[str]:
  """Tokens/s, and FLOP/s as a share of what the device can do at most."""
  seconds = min(row['seconds'])
  most = next((peak for name, peak in PEAKS.items() if name in row['device']), None)
  share = f'{row["flops"] / seconds / most:.0%}' if most else '-'
  return [f'{row["tokens"] / seconds:,.0f}', share]


def machine() -> str:
  """Processor, cores and memory in one line."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    names = [line for line in info.read_text().splitlines() if line.startswith('model name')]
    name = names[0].split(':', 1)[1].strip() if names else name
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
  return f'{name}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peers', type=pathlib.Path, help='virtual environment of the peers')
  parser.add_argument('--platform', choices=SHAPES, default='cpu')
  parser.add_argument('--shapes', help=f'some of {", ".join(common.SHAPES)}, after commas')
  parser.add_argument('--steps', type=int, default=8, help='timed steps a process')
  parser.add_argument('--rounds', type=int, default=2, help='processes a side')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  if options.steps < 1 or options.rounds < 1:
    parser.error('--steps and --rounds must be at least 1')
  if options.peers and not (options.peers / 'bin' / 'python').exists():
    parser.error(f'--peers: {options.peers} has no bin/python; give a virtual environment')
  shapes = options.shapes.split(',') if options.shapes else SHAPES[options.platform]
  unknown = [shape for shape in shapes if shape not in common.SHAPES]
  if unknown:
    parser.error(f'--shapes: unknown {unknown[0]!r}; known: {", ".join(common.SHAPES)}')
  if options.platform == 'gpu' and not has_gpu():
    print('JAX finds no GPU here: --platform=gpu is skipped.')
    return
  load = os.getloadavg()[0]
  table = measure(sides(options.peers, shapes, options.platform), options.steps, options.rounds)
  if not table:
    sys.exit('nothing ran')
  print(render(table))
  print(f'\nN = {options.rounds * options.steps} timed steps a row; {machine()}; load {load:.1f}')
  for name in dict.fromkeys(row['name'] for row in table):
    versions = {k: v for row in table if row['name'] == name for k, v in row['versions'].items()}
    print(f'{name}: {", ".join(" ".join(item) for item in versions.items())}')
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if not options.peers:
    print('No peers: give --peers=<virtual environment with torch, peft, google-tunix>.')
  if options.json:
    record = {'machine': machine(), 'load': load, 'rows': table}
    options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
