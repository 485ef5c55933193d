"""Lanes that are refilled one by one, as soon as their runs are judged or dead (ASHA)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.sweeping import records, search
from experiments.sweeping.records import Candidate
from experiments.sweeping.search import Show, Sweep, Wave
from jaxtune import sweep


def refill(it: Sweep, show: Show, stop: Callable[[], Any]) -> bool:
  """Works while a lane has something to do; False where `stop` said so before.

  Every lane takes the batches of a run alone, wherever the others are. What is decided depends on
  losses alone, and all lanes are saved where one ends, so that a restart decides the same.
  """
  record, runs = it.record, it.runs
  if it.config.sweep.scheduler != 'asha' or record.confirm:
    return True
  record.cursors.setdefault(0, runs.given.batches.get_state())
  search.tell(it)
  record.lanes = record.lanes or [None] * it.config.sweep.lanes
  idle, _ = runs.one
  lanes = runs.whole.load([idle if n is None else load(it, n) for n in record.lanes])
  while True:
    for lane, number in enumerate(record.lanes):
      if number is None and (number := following(it)) is not None:
        record.lanes[lane] = number
        lanes = sweep.put(lanes, lane, load(it, number))
    busy = {x: record.candidates[n] for x, n in enumerate(record.lanes) if n is not None}
    if not busy:
      return True
    lanes = work(it, lanes, busy, show, stop)
    if stop():
      return False


def load(it: Sweep, number: int) -> sweep.Lanes:
  """The run as it was saved; one whose file is damaged begins anew."""
  candidate = it.record.candidates[number]
  found = records.load(it.folder, candidate, it.runs.one[0]) if candidate.step else None
  if found is None:
    candidate.step, candidate.digest, candidate.losses = 0, '', {}
    found, _ = it.runs.start(candidate.values)
  return found


def following(it: Sweep) -> int | None:
  """The candidate for a free lane: one that is sent on, else a new one, else None."""
  at_work = {number for number in it.record.lanes if number is not None}
  results: list[dict[int, float | None]] = [{} for _ in it.rungs]
  for candidate in it.record.of('search'):
    for rung, results_there in zip(it.rungs, results, strict=True):
      if rung in candidate.losses:
        loss = candidate.losses[rung]
        results_there[candidate.number] = -loss if math.isfinite(loss) else -math.inf
      elif candidate.number in at_work:
        results_there[candidate.number] = None
        break
  sent = sweep.promotion(results, it.config.sweep.factor)
  if sent is not None:
    return sent[0]
  if search.missing(it) > 0:
    search.propose(it, 1)
  new = [c.number for c in it.record.of('search') if not c.losses and c.number not in at_work]
  return new[0] if new else None


def work(
  it: Sweep,
  lanes: sweep.Lanes,
  busy: dict[int, Candidate],
  show: Show,
  stop: Callable[[], Any],
) -> sweep.Lanes:
  """Steps up to the next rung of any run, or the death of one; those are judged and leave."""
  record = it.record
  goals = {lane: next(r for r in it.rungs if r > c.step) for lane, c in busy.items()}
  count = min(goal - busy[lane].step for lane, goal in goals.items())
  steps = [busy[lane].step if lane in busy else 0 for lane in range(len(record.lanes))]
  lines: list[dict[str, float]] = []
  show.begins(Wave(list(busy.values()), 0, count))

  def done(taken: int, losses: np.ndarray) -> Any:
    own = losses[list(busy)]
    show.step(taken, own)
    for candidate, loss in zip(busy.values(), own, strict=True):
      step = candidate.step + taken
      if step % it.config.train.log_every == 0 or step in it.rungs:
        lines.append({'candidate': candidate.number, 'step': step, 'loss': float(loss)})
    return stop() or not np.isfinite(own).all()

  lanes, taken, losses = it.runs.leg(lanes, steps, count, record.cursors, done)
  for lane, candidate in busy.items():
    run = sweep.take(lanes, lane)
    step = candidate.step + taken
    records.save(it.folder, candidate, records.ended(run) if step == it.rungs[-1] else run, step)
    candidate.dead = not math.isfinite(losses[lane])
    if candidate.dead:
      candidate.losses[goals[lane]] = math.nan
    elif candidate.step == goals[lane]:
      search.judge(it, Wave([candidate], 0, candidate.step), [run], lines)
    if goals[lane] in candidate.losses:
      record.lanes[lane] = None
      show.judged(Wave([candidate], 0, candidate.step))
  records.add_curves(it.folder, lines)
  records.write(it.folder, record)
  search.tell(it)
  return lanes
