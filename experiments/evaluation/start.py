"""What experiments/evaluate.py does with its flags: open the model, find the rows, measure."""

import json

from experiments import keys, parameters, sources, tuned
from experiments.evaluation import by_head, by_text, by_words, by_writing, output
from experiments.evaluation.measured import Measured
from experiments.keys import Config
from experiments.tuned import Tuned
from jaxtune import interop
from jaxtune.typing import InputError


def start(config: Config | None, folder: str | None, *, data: str = '', path: str = '') -> int:
  """Measures and prints; returns the exit code.

  Raises:
    InputError: no model, one that cannot do the task, or rows that cannot be used.
  """
  output.check(path)
  if config is not None:
    keys.check(config)
    by_writing.metrics(config)
  if folder:
    run = tuned.open_run(folder)
    run = run._replace(config=config or run.config)
  elif config is not None:
    run = pretrained(config)
  else:
    raise InputError(
      'nothing to measure; give the --workdir of a run, or a --config for a model as it is'
    )
  found, about = measure(run, folder, data)
  output.say(found)
  if path:
    output.write(path, run, found, about)
    print(f'written to {path}')
  print(json.dumps(output.as_json(found)))
  return 0


def pretrained(config: Config) -> Tuned:
  """The model that a configuration names, as it is.

  Raises:
    InputError: it names none.
  """
  if not config.model:
    raise InputError('model is empty; give one with --config.model=...')
  source = sources.resolve(config.model)
  model, params = parameters.pretrained(config, source)
  return Tuned(
    config=config,
    model=model,
    params=params,
    tok=interop.tokenizer(source),
    names=interop.load_labels(source) or (),
    source=source,
  )


def measure(run: Tuned, folder: str | None, path: str) -> tuple[Measured, str]:
  """What the model of a run does on rows of a file or the test rows, and what rows these are."""
  config = run.config
  if folder and config.task not in ('classification', 'regression', 'causal_lm'):
    raise InputError(
      f'{folder} holds a run for {config.task}; evaluate measures classification, regression and '
      'causal_lm, and what the run itself measured is in its report.html'
    )
  written = by_writing.metrics(config)
  splits: dict[str, list[sources.Record]] = {'train': []}
  if not path or config.task == 'classification' and run.model.task == 'causal_lm':
    splits = sources.read(config).splits  # a language model may be shown training rows
  rows, about = splits.get('test', []), 'the test rows of the run' if folder else 'the test rows'
  if path:
    skipped = sources.leave_out(config)
    (rows, _), about = sources.read_file(config, path, skipped), path
    if skipped and skipped.reasons:
      skipped.check(len(rows))
      print(skipped.remark())
  if not rows:
    raise InputError(
      f'{folder}: the run held out no test rows (data.test is 0); give a file with --data'
      if folder
      else 'no test rows are held out (data.test is 0); hold some out, or give a file with --data'
    )
  rows = rows[: config.evaluate.rows or None]
  print(f'{len(rows):,} examples of {about}', flush=True)
  if run.model.task == 'classification' and config.task in ('classification', 'regression'):
    found = by_head.measure(run, rows)
  elif run.model.task == 'causal_lm' and config.task == 'classification':
    found = by_words.measure(run, rows, splits['train'])
  elif run.model.task == 'causal_lm' and config.task == 'causal_lm':
    found = by_text.measure(run, rows)
    if written:
      texts = by_writing.measure(run, rows, written)
      found = texts._replace(scores={**found.scores, **texts.scores}, notes=found.notes)
  else:
    raise InputError(
      f'task is {config.task}, which {folder or config.model} cannot do without training; train it '
      'with experiments.finetune and measure it with --workdir'
    )
  for note in found.notes:
    print(note)
  return found, f'{len(found.rows):,} examples of {about}'
