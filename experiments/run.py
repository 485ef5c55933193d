"""One run in one folder: compile, measure, train, measure again, export, report.

The work directory holds

  run.json        the resolved configuration, seed and versions: a folder belongs to one of them
  metrics.jsonl   a line a step, a line an evaluation
  checkpoints/    to go on from, and the best
  trace/          a profile of the steps that train.profile names
  export/         what other tools open
  report.html     what a person looks at
  result.json     the last file written: the run is finished
"""

import functools
import pathlib
import time

import jax

from experiments import build, finish, inputs, parameters, processes, trace, workdir
from experiments.build import Job
from experiments.inputs import Inputs
from experiments.keys import Config
from jaxtune import plan, report, train, tree
from jaxtune.typing import InputError


def prepare(job: Job, given: Inputs) -> train.Program:
  """The job on its devices."""
  config = job.config
  return train.prepare(
    given.model,
    job.params,
    given.objective,
    job.optimizer,
    given.batches,
    key=jax.random.fold_in(jax.random.key(config.seed), 1),
    mesh=parameters.mesh_sizes(config),
    replicate=config.mesh.replicate,
    accumulate=config.train.accumulate,
    arguments=job.arguments,
    example=given.example,
  )


def open_log(config: Config, folder: pathlib.Path, step: int | None) -> report.MetricsLog:
  """The log of the run, cut back to the step it goes on from; others log to nobody."""
  if not processes.first():
    return report.MetricsLog(None)
  return report.open_metrics(
    folder,
    resume_step=step,
    tensorboard=None if config.log.tensorboard else False,
    wandb=config.log.wandb or None,
  )


def best_state(
  manager: train.Checkpoints, program: train.Program, last: train.State
) -> train.State:
  """The state with the best evaluation; the last one where none was better, or is whole."""
  best = train.best(manager)
  if not best or best[0] == int(last.step):
    return last
  try:
    found = train.restore(manager, program.state, best[:1])
  except InputError:
    print(f'the checkpoint of the best step, {best[0]}, is damaged; the last step is exported')
    return last
  return found.state if found else last


def run(job: Job, folder: pathlib.Path) -> int:
  """Runs a job to its end, from wherever its folder says that it is; returns the exit code."""
  started = time.time()
  config = job.config
  given = inputs.texts(job)
  given = inputs.features(job) or given
  processes.check_alike({**given.batches.get_state()['identity'], **job.made_of})
  print('compiling the step', flush=True)
  program, batches = prepare(job, given), given.batches
  forecast = plan.forecast(program.compiled, program.state, program.frozen, program.batch)
  # Only now: a run that cannot be built leaves no trace.
  extends = processes.decided(lambda: workdir.claim(folder, config, longer=True))
  manager = train.open_checkpoints(
    folder / 'checkpoints', keep=config.train.keep, made_of=job.made_of
  )
  restored = train.restore(manager, program.state)
  state = program.state
  if restored:
    state = restored.state
    cursor = restored.cursor
    if int(state.step) <= extends:  # fewer steps may have reached fewer rows, in another order
      cursor = {**cursor, 'identity': batches.get_state()['identity']}
    batches.set_state(cursor)
    for step in restored.damaged:
      print(f'checkpoint of step {step} is damaged; going on from an older one')
    print(f'resuming at step {int(state.step)} of {job.steps}')
  resumed = int(state.step)
  valid, test = given.held_out['valid'], given.held_out['test']
  with (
    open_log(config, folder, resumed if restored else None) as metrics,
    processes.interruptible() as stop,
    trace.traced(program, config.train.profile, resumed, folder / trace.FOLDER) as traced,
  ):
    if test and not processes.decided(lambda: workdir.measured(folder, 'before')):
      before = inputs.measure(given, program, program.state.trainable, 'test')
      metrics.write(0, {f'before/{name}': value for name, value in before.items()})
    with report.Progress(job.steps, start=resumed) as progress:

      def log(line: dict[str, float]) -> None:
        values = dict(line)
        step = int(values.pop('step'))
        if 'rollback/from' in values:
          metrics.cut(step)
          progress.say(
            f'{config.train.rollback} steps in a row were skipped up to step '
            f'{values["rollback/from"]:.0f}; going back to step {step}, and on with the next rows'
          )
          return
        evaluated = 'eval/loss' in values
        if evaluated or step % config.train.log_every == 0 or step == job.steps:
          metrics.write(step, values)
        (progress.evaluated if evaluated else progress.step)(step, values)

      state = train.fit(
        traced,
        batches,
        steps=job.steps,
        state=state,
        evaluate=(lambda trained: inputs.measure(given, program, trained, 'valid'))
        if valid
        else None,
        weights=functools.partial(build.weights, config),
        eval_every=config.train.eval_every,
        save_every=config.train.save_every,
        patience=config.train.patience,
        rollback=config.train.rollback,
        rollbacks=restored.note.rollbacks if restored else (0, 0),
        checkpoints=manager,
        score=job.score,
        log=log,
        stop=stop,
        roll=given.rolls['train'] if given.rolls else None,
        updates=config.rollout.updates,
      )
    last = int(state.step)
    if last < job.steps and stop():
      print(f'stopped at step {last} of {job.steps}; the same command goes on from there')
      return stop()
    if last < job.steps:
      print(
        f'ended at step {last} of {job.steps}: {config.train.patience} evaluations were no better'
      )
    state = best_state(manager, program, state)
    trained = build.weights(config, state)
    if test:
      after = inputs.measure(given, program, trained, 'test')
      metrics.write(int(state.step), {f'test/{name}': value for name, value in after.items()})
  params = build.without_company(tree.combine(trained, program.frozen))
  finish.finish(
    job,
    params,
    folder,
    step=int(state.step),
    last=last,
    seconds=time.time() - started,
    forecast=forecast,
  )
  return 0
