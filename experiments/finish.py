"""The end of a run: files for other tools, a page for a person, and the last lines."""

import pathlib
from typing import Any

import jax
import numpy as np

from experiments import dataset, keys, processes, sources, tasks, trace, workdir
from experiments.build import Job
from jaxtune import adapt, data, interop, plan, report, shard, tree
from jaxtune.models import ModelSpec
from jaxtune.typing import Params

MISTAKES = 12  # shown in the report


def export(job: Job, params: Params, folder: pathlib.Path, card: str) -> None:
  """Writes what the method trained: a PEFT adapter, a whole Hugging Face folder, or our file."""
  config, labels = job.config, job.corpus.names or None
  if config.model and not (config.layers or interop.adapter_obstacle(job.model, params)):
    interop.save_peft(
      folder,
      job.model,
      params,
      base=sources.resolve(config.model),
      labels=labels,
      card=card,
      name=config.export.base or config.model,
    )
    return
  if interop.merge_obstacle(params):
    interop.save_trained(folder, job.model, params, labels=labels, card=card)
    return
  source = sources.resolve(config.model) if config.model else None
  interop.save_hf(folder, job.model, params, source=source, labels=labels)
  if not source:
    job.tok.encoder.save(str(folder / 'tokenizer.json'))
    tokens = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': dataset.END_OF_TEXT}
    workdir.write_json(folder / 'tokenizer_config.json', tokens)


def outputs(
  config: keys.Config, model: ModelSpec, params: Params, part: data.Encoded
) -> np.ndarray:
  """The outputs `[N, C]` of a classifier or regressor for every example."""
  apply = jax.jit(model.apply)
  batches = dataset.eval_batches(config, part)
  return dataset.of_real_rows(
    batches, lambda b: shard.gather(apply(params, b['tokens'], b['mask']))
  )


def scores(job: Job, folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The final numbers before and after, accuracies of rows with their 95% intervals."""
  stages: dict[str, dict[str, Any]] = {}
  rows = len(job.corpus.test.examples)
  for stage, name in (('before', 'before'), ('test', 'after')):
    values: dict[str, Any] = dict(workdir.measured(folder, stage))
    if job.config.task == 'classification' and 'accuracy' in values:
      values['accuracy'] = report.wilson(round(values['accuracy'] * rows), rows)
    if values:
      stages[name] = values
  return stages


def headline(job: Job, stages: dict[str, dict[str, Any]], step: int, last: int) -> str:
  """One sentence: what was reached."""
  task = tasks.TASKS[job.config.task]
  rows = len(job.corpus.test.examples)
  if 'after' not in stages:
    return f'{last} steps taken; no test rows were held out (data.test is 0).'

  name = task.score if task.score in stages['after'] else 'loss'

  def shown(stage: str) -> str:
    value = stages[stage][name]
    return f'{value.value if isinstance(value, report.Interval) else value:.3f}'

  return (
    f'{name.capitalize()} on {rows:,} held-out test {task.counted} went from {shown("before")} to '
    f'{shown("after")} (the best of {last} steps is step {step}).'
  )


def classified(job: Job, params: Params) -> tuple[report.Confusion | None, list[report.Prediction]]:
  """The confusion matrix of the test rows, and the mistakes that the model is surest of."""
  part, names = job.corpus.test, job.corpus.names
  if job.config.task != 'classification' or not part.examples:
    return None, []
  probabilities = np.asarray(jax.nn.softmax(outputs(job.config, job.model, params, part), axis=-1))
  true = np.array([int(example['label']) for example in part.examples])
  guess = probabilities.argmax(axis=-1)
  counts = np.zeros((len(names), len(names)), int)
  np.add.at(counts, (true, guess), 1)
  sure = probabilities.max(axis=-1)
  wrong = np.flatnonzero(true != guess)
  wrong = wrong[np.argsort(-sure[wrong])][:MISTAKES]
  mistakes = [
    report.Prediction(
      text=job.tok.encoder.decode(part.examples[i]['tokens'].tolist()),
      label=names[true[i]],
      predicted=names[guess[i]],
      probability=float(sure[i]),
    )
    for i in wrong
  ]
  return report.Confusion(names, counts.tolist()), mistakes


def finish(
  job: Job,
  params: Params,
  folder: pathlib.Path,
  *,
  step: int,
  last: int,
  seconds: float,
  forecast: plan.Forecast,
) -> None:
  """Exports the best step, writes the report and the result, and says where they are."""
  config = job.config
  confusion, mistakes = classified(job, params)
  placement = shard.placement(params)
  params = shard.gather(params, keep=processes.first())
  if not processes.first():
    return
  stages = scores(job, folder)
  sentence = headline(job, stages, step, last)
  trained, _ = adapt.trainable(params)
  flat = dict(keys.flatten(config))
  card = report.adapter_card(
    title=folder.name,
    summary=sentence,
    base_model=config.export.base or config.model,
    task=config.task,
    data=config.data.path,
    scores=stages,
    hyperparameters={k: v for k, v in flat.items() if k.split('.')[0] in ('method', 'optim')},
    labels=job.corpus.names,
  )
  export(job, params, folder / 'export', card)
  report.write_report(
    folder / 'report.html',
    report.Report(
      title=folder.name,
      headline=sentence,
      facts={
        'task': config.task,
        'model': config.model or f'{job.model.family} from scratch',
        'method': config.method.name,
        'trained parameters': f'{tree.count(trained):,} of {tree.count(params):,}',
        'steps': last if last == job.steps else f'{last} of {job.steps}, for want of better ones',
        'time of this start': f'{seconds:.0f} s',
      },
      scores=stages,
      metrics=report.read_metrics(folder / 'metrics.jsonl'),
      confusion=confusion,
      mistakes=mistakes,
      config=flat,
      overridden=keys.overridden(config),
      routing=tree.routing(job.params.rules, params),
      placement=placement,
      memory={
        **{f'forecast: {name}': value for name, value in forecast._asdict().items()},
        'measured peak of the process': report.peak_rss(),
      },
      environment=report.versions(),
      files={
        'export/': 'what other tools open',
        'metrics.jsonl': 'every step and evaluation',
        'checkpoints/': 'the newest steps and the best',
        'run.json': 'configuration, seed and versions',
        **({f'{trace.FOLDER}/': 'a profile of some steps'} if traced(folder) else {}),
      },
      notes=job.corpus.remarks(),
    ),
  )
  plain = {
    stage: {name: getattr(value, 'value', value) for name, value in values.items()}
    for stage, values in stages.items()
  }
  workdir.write_json(
    folder / workdir.RESULT,
    {
      'headline': sentence,
      'step': step,
      'last': last,
      'length': workdir.length(config),
      'labels': list(job.corpus.names),
      'scores': plain,
    },
  )
  say(folder, sentence)


def say(folder: pathlib.Path, sentence: str) -> None:
  """The last lines of a finished run."""
  print(f'\n{sentence}')
  print(f'report   {folder / "report.html"}')
  print(f'export   {folder / "export"}')
  if traced(folder):
    print(f'trace    {folder / trace.FOLDER} (tensorboard --logdir, or ui.perfetto.dev)')


def traced(folder: pathlib.Path) -> bool:
  """Whether steps of the run were profiled."""
  return (folder / trace.FOLDER).is_dir()
