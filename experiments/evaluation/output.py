"""What an evaluation prints, and the file that it writes."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import keys
from experiments.evaluation.measured import Measured
from experiments.tuned import Tuned
from jaxtune import report, tree
from jaxtune.report.interval import Interval
from jaxtune.report.scores import Classification
from jaxtune.typing import InputError

SUFFIXES = ('.html', '.json', '.jsonl')
MISTAKES = 12  # shown on the page


def check(path: str) -> None:
  """Refuses a name that does not say what to write, before anything is computed."""
  if path and pathlib.Path(path).suffix not in SUFFIXES:
    raise InputError(f'--output={path}: cannot write that; end the name in {", ".join(SUFFIXES)}')


def say(found: Measured) -> None:
  """Prints the scores, and of a classification each label and the confusion."""
  for name, score in found.scores.items():
    line = f'{name:15} {_value(score):.4f}'
    if isinstance(score, Interval):
      line += f'  95% interval {score.low:.4f} to {score.high:.4f}'
    print(line)
  if found.labels:
    print(f'\n{_labels(found.labels)}\n\n{_confusion(found.labels)}\n')


def as_json(found: Measured) -> dict[str, Any]:
  """The numbers as JSON has them: `intervals` apart, null for what has no value."""
  values: dict[str, Any] = {'examples': len(found.rows)}
  values |= {name: _finite(_value(score)) for name, score in found.scores.items()}
  values['intervals'] = {
    name: [_finite(score.low), _finite(score.high)]
    for name, score in found.scores.items()
    if isinstance(score, Interval)
  }
  if found.labels:
    values['labels'] = {name: label._asdict() for name, label in found.labels.labels.items()}
    values['confusion'] = found.labels.confusion
  return values


def write(path: str, run: Tuned, found: Measured, about: str) -> None:
  """Writes every row as JSON lines, or with the numbers as JSON; or a page with the mistakes.

  Raises:
    OSError: it cannot be written.
  """
  lines = [{name: _finite(value) for name, value in row.items()} for row in found.rows]
  target = pathlib.Path(path)
  if target.suffix == '.jsonl':
    text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
  elif target.suffix == '.json':
    config = json.loads(run.config.to_json())
    whole = {'config': config, 'scores': as_json(found), 'notes': list(found.notes), 'rows': lines}
    text = json.dumps(whole, ensure_ascii=False, indent=2) + '\n'
  else:
    report.write_report(target, page(run, found, about))
    return
  report.replace_file(target, text.encode('utf-8', 'replace'))


def page(run: Tuned, found: Measured, about: str) -> report.Report:
  """The evaluation as the page that runs have too."""
  first, score = next(
    (name, found.scores[name]) for name in ('accuracy', 'loss') if found.labels or name == 'loss'
  )
  return report.Report(
    title='evaluation',
    headline=f'{first.capitalize()} {_value(score):.3f} on {about}.',
    facts={
      'task': run.config.task,
      'model': run.config.model or run.model.family,
      'rows': len(found.rows),
    },
    scores={'': found.scores},
    confusion=report.Confusion(list(found.labels.labels), found.labels.confusion)
    if found.labels
    else None,
    mistakes=mistakes(found.rows) if found.labels else (),
    config=dict(keys.flatten(run.config)),
    overridden=keys.overridden(run.config),
    environment=report.versions(),
    notes=[f'{note[0].upper()}{note[1:]}.' for note in found.notes],
  )


def mistakes(rows: Sequence[Mapping[str, Any]]) -> list[report.Prediction]:
  """The wrong predictions that the model is surest of."""
  wrong = [
    report.Prediction(
      row['text'], row['label'], row['predicted'], row[f'probability {row["predicted"]}']
    )
    for row in rows
    if row['label'] != row['predicted']
  ]
  return sorted(wrong, key=lambda one: -one.probability)[:MISTAKES]


def _labels(found: Classification) -> str:
  head = ('label', 'precision', 'recall', 'f1', 'rows')
  lines = [
    (name, *(f'{value:.4f}' for value in label[:3]), f'{label.rows:,}')
    for name, label in found.labels.items()
  ]
  return tree.aligned([head, *lines], right=range(1, 5))


def _confusion(found: Classification) -> str:
  names = list(found.labels)
  lines = [
    (name, *(f'{n:,}' for n in row)) for name, row in zip(names, found.confusion, strict=True)
  ]
  return tree.aligned([('true, predicted', *names), *lines], right=range(1, len(names) + 1))


def _value(score: float | Interval) -> float:
  return score.value if isinstance(score, Interval) else score


def _finite(value: Any) -> Any:
  return None if isinstance(value, float) and not math.isfinite(value) else value
