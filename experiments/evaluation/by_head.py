"""A classifier or regressor, by its outputs."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from scipy import special

from experiments import dataset, sources
from experiments.evaluation.batches import each
from experiments.evaluation.measured import Measured, Scores
from experiments.tuned import Tuned
from jaxtune import data
from jaxtune.report import scores


def measure(run: Tuned, rows: Sequence[sources.Record]) -> Measured:
  """Cross-entropy, accuracy, F1 and Matthews' correlation; or errors and correlations."""
  config = run.config
  part = dataset.encode_rows(config, run.tok, rows, run.names)
  apply = functools.partial(jax.jit(run.model.apply), run.params)
  outputs = each(run, part.examples, lambda batch: apply(batch['tokens'], batch['mask']))
  texts = [run.tok.encoder.decode(example['tokens'].tolist()) for example in part.examples]
  labels = np.array([example['label'] for example in part.examples])
  remarks = notes(part, config.data.max_length)
  if config.task == 'regression':
    return _numbers(texts, labels, outputs[:, 0], remarks)
  return chosen(
    texts, labels, special.log_softmax(outputs.astype(float), axis=1), run.names, remarks
  )


def chosen(
  texts: Sequence[str],
  labels: np.ndarray,
  log_p: np.ndarray,
  names: Sequence[str],
  remarks: Sequence[str],
) -> Measured:
  """The scores of log-probabilities `[N, C]` of labels, whose largest is the prediction."""
  guess = log_p.argmax(axis=1)
  found = scores.classification(labels, guess, names)
  picked = log_p[np.arange(len(labels)), labels]
  rows = [
    {
      'text': text,
      'label': names[true],
      'predicted': names[best],
      **{f'probability {name}': float(p) for name, p in zip(names, np.exp(row), strict=True)},
    }
    for text, true, best, row in zip(texts, labels, guess, log_p, strict=True)
  ]
  values: Scores = {
    'loss': scores.mean_per(-picked, np.ones(len(picked))),
    'accuracy': found.accuracy,
    'f1': found.f1,
    'matthews': found.matthews,
  }
  return Measured(values, rows, found, remarks)


def _numbers(
  texts: Sequence[str], labels: np.ndarray, outputs: np.ndarray, remarks: Sequence[str]
) -> Measured:
  found = scores.regression(labels, outputs)
  error = outputs.astype(float) - labels
  rows = [
    {'text': text, 'label': float(true), 'predicted': float(value)}
    for text, true, value in zip(texts, labels, outputs, strict=True)
  ]
  values: Scores = {
    'loss': scores.mean_per(error * error, np.ones(len(error))),
    'absolute_error': found.absolute_error,
    'pearson': found.pearson,
    'spearman': found.spearman,
  }
  return Measured(values, rows, None, remarks)


def notes(part: data.Encoded, length: int) -> list[str]:
  """What happened to rows on the way, for a reader."""
  found = []
  if part.truncated:
    found.append(f'{part.truncated:,} were longer than {length} tokens and were cut')
  if part.empty:
    found.append(f'{part.empty:,} without text were left out')
  return found
