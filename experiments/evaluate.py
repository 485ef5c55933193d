"""Measures a tuned model: on the test rows of its run, or on a file of your own.

  python -m experiments.evaluate --workdir=runs/quickstart
  python -m experiments.evaluate --workdir=runs/quickstart --data=other.csv

The last line is one JSON object with the numbers.
"""

import json

import jax
from absl import flags

from experiments import build, entry, tuned
from jaxtune import report, train, tree
from jaxtune.typing import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.', required=True)
DATA = flags.DEFINE_string('data', '', 'Labelled rows; the test rows of the run by default.')


def main() -> int:
  run = tuned.open_run(WORKDIR.value)
  config = run.config
  if DATA.value:
    rows, name = build.read_rows(config, DATA.value), DATA.value
  else:
    splits, _ = build.read_records(config)
    rows, name = splits['test'], 'the test rows of the run'
    if not rows:
      raise InputError(
        f'{WORKDIR.value}: the run held out no test rows (data.test is 0); give a file with --data'
      )
  part = build.encode_rows(config, run.tokenizer, run.special, rows, run.names)
  objective = build.objective(config, run.model)
  trainable, frozen = tree.partition(run.params, ((r'', False),))
  evaluation = jax.jit(train.make_evaluation(objective))
  means = train.evaluate(evaluation, trainable, frozen, build.eval_batches(config, part))
  count = len(part.examples)
  print(f'{count:,} examples of {name}')
  if part.truncated:
    print(f'{part.truncated:,} were longer than {config.data.max_length} tokens and were cut')
  for metric, value in means.items():
    line = f'{metric:15} {value:.4f}'
    if metric == 'accuracy' and config.task == 'classification':
      interval = report.wilson(round(value * count), count)
      line += f'  95% interval {interval.low:.4f} to {interval.high:.4f}'
    print(line)
  print(json.dumps({'examples': count, **means}))
  return 0


if __name__ == '__main__':
  entry.launch(main)
