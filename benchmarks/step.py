"""One training step of jaxtune beside its peers, on CPU, as seconds, memory and ratios.

  python benchmarks/step.py --peers=<virtual environment with torch, peft, google-tunix>

Every side is a script of `benchmarks/sides` in a process of its own: jaxtune in this interpreter,
the peers in theirs. All start from the same weights and see the same tokens, so their losses must
agree; the table shows them. Rounds visit the sides by turns, so that a disturbance hits all alike.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

SIDES = pathlib.Path(__file__).parent / 'sides'
METHODS = {'lora': 'LoRA', 'full': 'full'}


class Side(NamedTuple):
  """One row of the table; where several commands are given, the fastest speaks for the row."""

  name: str
  method: str
  commands: list[list[str]]


def sides(peers: pathlib.Path | None) -> list[Side]:
  """The rows, jaxtune's first of each method."""
  threads = sorted({1, os.cpu_count() or 1})
  rows = []
  for method in METHODS:

    def command(python, script, *options, method=method):
      return [str(python), str(SIDES / f'{script}_step.py'), f'--method={method}', *options]

    rows += [
      Side('jaxtune', method, [command(sys.executable, 'jaxtune')]),
      Side('jaxtune, remat', method, [command(sys.executable, 'jaxtune', '--remat')]),
    ]
    if peers is not None:
      python = peers / 'bin' / 'python'
      rows += [
        Side(
          'torch + PEFT' if method == 'lora' else 'torch',
          method,
          [command(python, 'torch', f'--threads={n}') for n in threads],
        ),
        Side('Tunix', method, [command(python, 'tunix')]),
      ]
  return rows


def run(command: list[str], steps: int) -> dict[str, Any] | str:
  """What a side measured, or one line that says why it did not."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
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
          print(f'{side.name} ({METHODS.get(side.method, side.method)}) left out: {result}')
          broken.add(i)
          continue
        options = [option for option in command[2:] if not option.startswith('--method')]
        known = pooled.setdefault((i, j), {**result, 'seconds': [], 'options': options})
        known['seconds'] += result['seconds']
        known['peak_mb'] = max(known['peak_mb'], result['peak_mb'])
  table = []
  for i, side in enumerate(rows):
    runs = [value for (row, _), value in pooled.items() if row == i]
    if runs:
      best = min(runs, key=lambda value: min(value['seconds']))
      table.append({'name': side.name, 'method': side.method, **best})
  return table


def markdown(lines: list[list[str]]) -> str:
  """The first line as the head of a table of the others."""
  rows = [lines[0], ['---'] * len(lines[0]), *lines[1:]]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def render(table: list[dict[str, Any]]) -> str:
  """A Markdown table; ratios are peer over jaxtune, so above 1 jaxtune is faster or leaner."""
  head = ['step', 'side', 'min s', 'median s', 'time ratio', 'peak MB', 'memory ratio', 'loss 1, N']
  lines = [head]
  for row in table:
    ours = next((r for r in table if r['name'] == 'jaxtune' and r['method'] == row['method']), None)
    time, memory = '-', '-'
    if ours:
      time = f'{min(row["seconds"]) / min(ours["seconds"]):.2f}'
      memory = f'{row["peak_mb"] / ours["peak_mb"]:.2f}'
    threads = [option[2:].replace('=', ' ') for option in row['options'] if 'threads' in option]
    lines.append(
      [
        METHODS[row['method']],
        ', '.join([row['name'], *threads]),
        f'{min(row["seconds"]):.3f}',
        f'{statistics.median(row["seconds"]):.3f}',
        time,
        f'{row["peak_mb"]:,.0f}',
        memory,
        f'{row["losses"][0]:.4f}, {row["losses"][-1]:.4f}',
      ]
    )
  return markdown(lines)


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
  parser.add_argument('--steps', type=int, default=8, help='timed steps a process')
  parser.add_argument('--rounds', type=int, default=2, help='processes a side')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  if options.steps < 1 or options.rounds < 1:
    parser.error('--steps and --rounds must be at least 1')
  if options.peers and not (options.peers / 'bin' / 'python').exists():
    parser.error(f'--peers: {options.peers} has no bin/python; give a virtual environment')
  load = os.getloadavg()[0]
  table = measure(sides(options.peers), options.steps, options.rounds)
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
