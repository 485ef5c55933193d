"""One run in one folder: compile, measure, train, measure again, export, report.

The work directory holds

  run.json        the resolved configuration, seed and versions: a folder belongs to one of them
  metrics.jsonl   a line a step, a line an evaluation
  checkpoints/    to go on from, and the best
  export/         what other tools open
  report.html     what a person looks at
  result.json     the last file written: the run is finished
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments import build, entry, finish, workdir
from experiments.build import Job
from jaxtune import data, plan, report, shard, train, tree
from jaxtune.typing import Batch, Params


@dataclasses.dataclass(frozen=True)
class Program:
  """A job on its devices: the state before the first step, and its compiled functions."""

  state: train.State
  frozen: Params
  step: Any
  evaluate: Callable[[Any, Any, data.Encoded], dict[str, float]]
  place: Callable[[Batch], Batch]
  batches: Any
  forecast: plan.Forecast


def compile(job: Job) -> Program:
  """Places the parameters and compiles the one step that the run takes."""
  config = job.config
  mesh = shard.mesh(dict(config.mesh))
  params, rules = job.adapted
  shardings = shard.param_shardings(mesh, params, job.model.axes(params))
  trainable, frozen = tree.partition(jax.device_put(params, shardings), rules)
  run_key = jax.random.fold_in(jax.random.key(config.seed), 1)
  state = train.init_state(trainable, job.optimizer, run_key)
  states = shard.state_shardings(mesh, state, params, shardings)
  state = jax.device_put(state, states)
  batches = data.batches(
    job.corpus.train.examples,
    config.train.batch_size,
    max_length=config.data.max_length,
    seed=config.seed,
    pack=config.data.pack,
  )
  step = jax.jit(
    train.make_step(job.objective, job.optimizer, accumulate=config.train.accumulate),
    donate_argnums=0,
    out_shardings=(states, shard.replicated(mesh)),
  )
  cursor = batches.get_state()
  example = shard.place_batch(mesh, next(batches))
  batches.set_state(cursor)
  compiled = step.lower(state, frozen, example).compile()
  evaluation = jax.jit(train.make_evaluation(job.objective))

  def place(batch: Batch) -> Batch:
    return shard.place_batch(mesh, batch)

  def evaluate(trainable: Any, frozen: Any, part: data.Encoded) -> dict[str, float]:
    rows = build.eval_batches(config, part)
    return train.evaluate(evaluation, trainable, frozen, rows, place=place)

  return Program(
    state=state,
    frozen=frozen,
    step=compiled,
    evaluate=evaluate,
    place=place,
    batches=batches,
    forecast=plan.forecast(compiled, state, frozen, example),
  )


def run(job: Job, folder: pathlib.Path) -> int:
  """Runs a job to its end, from wherever its folder says that it is; returns the exit code."""
  started = time.time()
  config = job.config
  log_steps = config.train.log_every
  print('compiling the step', flush=True)
  program = compile(job)
  manager = train.open_checkpoints(folder / 'checkpoints')
  restored = train.restore(manager, program.state)
  state = program.state
  if restored:
    state = restored.state
    program.batches.set_state(restored.cursor)
    for step in restored.damaged:
      print(f'checkpoint of step {step} is damaged; going on from an older one')
    print(f'resuming at step {int(state.step)} of {job.steps}')
  resumed = int(state.step)
  with (
    report.open_metrics(folder, resume_step=resumed if restored else None) as metrics,
    entry.interruptible() as stop,
  ):
    if job.corpus.test.examples and not workdir.measured(folder, 'before'):
      before = program.evaluate(program.state.trainable, program.frozen, job.corpus.test)
      metrics.write(0, {f'before/{name}': value for name, value in before.items()})
    with report.Progress(job.steps, start=resumed) as progress:

      def log(step: int, values: dict[str, float]) -> None:
        if any(name.startswith('eval/') for name in values):
          metrics.write(step, values)
          progress.evaluated(step, values)
        else:
          if step % log_steps == 0 or step == job.steps:
            metrics.write(step, values)
          progress.step(step, values)

      state = train.fit(
        program.step,
        state,
        program.frozen,
        program.batches,
        steps=job.steps,
        place=program.place,
        evaluate=(lambda t, f: program.evaluate(t, f, job.corpus.valid))
        if job.corpus.valid.examples
        else None,
        eval_every=config.train.eval_every,
        save_every=config.train.save_every,
        checkpoints=manager,
        score=job.score,
        log=log,
        stop=stop,
      )
    if int(state.step) < job.steps:
      print(
        f'stopped at step {int(state.step)} of {job.steps}; the same command goes on from there'
      )
      return entry.INTERRUPTED
    best = train.best(manager)
    if best and best[0] != job.steps:
      found = train.restore(manager, program.state, best[0])
      assert found is not None
      state = found.state
    if job.corpus.test.examples and not workdir.measured(folder, 'test'):
      after = program.evaluate(state.trainable, program.frozen, job.corpus.test)
      metrics.write(int(state.step), {f'test/{name}': value for name, value in after.items()})
  params = tree.combine(state.trainable, program.frozen)
  finish.finish(
    job,
    params,
    folder,
    step=int(state.step),
    seconds=time.time() - started,
    forecast=program.forecast,
  )
  return 0
