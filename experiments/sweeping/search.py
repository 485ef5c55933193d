"""Waves of runs: candidates up the rungs, then the best and the default setting over seeds."""

import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.keys import Config
from experiments.sweeping import records
from experiments.sweeping import space as spaces
from experiments.sweeping import study as studies
from experiments.sweeping.records import Candidate, Record
from experiments.sweeping.runs import Runs
from experiments.sweeping.space import Dimension
from jaxtune import sweep
from jaxtune.typing import InputError


class Wave(NamedTuple):
  """Runs that go from one step to another side by side."""

  members: list[Candidate]
  start: int
  end: int


class Show(Protocol):
  """What a person sees meanwhile."""

  def begins(self, wave: Wave) -> None: ...
  def step(self, step: int, losses: np.ndarray) -> None: ...
  def judged(self, wave: Wave) -> None: ...


class Sweep(NamedTuple):
  """A sweep at work.

  Attributes:
    config: of the default setting.
    space: what is searched.
    runs: what all runs share.
    rungs: steps at which candidates are judged.
    folder: the work directory.
    study: Optuna's.
    record: what has been done; it changes.
  """

  config: Config
  space: list[Dimension]
  runs: Runs
  rungs: list[int]
  folder: pathlib.Path
  study: Any
  record: Record

  @property
  def wanted(self) -> int:
    """Candidates that are to be judged."""
    return spaces.candidates(self.config, self.space)


def search(it: Sweep, show: Show, stop: Callable[[], Any]) -> bool:
  """Works until there is nothing left to do; False where `stop` said so before.

  Raises:
    InputError: no candidate keeps a loss that is a number.
  """
  it.record.cursors.setdefault(0, it.runs.given.batches.get_state())
  tell(it)
  while True:
    fresh = missing(it)
    if fresh:
      propose(it, fresh)
    wave = next_wave(it)
    if wave is None:
      if it.record.confirm:
        test(it)
        return True
      confirm(it)
      continue
    show.begins(wave)
    if not work(it, wave, show, stop):
      return False
    tell(it)
    show.judged(wave)


def missing(it: Sweep) -> int:
  """How many candidates are to begin now: as many as there are lanes."""
  found = it.record.of('search')
  alive = [candidate for candidate in found if not candidate.dead]
  waiting = [candidate for candidate in alive if it.rungs[0] not in candidate.losses]
  if it.record.confirm or len(found) >= 2 * it.wanted:  # dead ones are replaced so often
    return 0
  return min(it.wanted - len(alive), it.config.sweep.lanes - len(waiting))


def propose(it: Sweep, count: int) -> None:
  found = it.record.of('search')
  if it.config.sweep.sampler == 'grid':
    count = min(count, it.wanted - len(found))  # a grid has no others for dead ones
  if count < 1:
    return
  asked = studies.ask(it.study, it.config, it.space, count, it.record.asked, len(found), it.folder)
  for trial, values in asked:
    it.record.candidates.append(Candidate(len(it.record.candidates), values, trial=trial))
  it.record.asked += 1
  records.write(it.folder, it.record)


def next_wave(it: Sweep) -> Wave | None:
  """The lowest rung first, and what was interrupted before all."""
  if it.record.confirm:
    return _wave(it, it.record.of('confirm'), it.rungs[-1])
  for k, rung in enumerate(it.rungs):
    found = _wave(it, reaching(it, k), rung)
    if found:
      return found
  return None


def reaching(it: Sweep, k: int) -> list[Candidate]:
  """The candidates that rung k is for: all, or the best of the rung before."""
  found = it.record.of('search')
  if k == 0:
    return found
  before = it.rungs[k - 1]
  scores = {c.number: -c.losses[before] for c in found if before in c.losses and not c.dead}
  if not scores:
    return []
  best = sweep.survivors(scores, it.config.sweep.factor)
  return [it.record.candidates[number] for number in best]


def _wave(it: Sweep, candidates: list[Candidate], end: int) -> Wave | None:
  left = [c for c in candidates if not c.dead and end not in c.losses]
  if not left:
    return None
  start = max(c.step for c in left)
  return Wave([c for c in left if c.step == start][: it.config.sweep.lanes], start, end)


def work(it: Sweep, wave: Wave, show: Show, stop: Callable[[], Any]) -> bool:
  """Takes the steps of a wave and judges it; False where it was stopped before its end."""
  like, _ = it.runs.one
  members, step = wave.members, wave.start
  states = []
  for candidate in members:
    run = it.runs.start(candidate.values)[0] if candidate.step == 0 else None
    run = run or records.load(it.folder, candidate, like)
    if run is None:
      print(f'the state of candidate {candidate.number} is damaged; it begins anew')
      candidate.step, candidate.digest, candidate.losses = 0, '', {}
      records.write(it.folder, it.record)
      return True
    states.append(run)
  every = it.config.train.save_every or wave.end
  lines: list[dict[str, float]] = []

  def seen(step: int, losses: np.ndarray) -> None:
    show.step(step, losses)
    if step % it.config.train.log_every == 0 or step == wave.end:
      for candidate, loss in zip(members, losses, strict=True):
        lines.append({'candidate': candidate.number, 'step': step, 'loss': float(loss)})

  while step < wave.end:
    end = min(wave.end, step - step % every + every)
    states, step = it.runs.advance(states, step, end, it.record.cursors[step], seen, stop)
    it.record.cursors[step] = it.runs.given.batches.get_state()
    if step == wave.end:
      judge(it, wave, states, lines)
    records.add_curves(it.folder, lines)
    lines.clear()
    for candidate, run in zip(members, states, strict=True):
      kept = records.ended(run) if step == it.rungs[-1] else run
      records.save(it.folder, candidate, kept, step)
    records.write(it.folder, it.record)
    if step < wave.end and stop():
      return False
  return True


