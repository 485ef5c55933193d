"""The loop around the step: one hot line, and what happens every so often around it."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxtune import optim, tree
from jaxtune.train import checkpoint
from jaxtune.train.ahead import Ahead, tokens_of
from jaxtune.train.checkpoint import Checkpoints
from jaxtune.train.program import Program
from jaxtune.train.rollback import go_back
from jaxtune.train.rollout import Roll
from jaxtune.train.state import State
from jaxtune.typing import InputError, Params

Line = dict[str, float]  # 'step' and the metrics of that step


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
  patience: int = 0,
  rollback: int = 0,
  rollbacks: tuple[int, int] = (0, 0),
  checkpoints: Checkpoints | None = None,
  score: Callable[[Mapping[str, float]], float] = lambda metrics: -metrics['loss'],
  log: Callable[[Line], None] = lambda line: None,
  stop: Callable[[], Any] = lambda: False,
  roll: Roll | None = None,
  updates: int = 1,
) -> State:
  """Takes steps until `state.step` is `steps`, nothing gets better, or `stop()` says so.

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
    patience: evaluations without a better one after which the run ends; 0 for never. It is counted
      by step numbers, so it needs no memory besides the checkpoint of the best.
    rollback: steps in a row that `optim.skip_spikes` skips, after which the run goes back to the
      newest checkpoint from before them and on with the batches that come next; 0 for never. No
      checkpoint but that of a stop is written among such steps.
    rollbacks: made before `state`, see `checkpoint.Note`.
    checkpoints: where to save; None to save nothing.
    score: what makes one evaluation better than another, greater is better.
    log: gets a line for every step (`step`, `loss`, ..., `tokens_per_second`), for every
      evaluation (`step`, `eval/loss`, ...) and for every going back (`step` to go on from,
      `rollback/from`): the steps after that come again.
    stop: asked after every step that ends the use of a batch.
    roll: `(params, steps taken, batch) -> batch, metrics`, from `train.rollout`: makes what a step
      learns from of what `batches` gives, under the parameters before the step.
    updates: steps on each batch that `roll` makes. They are not saved in between, so that a resumed
      run never needs the parameters that drew its answers.

  Raises:
    InputError: the loss is not a finite number (and the rule is no `optim.skip_spikes`), or the run
      cannot go back; the checkpoints on disk are from before that. A checkpoint that cannot be
      written. Or a number of steps that is no multiple of `updates`.
  """
  state = program.state if state is None else state
  numbers = {'steps': steps, 'eval_every': eval_every, 'save_every': save_every}
  for name, count in (numbers | {'the step to go on from': int(state.step)}).items():
    if count % updates:
      raise InputError(f'{name} is {count}; it must be a multiple of updates, which is {updates}')
  if rollback and checkpoints is None:
    raise InputError(f'rollback is {rollback}, and there are no checkpoints to go back to')
  number, bad = int(state.step), 0
  if rollback:
    bad = _in_a_row(jax.device_get(optim.observations(state.opt)))
  best = checkpoint.best(checkpoints) if checkpoints else None
  pending: tuple[int, Any, Mapping[str, float], int] | None = None
  rolled: Mapping[str, float] = {}
  ahead = Ahead(batches, program.place)
  clock = time.perf_counter()

  def require_finite(name: str, value: float, number: int) -> None:
    if not math.isfinite(value):
      kept = checkpoints.steps[-1:] if checkpoints else []
      raise InputError(
        f'the {name} is {value} at step {number}; '
        + (
          f'the last good checkpoint is that of step {kept[0]}' if kept else 'nothing was saved yet'
        )
        + '; lower optim.lr, lengthen optim.warmup, or set optim.clip_norm or optim.skip_spikes'
      )

  def flush() -> None:
    nonlocal pending, clock, bad
    if pending is None:
      return
    number, metrics, own, tokens = pending
    pending = None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    elapsed, clock = time.perf_counter() - clock, time.perf_counter()
    bad = _in_a_row(values)
    # With a gradient that is no number the loss still is one, and what is saved no longer.
    if 'spikes/skipped' not in values:  # a rule that skips broken gradients goes on
      for name in ('loss', 'grad_norm'):
        require_finite(name, values[name], number)
    if rollback:
      own = {**own, 'rollbacks': rollbacks[0]}
    log({'step': number, **values, **own, 'tokens_per_second': tokens / elapsed})

  def spent() -> bool:
    """Whether so many evaluations as `patience` says have come since the best."""
    if not patience or not eval_every:
      return False
    return number // eval_every - (best[0] if best else 0) // eval_every >= patience

  try:
    while number < steps and not spent():
      number += 1
      if (number - 1) % updates == 0:
        if roll is None:
          batch, tokens = next(ahead)
        else:
          params = tree.combine(state.trainable, program.frozen)
          made, rolled = roll(params, number - 1, next(batches))
          del params  # the step donates them
          batch, tokens = program.place(made), tokens_of(made)
      state, metrics = program.step(state, program.frozen, batch)
      if roll is None and number < steps:
        ahead.look()  # while the devices are at this step
      flush()  # of the step before: reading it waits no longer than this step's start
      if checkpoints:
        checkpoint.check(checkpoints)
        # Not sooner, whenever the step before was read, so that a stop changes no step.
        if rollback and bad >= rollback:
          like, pending = checkpoint.shapes(state), None
          del state  # two of them may not fit
          last = number - 1
          restored = go_back(checkpoints, like, last, bad, rollbacks[1])
          state, number, bad = restored.state, int(restored.state.step), 0
          rollbacks = (rollbacks[0] + 1, rollbacks[1] + 1)
          log({'step': number, 'rollback/from': last, 'rollbacks': rollbacks[0]})
          clock = time.perf_counter()
          continue
      pending = (number, metrics, rolled, tokens)
      end, stopped = number == steps, number % updates == 0 and stop()
      due = end or (eval_every and number % eval_every == 0)
      save = end or (save_every and number % save_every == 0)
      if not (due or save or stopped):
        continue
      flush()
      value = None
      good = not (rollback and bad)
      if evaluate and due:
        result = evaluate(weights(state))
        log({'step': number, **{f'eval/{name}': mean for name, mean in result.items()}})
        require_finite('eval/loss', result['loss'], number)
        value = score(result)
        if good and (best is None or value > best[1]):
          best, save = (number, value), True
        end = end or spent()
      regular = good and bool(save or end)
      if checkpoints and (regular or end or stopped):
        rollbacks = (rollbacks[0], 0) if regular else rollbacks
        checkpoint.save(
          checkpoints,
          state,
          ahead.get_state(),
          value if regular else None,
          regular=regular,
          rollbacks=rollbacks,
        )
      clock = time.perf_counter()  # evaluation and saving do not count as training time
      if stopped:
        break
    ahead.close()
  except jax.errors.JaxRuntimeError:
    if jax.process_count() > 1:
      checkpoints = None  # another process is gone: what is being written will never be whole
    raise
  finally:  # a process that ends on an error would cut off what is being written
    if checkpoints:
      checkpoint.wait(checkpoints)
  return state


def _in_a_row(values: Mapping[str, Any]) -> int:
  return int(values.get('spikes/in_a_row', 0))
