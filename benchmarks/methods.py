"""A training step of each fine-tuning method beside PEFT's, on CPU, as seconds, memory and ratios.

  python benchmarks/methods.py --peers=<virtual environment with torch, transformers, peft>

The model, the tokens and the rules of the comparison are those of benchmarks/step.py; the options
of the methods are in benchmarks/sides/common.py. The first losses must agree where a method starts
as its base.
"""

import argparse
import json
import os
import pathlib
import sys
from typing import Any

import step
from sides.common import METHODS


def sides(methods: list[str], peers: pathlib.Path | None) -> list[step.Side]:
  """Two rows a method."""
  rows = []
  for method in methods:

    def command(python: Any, script: str, *options: str, method: str = method) -> list[str]:
      file = step.SIDES / f'{script}_step.py'
      return [str(python), str(file), f'--method={method}', *options]

    rows.append(step.Side('jaxtune', method, [command(sys.executable, 'jaxtune')]))
    if peers is not None:
      threads = f'--threads={os.cpu_count() or 1}'
      python = peers / 'bin' / 'python'
      name = 'torch' if method == 'full' else 'PEFT'
      rows.append(step.Side(name, method, [command(python, 'torch', threads)]))
  return rows


def render(table: list[dict[str, Any]]) -> str:
  """Markdown: the side's own LoRA is the measure of its other methods; peer over jaxtune last."""
  head = [
    'method',
    'side',
    'min s',
    'of its LoRA',
    'peak MB',
    'loss 1',
    'time ratio',
    'memory ratio',
  ]
  lines = [head]

  def best(name: str, method: str) -> dict[str, Any] | None:
    found = (row for row in table if (row['name'] == name) and row['method'] == method)
    return next(found, None)

  for row in table:
    low = min(row['seconds'])
    own = best('PEFT' if row['name'] == 'torch' else row['name'], 'lora')
    ours = best('jaxtune', row['method'])
    lines.append(
      [
        row['method'],
        row['name'],
        f'{low:.3f}',
        f'{low / min(own["seconds"]):.2f}' if own else '-',
        f'{row["peak_mb"]:,.0f}',
        f'{row["losses"][0]:.4f}',
        f'{low / min(ours["seconds"]):.2f}' if ours else '-',
        f'{row["peak_mb"] / ours["peak_mb"]:.2f}' if ours else '-',
      ]
    )
  return step.markdown(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--peers', type=pathlib.Path, help='virtual environment of the peers')
  parser.add_argument('--methods', default=','.join(METHODS), help='which, with commas')
  parser.add_argument('--steps', type=int, default=5, help='timed steps a process')
  parser.add_argument('--rounds', type=int, default=2, help='processes a side')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  methods = options.methods.split(',')
  for name in methods:
    if name not in METHODS:
      parser.error(f'--methods: {name!r} is unknown; known: {", ".join(METHODS)}')
  if options.peers and not (options.peers / 'bin' / 'python').exists():
    parser.error(f'--peers: {options.peers} has no bin/python; give a virtual environment')
  load = os.getloadavg()[0]
  table = step.measure(sides(methods, options.peers), options.steps, options.rounds)
  if not table:
    sys.exit('nothing ran')
  print(render(table))
  print(
    f'\nN = {options.rounds * options.steps} timed steps a row; {step.machine()}; load {load:.1f}'
  )
  for name in dict.fromkeys(row['name'] for row in table):
    versions = {k: v for row in table if row['name'] == name for k, v in row['versions'].items()}
    print(f'{name}: {", ".join(" ".join(item) for item in versions.items())}')
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if options.json:
    record = {'machine': step.machine(), 'load': load, 'rows': table}
    options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
