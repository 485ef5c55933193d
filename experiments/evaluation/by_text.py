"""A language model, by how likely it finds texts."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax

from experiments import dataset, sources
from experiments.evaluation import by_head
from experiments.evaluation.batches import each
from experiments.evaluation.measured import Measured, Scores
from experiments.tuned import Tuned
from jaxtune.data.batch import Batch
from jaxtune.models import likelihood
from jaxtune.report import scores
from jaxtune.report.interval import Interval

CHUNK = 256  # predictions whose logits are held at a time


def measure(run: Tuned, rows: Sequence[sources.Record]) -> Measured:
  """Nats a supervised token, perplexity, and the share of tokens that are the likeliest."""
  config = run.config
  part = dataset.encode_rows(config, run.tok, rows, ())
  chunk = config.train.chunk or CHUNK
  score = jax.jit(functools.partial(likelihood.log_likelihood, run.model, chunk=chunk))

  def compute(batch: Batch) -> dict[str, Any]:
    kept = {name: batch[name] for name in ('tokens', 'mask', 'supervised')}
    return score(run.params, kept)._asdict()

  found = each(run, part.examples, compute)
  loss = scores.mean_per(-found['nats'], found['tokens'])
  values: Scores = {
    'loss': loss,
    'perplexity': Interval(*map(_exp, loss)),
    'accuracy': float(found['correct'].sum() / found['tokens'].sum()),
  }
  lines = [
    {
      'text': run.tok.encoder.decode(example['tokens'].tolist()),
      'nats': -float(nats),
      'tokens': int(tokens),
    }
    for example, nats, tokens in zip(part.examples, found['nats'], found['tokens'], strict=True)
  ]
  remarks = by_head.notes(part, config.data.max_length)
  if len(lines) != len(rows):
    remarks.append(f'{len(lines):,} sequences of up to {config.data.max_length} tokens')
  return Measured(values, lines, None, remarks)


def _exp(nats: float) -> float:
  return math.exp(nats) if nats < 700 else math.inf