def judge(it: Sweep, wave: Wave, states: list[sweep.Lanes], lines: list[dict[str, float]]) -> None:
  """Held-out losses, of all members on the same rows."""
  found = it.runs.measure(states, 'valid')
  for candidate, metrics in zip(wave.members, found, strict=True):
    candidate.losses[wave.end] = metrics['loss']
    candidate.dead = not math.isfinite(metrics['loss'])
    lines.append({'candidate': candidate.number, 'step': wave.end, 'eval/loss': metrics['loss']})


def tell(it: Sweep) -> None:
  """Optuna knows what the record knows."""
  found = it.record.of('search')
  behind = set()
  for k, rung in enumerate(it.rungs[:-1]):
    judged = [c for c in found if rung in c.losses]
    if any(not c.dead and rung not in c.losses for c in reaching(it, k)) or missing(it):
      break
    behind |= {c.number for c in judged} - {c.number for c in reaching(it, k + 1)}
  studies.tell(it.study, it.record.candidates, behind, it.rungs[-1], it.folder)


def best(it: Sweep, candidates: Sequence[Candidate]) -> Candidate:
  """The one with the lowest held-out loss at the end.

  Raises:
    InputError: none reached it.
  """
  ended = [c for c in candidates if it.rungs[-1] in c.losses and not c.dead]
  if not ended:
    raise InputError(
      f'all {len(candidates)} runs ended with a loss that is no number; try lower learning rates'
    )
  return min(ended, key=lambda c: (c.losses[it.rungs[-1]], c.number))


def confirm(it: Sweep) -> None:
  """The best setting and the default one, each with several seeds; runs that are there count."""
  first = it.config.seed
  default = spaces.values_of(it.config, it.space)
  settings = {'best': best(it, it.record.of('search')).values, 'default': default}
  if {**settings['best'], 'seed': 0} == {**default, 'seed': 0}:
    del settings['best']
  for role, values in settings.items():
    numbers = []
    for seed in range(first, first + it.config.sweep.seeds):
      wanted = {**values, 'seed': seed}
      there = next((c for c in it.record.candidates if _same(it, c, wanted)), None)
      if there is None:
        there = Candidate(len(it.record.candidates), wanted, 'confirm')
        it.record.candidates.append(there)
      numbers.append(there.number)
    it.record.confirm[role] = numbers
  records.write(it.folder, it.record)


def _same(it: Sweep, candidate: Candidate, values: dict[str, Any]) -> bool:
  whole = candidate.role == 'confirm' or it.rungs[-1] in candidate.losses
  return whole and {'seed': it.config.seed, **candidate.values} == values


def test(it: Sweep) -> None:
  """The metrics of all seeds on the test rows, which choose nothing."""
  numbers = {number for runs in it.record.confirm.values() for number in runs}
  left = [c for c in map(it.record.candidates.__getitem__, sorted(numbers)) if not c.dead]
  if not it.runs.given.held_out['test'] or all(c.scores for c in left):
    return
  for first in range(0, len(left), it.config.sweep.lanes):
    members = left[first : first + it.config.sweep.lanes]
    found = it.runs.measure([state(it, c) for c in members], 'test')
    for candidate, metrics in zip(members, found, strict=True):
      candidate.scores = metrics
  records.write(it.folder, it.record)


def state(it: Sweep, candidate: Candidate) -> sweep.Lanes:
  """The run as it ended.

  Raises:
    InputError: its file is damaged.
  """
  found = records.load(it.folder, candidate, records.ended(it.runs.one[0]))
  if found is None:
    raise InputError(
      f'the state of candidate {candidate.number} in {it.folder / records.STATES} is damaged; '
      'start anew in another folder'
    )
  return found


def held_out(it: Sweep, role: str) -> list[float]:
  """The held-out loss at the end of each seed of a setting; of a dead one infinity."""
  found = [it.record.candidates[number] for number in it.record.confirm[role]]
  return [math.inf if c.dead else c.losses[it.rungs[-1]] for c in found]


def winner(it: Sweep) -> tuple[str, Candidate]:
  """(the setting with the lower mean held-out loss over seeds, the best of its runs)."""
  role = min(it.record.confirm, key=lambda role: statistics.fmean(held_out(it, role)))
  return role, best(it, [it.record.candidates[number] for number in it.record.confirm[role]])
