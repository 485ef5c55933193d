"""Labels new rows with a tuned model.

  python -m experiments.predict --workdir=runs/quickstart --input=new.csv --output=labelled.csv

Every row comes back with `predicted` and, for classes, the probability of each. The input has the
column of text that the run was trained on; .csv, .tsv, .jsonl and .json are read, and the output is
CSV, or JSON lines where its name ends in .jsonl.
"""

import csv
import io
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import dataset, entry, finish, tuned
from jaxtune import data, report
from jaxtune.typing import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.', required=True)
INPUT = flags.DEFINE_string('input', None, 'Rows to label.', required=True)
OUTPUT = flags.DEFINE_string('output', '', 'Where to write them; the terminal by default.')


def main() -> int:
  run = tuned.open_run(WORKDIR.value)
  if run.config.task not in ('classification', 'regression'):
    raise InputError(
      f'{WORKDIR.value} holds a run for {run.config.task}; predict labels rows with one for '
      'classification or regression'
    )
  rows = data.read(INPUT.value)
  taken = [name for name in ('predicted', *columns(run.names)) if name in rows[0]]
  if taken:
    raise InputError(f'{INPUT.value}: column {taken[0]!r} is one that predict writes; rename it')
  part = dataset.encode_unlabelled(run.config, run.tok, rows)
  outputs = finish.outputs(run.config, run.model, run.params, part)
  labelled = [
    {**row, **values} for row, values in zip(rows, predictions(outputs, run.names), strict=True)
  ]
  text = jsonl(labelled) if OUTPUT.value.endswith('.jsonl') else table(labelled)
  if not OUTPUT.value:
    sys.stdout.write(text)
    return 0
  report.replace_file(pathlib.Path(OUTPUT.value), text.encode())
  cut = f'; {part.truncated:,} were longer than {run.config.data.max_length} tokens and were cut'
  print(f'{len(rows):,} rows written to {OUTPUT.value}' + (cut if part.truncated else ''))
  return 0


def predictions(outputs: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
  """Per row the predicted label and the probability of each, or the predicted number."""
  if not names:
    return [{'predicted': float(row[0])} for row in outputs]
  probabilities = np.asarray(jax.nn.softmax(outputs, axis=-1))
  return [
    {
      'predicted': names[int(row.argmax())],
      **{name: round(float(p), 6) for name, p in zip(columns(names), row, strict=True)},
    }
    for row in probabilities
  ]


def columns(names: tuple[str, ...]) -> list[str]:
  """The columns of probabilities."""
  return [f'probability {name}' for name in names]


def table(rows: list[dict[str, Any]]) -> str:
  """Rows as CSV with a header."""
  out = io.StringIO()
  columns = dict.fromkeys(name for row in rows for name in row)  # JSON rows may differ
  writer = csv.DictWriter(out, list(columns), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> str:
  """Rows as JSON lines."""
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


if __name__ == '__main__':
  entry.launch(main)
