"""Greedy text from one prompt on CPU, jaxtune beside torch, as tokens a second and ratios.

  python benchmarks/generate.py --model=<GGUF file or folder> --peers=<virtual environment>

The weights of a GGUF file or folder are written once as a float32 folder, from which each side
loads them in a process of its own: jaxtune in this interpreter, Transformers' `generate` (torch) in
the peers', with one thread and with all. Both must write the same tokens. Rounds visit the sides by
turns, so that a disturbance hits all alike.

A token needs every weight once, so bytes of weights * tokens/s is what is read from memory; its
share of what a sum over the same weights reads per second says how near the limit a side is.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from step import machine, run

from jaxtune import interop

SIDES = pathlib.Path(__file__).parent / 'sides'


def measure(commands: dict[str, list[str]], rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
  """What each side measured, its rounds together; a side that does not run is left out."""
  found: dict[str, dict[str, Any]] = {}
  broken: set[str] = set()
  for turn in range(rounds):
    for name, command in commands.items():
      if name in broken:
        continue
      print(f'round {turn + 1}/{rounds}: {name}', file=sys.stderr)
      result = run(command, repeats)
      if isinstance(result, str):
        print(f'{name} left out: {result}')
        broken.add(name)
        continue
      known = found.setdefault(name, {**result, 'first': [], 'whole': []})
      for key in ('first', 'whole'):
        known[key] += result[key]
      if 'read_seconds' in result:
        known['read_seconds'] = min(known['read_seconds'], result['read_seconds'])
  return found


def render(found: dict[str, dict[str, Any]], bandwidth: float, size: int) -> str:
  """A Markdown table; ratios are jaxtune over the side, so above 1 jaxtune is faster."""
  head = ['side', 'tokens/s', 'median', 'after the first', 'ratio', 'GB/s', 'share', 'same tokens']
  lines = [head, ['---'] * len(head)]
  ours = found['jaxtune']
  for name, row in found.items():
    count = len(row['tokens'])
    best, after = count / min(row['whole']), (count - 1) / (min(row['whole']) - min(row['first']))
    lines.append(
      [
        name,
        f'{best:.1f}',
        f'{count / statistics.median(row["whole"]):.1f}',
        f'{after:.1f}',
        f'{min(row["whole"]) / min(ours["whole"]):.2f}',
        f'{after * size / 1e9:.1f}',
        f'{after * size / bandwidth:.0%}',
        f'{agreement(row["tokens"], ours["tokens"])} of {count}',
      ]
    )
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def agreement(a: list[int], b: list[int]) -> int:
  """How many tokens are the same before the first that is not."""
  return next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peers', type=pathlib.Path, help='virtual environment of the peers')
  parser.add_argument('--model', required=True, help='GGUF file or folder of a decoder')
  parser.add_argument('--prompt', default='Once upon a time', help='text to go on from')
  parser.add_argument('--tokens', type=int, default=64, help='new tokens')
  parser.add_argument('--repeats', type=int, default=3, help='timed texts a process')
  parser.add_argument('--rounds', type=int, default=2, help='processes a side')
  parser.add_argument('--dtype', default='float32', help='of the weights, on every side')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  if options.tokens < 2 or options.repeats < 1 or options.rounds < 1:
    parser.error('--tokens must be at least 2, --repeats and --rounds at least 1')
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder:
    model, params = interop.load(options.model, dtype='float32')
    interop.save_hf(folder + '/model', model, params)
    prompt = interop.load_tokenizer(options.model).encode(options.prompt).ids
    arguments = [
      f'--folder={folder}/model',
      f'--prompt={prompt}',
      f'--tokens={options.tokens}',
      f'--dtype={options.dtype}',
    ]
    commands = {'jaxtune': [sys.executable, str(SIDES / 'jaxtune_generate.py'), *arguments]}
    for threads in sorted({1, os.cpu_count() or 1}) if options.peers else ():
      python = str(options.peers / 'bin' / 'python')
      commands[f'torch, threads {threads}'] = [
        python,
        str(SIDES / 'torch_generate.py'),
        *arguments,
        f'--threads={threads}',
      ]
    found = measure(commands, options.rounds, options.repeats)
  if 'jaxtune' not in found:
    sys.exit('jaxtune did not run')
  size = found['jaxtune']['bytes']
  bandwidth = size / found['jaxtune']['read_seconds']
  print(render(found, bandwidth, size))
  print(
    f'\n{options.tokens} tokens behind {len(prompt)}, {options.dtype}, {size / 1e6:.0f} MB of '
    f'weights, read at {bandwidth / 1e9:.1f} GB/s by a sum; N = '
    f'{options.rounds * options.repeats} texts a row; {machine()}; load {load:.1f}'
  )
  for name, row in found.items():
    print(f'{name}: {", ".join(" ".join(item) for item in row["versions"].items())}')
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if options.json:
    record = {'machine': machine(), 'load': load, 'bandwidth': bandwidth, 'sides': found}
    options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
