"""What a sweep has done so far: `sweep.json`, and a file with the state of each run."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.flax
from safetensors import SafetensorError

from experiments import workdir
from jaxtune import report, sweep, tree

FILE = 'sweep.json'
STATES = 'states'
METRICS = 'metrics.jsonl'


@dataclasses.dataclass
class Candidate:
  """One run of the sweep.

  Attributes:
    number: from 0.
    values: of the searched keys.
    role: 'search', or 'confirm' for the seeds at the end.
    trial: the number of Optuna's trial, if it is one.
    step: steps taken.
    digest: of the file of its state.
    losses: held-out loss at the steps where it was judged.
    scores: its metrics on the test rows, once it has ended.
    dead: whether its loss was no number.
  """

  number: int
  values: dict[str, Any]
  role: str = 'search'
  trial: int | None = None
  step: int = 0
  digest: str = ''
  losses: dict[int, float] = dataclasses.field(default_factory=dict)
  scores: dict[str, float] = dataclasses.field(default_factory=dict)
  dead: bool = False


@dataclasses.dataclass
class Record:
  """All of a sweep that a restart needs.

  Attributes:
    candidates: in the order in which they began.
    asked: how often new ones were proposed.
    confirm: 'best' and 'default': the numbers of their runs at the end.
    lanes: the numbers of those at work where lanes are refilled one by one; None for an idle one.
    cursors: the place in the data after so many steps.
    seconds: that earlier starts took.
  """

  candidates: list[Candidate] = dataclasses.field(default_factory=list)
  asked: int = 0
  confirm: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  lanes: list[int | None] = dataclasses.field(default_factory=list)
  cursors: dict[int, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0

  def of(self, role: str) -> list[Candidate]:
    return [candidate for candidate in self.candidates if candidate.role == role]


def read(folder: pathlib.Path) -> Record:
  """The record in a folder; an empty one where there is none."""
  path = folder / FILE
  if not path.is_file():
    return Record()
  found = workdir.read_json(path)

  def numbered(values: dict[str, Any]) -> dict[int, Any]:
    return {int(step): value for step, value in values.items()}

  candidates = [
    Candidate(**{**one, 'losses': {k: _number(v) for k, v in numbered(one['losses']).items()}})
    for one in found['candidates']
  ]
  return Record(**{**found, 'candidates': candidates, 'cursors': numbered(found['cursors'])})


def write(folder: pathlib.Path, record: Record) -> None:
  """Writes the record, and removes the files of states that it does not name."""
  plain = dataclasses.asdict(record)
  for one in plain['candidates']:
    one['losses'] = {
      step: loss if math.isfinite(loss) else None for step, loss in one['losses'].items()
    }
  workdir.write_json(folder / FILE, plain)
  named = {_place(folder, candidate) for candidate in record.candidates if candidate.digest}
  for path in (folder / STATES).glob('*'):
    if path not in named:
      path.unlink()


def save(folder: pathlib.Path, candidate: Candidate, run: sweep.Lanes, step: int) -> None:
  """Writes the state of a run after so many steps; `write` makes it the one that counts."""
  leaves = dict(zip(tree.paths(run), map(_plain, jax.tree.leaves(run)), strict=True))
  data = safetensors.flax.save(leaves)
  candidate.step, candidate.digest = step, hashlib.blake2b(data, digest_size=16).hexdigest()
  path = _place(folder, candidate)
  path.parent.mkdir(exist_ok=True)
  report.replace_file(path, data)


def ended(run: sweep.Lanes) -> sweep.Lanes:
  """A run that takes no more steps, which needs no state of its rule."""
  return run._replace(state=run.state._replace(opt=()))


def load(folder: pathlib.Path, candidate: Candidate, like: sweep.Lanes) -> sweep.Lanes | None:
  """The state that `save` wrote; None where it is gone or damaged."""
  path = _place(folder, candidate)
  try:
    data = path.read_bytes()
    if hashlib.blake2b(data, digest_size=16).hexdigest() != candidate.digest:
      return None
    held = safetensors.flax.load(data)
  except (OSError, SafetensorError):
    return None
  flat = [held[name] for name in tree.paths(like)]
  found = [_typed(x, wanted) for x, wanted in zip(flat, jax.tree.leaves(like), strict=True)]
  return jax.tree.unflatten(jax.tree.structure(like), found)


def _place(folder: pathlib.Path, candidate: Candidate) -> pathlib.Path:
  return folder / STATES / f'{candidate.number:04d}-{candidate.step}.safetensors'


def _is_key(x: jax.Array) -> bool:
  return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _plain(x: jax.Array) -> jax.Array:
  return jax.random.key_data(x) if _is_key(x) else x


def _typed(x: jax.Array, like: jax.Array) -> jax.Array:
  return jax.random.wrap_key_data(x) if _is_key(like) else x


def _number(value: float | None) -> float:
  return math.nan if value is None else value


def curves(folder: pathlib.Path) -> list[dict[str, float]]:
  """The lines of `metrics.jsonl`: candidate, step, and `loss` or `eval/loss`."""
  path = folder / METRICS
  return report.read_metrics(path) if path.is_file() else []


def cut_curves(folder: pathlib.Path, record: Record) -> None:
  """Leaves out lines of steps that a restart takes again."""
  steps = {candidate.number: candidate.step for candidate in record.candidates}
  kept = [line for line in curves(folder) if line['step'] <= steps.get(int(line['candidate']), 0)]
  report.replace_file(folder / METRICS, ''.join(json.dumps(x) + '\n' for x in kept).encode())


def add_curves(folder: pathlib.Path, lines: Sequence[Mapping[str, float]]) -> None:
  with (folder / METRICS).open('a') as file:
    file.writelines(json.dumps(line) + '\n' for line in lines)
