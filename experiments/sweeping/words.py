"""What a sweep says."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.keys import Config
from experiments.sweeping import settings
from experiments.sweeping import space as spaces
from experiments.sweeping.runs import Runs
from experiments.sweeping.space import Dimension
from jaxtune import plan as plans
from jaxtune import sweep, tree


def values(given: Mapping[str, Any]) -> str:
  """`lr 1.2e-3, rank 16`."""
  return ', '.join(f'{name.rpartition(".")[2]} {short(value)}' for name, value in given.items())


def short(value: Any) -> str:
  return f'{value:.3g}' if isinstance(value, float) else str(value)


def plan(config: Config, space: Sequence[Dimension], runs: Runs) -> str:
  """What would run, and the memory that it takes."""
  c, job = config.sweep, runs.job
  rungs = settings.rungs(config, job.steps)
  program = runs.whole
  one, base = runs.one
  forecast = plans.forecast(program.compiled, program.lanes.state, program.base, program.batch)
  shared = sweep.shared_layers(job.params)
  count = spaces.candidates(config, space)
  lines = [f'{count} candidates by {c.sampler}, {c.lanes} side by side ({c.scheduler}):']
  lines += [f'  {dimension.key} {dimension.text()}' for dimension in space]
  lines.append(f'judged after {", ".join(map(str, rungs))} steps')
  if shared and runs.given.model is job.model and c.scheduler == 'halving':
    lines.append(f'layers 0 to {shared - 1} run once for all lanes')
  lines.append(
    f'memory {megabytes(forecast.total)}: one base of {megabytes(tree.size(base))}, '
    f'{c.lanes} lanes of {megabytes(tree.size(one))}'
  )
  return '\n'.join(lines)


def megabytes(size: int) -> str:
  return f'{size / 2**20:,.1f} MB'


def judged(it: Any, wave: Any) -> str:
  """The best of a wave."""
  alive = [c for c in wave.members if not c.dead]
  dead = len(wave.members) - len(alive)
  best = min(alive, key=lambda c: c.losses.get(wave.end, np.inf), default=None)
  said = f'step {wave.end}: {len(wave.members)} runs'
  if best is not None and wave.end in best.losses:
    said += f', the best is {best.number} ({values(best.values)}) at {best.losses[wave.end]:.4f}'
  return said + (f'; {dead} died' if dead else '')


def end(folder: pathlib.Path, headline: str) -> None:
  """The last lines of a finished sweep."""
  print(f'report   {folder / "report.html"}')
  print(f'export   {folder / "export"}')
  print(f'again    {folder / "winner.py"}')
  print(headline)
