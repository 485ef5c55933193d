"""K runs end to end: as lanes of one program, as K commands, and one after another in one process.

  python benchmarks/sweep.py --json=sweep.json
  python benchmarks/sweep.py --platform=gpu

Lanes: `python -m experiments.sweep` with a grid of K settings, K lanes, no halving and one seed at
the end, which is among the K: it does the K runs and nothing besides, but for Optuna's study, saved
states, the winner's export and the report. Separate: K times `python -m experiments.finetune`, each
with its checkpoint, export and report; the first compiles, the others find its programs in JAX's
persistent cache. In turn: one process that loads and compiles once and trains one setting after
another (`sides/in_turn.py`). Every side begins with an empty cache of its own.

All sides take the same steps on the same batches and are measured on the same held-out rows, so
their losses, of every step and held out, must agree; the table shows the largest difference. The
fewer the steps, the more of the time is start-up, which lanes have once; `--steps` says.

Aims, over 16 separate runs: a probe and the last two layers 8 times, LoRA on all layers 1.5 times;
on a GPU 4 times with 1 or 2 rows a batch.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from step import SIDES, has_gpu, machine, markdown

ROOT = pathlib.Path(__file__).parents[1]
METHODS = {
  'probe': ('--config.method.name=probe',),
  'last_layers': ('--config.method.name=last_layers', '--config.method.options.layers=2'),
  'lora': ('--config.method.name=lora', '--config.method.rank=16'),
}
SCRIPTS = {'lanes': 'experiments.sweep', 'separate': 'experiments.finetune', 'in turn': 'in_turn'}
PHASES = ('start', 'load', 'features', 'compile', 'begin runs', 'train', 'evaluate', 'other')
RATES = (1e-3, 3e-3, 3e-4, 1e-4)  # the first is the configuration's own
ROWS = {'cpu': 8, 'gpu': 2}  # of a batch
TOLERANCE = 1e-3  # of losses
Losses = dict[tuple[int, int, str], float]  # of a run, after a step, by name


def settings(lanes: int) -> tuple[list[float], list[int]]:
  """Learning rates and seeds, whose product has as many settings as there are lanes."""
  rates = math.gcd(lanes, len(RATES))
  return list(RATES[:rates]), list(range(lanes // rates))


def call(script: str, flags: list[str], platform: str, cache: str) -> dict[str, Any]:
  """The seconds of a process and of its phases."""
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_COMPILATION_CACHE_DIR': cache}
  env |= {'JAX_PLATFORMS': 'cpu'} if platform == 'cpu' else {'CUDA_VISIBLE_DEVICES': '0'}
  began = time.time()
  command = [sys.executable, str(SIDES / 'timed.py'), str(began), script, *flags]
  done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
  wall = time.time() - began
  if done.returncode:
    sys.exit(f'{script} failed:\n{done.stderr[-2000:]}')
  found = json.loads(done.stdout.splitlines()[-1])
  phases = found['seconds']
  phases['other'] += wall - sum(phases.values())  # the end of the process
  return {**found, 'wall': wall}


def curves(folder: pathlib.Path, number: int = 0) -> Losses:
  """The losses of the runs of a folder, or of the one run of that number."""
  found: Losses = {}
  for text in (folder / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(text)
    run = int(line.get('candidate', number))
    found |= {
      (run, int(line['step']), name): line[name] for name in ('loss', 'eval/loss') if name in line
    }
  return found


def measure(side: str, method: str, lanes: int, options: argparse.Namespace) -> dict[str, Any]:
  """All K runs of a side: seconds, losses, seconds of the phases of all its processes."""
  rates, seeds = settings(lanes)
  flags = [
    f'--config={options.config}',
    *METHODS[method],
    f'--config.optim.lr={RATES[0]}',
    '--config.seed=0',
    '--config.data.seed=0',
    f'--config.data.valid={options.rows}',
    '--config.data.test=0',
    f'--config.train.steps={options.steps}',
    f'--config.train.batch_size={options.batch_size}',
    '--config.train.eval_every=0',
    '--config.train.save_every=0',
  ]
  grid = [
    '--config.sweep.sampler=grid',
    f'--config.sweep.candidates={lanes}',
    f'--config.sweep.lanes={lanes}',
    '--config.sweep.factor=1.0',
    '--config.sweep.seeds=1',
    '--config.sweep.space='
    f'("optim.lr {", ".join(map(repr, rates))}", "seed {", ".join(map(str, seeds))}")',
  ]
  runs = [grid]
  if side == 'separate':
    pairs = itertools.product(rates, seeds)
    runs = [[f'--config.optim.lr={rate}', f'--config.seed={seed}'] for rate, seed in pairs]
    runs = runs[: options.separate or lanes]
  processes, losses = [], Losses()
  with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as place:
    for number, own in enumerate(runs):
      folder = pathlib.Path(place) / str(number)
      given = [*flags, f'--workdir={folder}', *own]
      processes.append(call(SCRIPTS[side], given, options.platform, cache))
      losses |= curves(folder, number)
  walls = [one['wall'] for one in processes]
  left = lanes - len(runs) if side == 'separate' else 0
  seconds = sum(walls) + left * statistics.mean(walls[1:] or walls)
  print(f'{method}, {lanes} runs, {side}: {seconds:.1f} s', file=sys.stderr)
  return {
    'method': method,
    'lanes': lanes,
    'side': side,
    'seconds': seconds,
    'losses': losses,
    'processes': processes,
  }


def difference(ours: Losses, theirs: Losses) -> float:
  """The largest, over the runs and steps that both have."""
  return max(abs(ours[where] - theirs[where]) for where in ours.keys() & theirs.keys())


def table(found: list[dict[str, dict[str, Any]]]) -> str:
  """A line a method and K; ratios are over the lanes, so above 1 lanes are faster."""
  lines = [
    ['method', 'K', 'lanes s', 'separate s', 'in turn s', 'separate / lanes', 'in turn / lanes']
    + ['loss differs by']
  ]
  for row in found:
    ours = row['lanes']
    times = {side: row[side]['seconds'] for side in SCRIPTS}
    lines.append(
      [ours['method'], str(ours['lanes'])]
      + [f'{seconds:.1f}' for seconds in times.values()]
      + [f'{times[side] / times["lanes"]:.2f}' for side in SCRIPTS if side != 'lanes']
      + [f'{row["differs"]:.0e}']
    )
  return markdown(lines)


def profile(found: list[dict[str, dict[str, Any]]]) -> str:
  """Where the time of each process goes; of the separate ones the median."""
  lines = [['method', 'K', 'process', *(f'{phase} s' for phase in PHASES)]]
  for row in found:
    for side, one in row.items():
      if side not in SCRIPTS:
        continue
      phases = [process['seconds'] for process in one['processes']]
      values = [statistics.median(p.get(phase, 0) for p in phases) for phase in PHASES]
      name = side if side != 'separate' else 'a separate one'
      lines.append([one['method'], str(one['lanes']), name, *(f'{x:.1f}' for x in values)])
  return markdown(lines)


def compare(method: str, lanes: int, options: argparse.Namespace) -> dict[str, Any]:
  """The three sides, and by how much their losses differ."""
  row: dict[str, Any] = {side: measure(side, method, lanes, options) for side in SCRIPTS}
  ours, *others = (row[side].pop('losses') for side in SCRIPTS)
  row['differs'] = max(difference(ours, theirs) for theirs in others)
  return row


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/quickstart.py', help='what all runs are of')
  parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
  parser.add_argument('--lanes', nargs='+', type=int, default=[4, 16], help='K')
  parser.add_argument('--steps', type=int, default=12, help='of a run')
  parser.add_argument('--batch_size', type=int, help='rows of a step; 8, on a GPU 2')
  parser.add_argument('--rows', type=int, default=128, help='held out')
  parser.add_argument('--separate', type=int, help='commands that are run, the others reckoned')
  parser.add_argument('--platform', choices=ROWS, default='cpu')
  parser.add_argument('--json', type=pathlib.Path, help='where to write all figures')
  options = parser.parse_args()
  options.batch_size = options.batch_size or ROWS[options.platform]
  if min(options.steps, options.batch_size, options.rows, *options.lanes) < 1:
    parser.error('--lanes, --steps, --batch_size and --rows must be at least 1')
  if options.separate is not None and options.separate < 2:
    parser.error('--separate must be at least 2: the first command compiles for the others')
  if options.platform == 'gpu' and not has_gpu():
    print('JAX finds no GPU here: --platform=gpu is skipped.')
    return
  load = os.getloadavg()[0]
  print('first a run of each side, so that all files have been read', file=sys.stderr)
  compare('probe', 1, argparse.Namespace(**{**vars(options), 'steps': 1}))
  found = [compare(method, k, options) for method in options.methods for k in options.lanes]
  versions = found[0]['lanes']['processes'][0]['versions']
  print(
    f'{options.steps} steps of {options.batch_size} rows, {options.rows} rows held out\n\n'
    f'{table(found)}\n\n{profile(found)}\n\n{machine()}; load {load:.1f}; '
    f'{", ".join(" ".join(item) for item in versions.items())}'
  )
  if load > 0.5:
    print('The machine was busy when this began: the times are too high.')
  if options.separate:
    print(
      f'At most {options.separate} separate commands were run; the others are reckoned from them.'
    )
  if options.json:
    record = {'machine': machine(), 'load': load, 'rows': found, 'steps': options.steps}
    options.json.write_text(json.dumps(record, indent=2) + '\n')
  if any(row['differs'] > TOLERANCE for row in found):
    sys.exit(f'The losses differ by more than {TOLERANCE:g}: the sides did not do the same work.')


if __name__ == '__main__':
  main()
