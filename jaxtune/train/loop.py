"""The loop around the step: one hot line, and what happens every so often around it."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtune import tree
from jaxtune.train import checkpoint
from jaxtune.train.program import Program
from jaxtune.train.rollout import Roll
from jaxtune.train.state import State
from jaxtune.typing import Batch, InputError, Params

Line = dict[str, float]  # 'step' and the metrics of that step


def tokens_of(batch: Batch) -> int:
  """The real tokens of a host batch, in all its parts."""
  parts = [tokens_of(part) for part in batch.values() if isinstance(part, Mapping)]
  return int(np.sum(batch.get('mask', 0))) + sum(parts)


def fit(
  program: Program,
  batches: Any,
  *,
  steps: int,
  state: State | None = None,
  evaluate: Callable[[Any], Mapping[str, float]] | None = None,
  weights: Callable[[State], Params] = lambda state: state.trainable,
  eval_every: int = 0,
  save_every: int = 0,
  checkpoints: ocp.CheckpointManager | None = None,
  score: Callable[[Mapping[str, float]], float] = lambda metrics: -metrics['loss'],
  log: Callable[[Line], None] = lambda line: None,
  stop: Callable[[], bool] = lambda: False,
  roll: Roll | None = None,
  updates: int = 1,
) -> State:
  """Takes steps until `state.step` is `steps`, or until `stop()` says so.

  A state that was restored together with the cursor of `batches` goes on exactly where it was:
  the end is bitwise that of a run never stopped. A checkpoint is written every `save_every` steps,
  after an evaluation better than all before, at the end, and when stopped.

  Args:
    program: from `prepare`.
    batches: an endless iterator of host batches with `get_state` (see `data.batches`).
    steps: the number of the last step.
    state: from `checkpoint.restore`; the program's first state by default. It is donated.
    evaluate: `(trainable) -> metrics`, called every `eval_every` steps and at the end.
    weights: what is evaluated, as `lambda s: optim.averaged(s.opt, s.trainable)`.
    eval_every: steps between evaluations; 0 for the end only.
    save_every: steps between checkpoints; 0 for the end only.
    checkpoints: where to save; None to save nothing.
    score: what makes one evaluation better than another, greater is better.
    log: gets a line for every step (`step`, `loss`, ..., `tokens_per_second`) and for every
      evaluation (`step`, `eval/loss`, ...).
    stop: asked after every step that ends the use of a batch.
    roll: `(params, steps taken, batch) -> batch, metrics`, from `train.rollout`: makes what a step
      learns from of what `batches` gives, under the parameters before the step.
    updates: steps on each batch that `roll` makes. They are not saved in between, so that a resumed
      run never needs the parameters that drew its answers.

  Raises:
    InputError: the loss is not a finite number (and the rule is no `optim.skip_spikes`); the
      checkpoints on disk are from before that. Or a number of steps that is no multiple of
      `updates`.
  """
  state = program.state if state is None else state
  numbers = {'steps': steps, 'eval_every': eval_every, 'save_every': save_every}
  for name, number in (numbers | {'the step to go on from': int(state.step)}).items():
    if number % updates:
      raise InputError(f'{name} is {number}; it must be a multiple of updates, which is {updates}')
  best = checkpoint.best(checkpoints) if checkpoints else None
  pending: tuple[int, Any, Mapping[str, float], int] | None = None
  rolled: Mapping[str, float] = {}
  clock = time.perf_counter()

  def require_finite(name: str, value: float, number: int) -> None:
    if not math.isfinite(value):
      kept = checkpoints.latest_step() if checkpoints else None
      raise InputError(
        f'the {name} is {value} at step {number}; '
        + (f'the last good checkpoint is that of step {kept}' if kept else 'nothing was saved yet')
        + '; lower optim.lr, lengthen optim.warmup, or set optim.clip_norm'
      )

  def flush() -> None:
    nonlocal pending, clock
    if pending is None:
      return
    number, metrics, own, tokens = pending
    pending = None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    elapsed, clock = time.perf_counter() - clock, time.perf_counter()
    # With a gradient that is no number the loss still is one, and what is saved no longer.
    if 'spikes/skipped' not in values:  # a rule that skips broken gradients goes on
      for name in ('loss', 'grad_norm'):
        require_finite(name, values[name], number)
    log({'step': number, **values, **own, 'tokens_per_second': tokens / elapsed})

  for number in range(int(state.step) + 1, steps + 1):
    if (number - 1) % updates == 0:
      batch = next(batches)
      if roll is not None:
        params = tree.combine(state.trainable, program.frozen)
        batch, rolled = roll(params, number - 1, batch)
        del params  # the step donates them
    state, metrics = program.step(state, program.frozen, program.place(batch))
    flush()  # of the step before: reading it waits no longer than this step's start
    pending = (number, metrics, rolled, tokens_of(batch))
    last, stopped = number == steps, number % updates == 0 and stop()
    due = last or (eval_every and number % eval_every == 0)
    save = last or stopped or (save_every and number % save_every == 0)
    if not (due or save):
      continue
    flush()
    value = None
    if evaluate and due:
      result = evaluate(weights(state))
      log({'step': number, **{f'eval/{name}': mean for name, mean in result.items()}})
      require_finite('eval/loss', result['loss'], number)
      value = score(result)
      if best is None or value > best[1]:
        best, save = (number, value), True
    if checkpoints and save:
      checkpoint.save(checkpoints, state, batches.get_state(), value)
    clock = time.perf_counter()  # evaluation and saving do not count as training time
    if stopped:
      break
  return state
