"""What a run learns from and is measured on: texts, or features of a frozen body computed once."""

import functools
import time
from typing import Any, NamedTuple

import jax

from experiments import dataset
from experiments.build import Job
from experiments.objective import compares, make
from jaxtune import data, losses, shard, train
from jaxtune.data.batch import Batch
from jaxtune.data.encode import Example
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

MOST_BYTES = 4 << 30  # of features held in memory; a body with more of them runs in every step


class Inputs(NamedTuple):
  """Batches, and the model and objective that take them.

  Attributes:
    model: the job's, or its head alone.
    objective: of that model.
    batches: to train on, without end; their place can be saved.
    valid, test: every example once.
  """

  model: ModelSpec
  objective: losses.Objective
  batches: Any
  valid: list[Batch]
  test: list[Batch]


def texts(job: Job) -> Inputs:
  """The examples as they are."""
  config = job.config
  if config.eval.batch_size % jax.device_count():
    raise InputError(
      f'eval.batch_size is {config.eval.batch_size}, which cannot be spread over '
      f'{jax.device_count()} devices; set it to a multiple of {jax.device_count()}'
    )
  batches = data.batches(
    job.corpus.train.examples,
    config.train.batch_size,
    max_length=config.data.max_length,
    seed=config.seed,
    pack=config.data.pack,
  )
  valid = dataset.eval_batches(config, job.corpus.valid)
  test = dataset.eval_batches(config, job.corpus.test)
  return Inputs(job.model, job.objective, batches, valid, test)


def features(job: Job) -> Inputs | None:
  """Features in place of the texts, computed now; None where that would not do, or not pay.

  It does where nothing trains but the head of a classifier, and pays where the steps see every row.
  A restarted run computes them again. Dropout in the body is off.
  """
  config, corpus = job.config, job.corpus
  parts = {'train': corpus.train, 'valid': corpus.valid, 'test': corpus.test}
  rows = sum(len(part.examples) for part in parts.values())
  length = config.data.max_length if job.model.task == 'token_classification' else 1
  if (
    not train.trains_head_alone(job.model, job.params)
    or job.arguments is not None  # the rule looks into the body
    or compares(config)
    or job.steps * config.train.batch_size < len(corpus.train.examples)
    or rows * length * job.model.config.width * 4 > MOST_BYTES
  ):
    return None
  print(f'the body is frozen: computing its features of {rows:,} rows once', flush=True)
  started = time.monotonic()
  grid = shard.mesh(dict(config.mesh))
  axes = job.model.axes(job.params)
  params = jax.device_put(job.params, shard.param_shardings(grid, job.params, axes))
  tables = {
    name: train.cache_features(
      job.model,
      params,
      part.examples,
      config.eval.batch_size,
      max_length=config.data.max_length,
      place=functools.partial(shard.place_batch, grid),
    )
    for name, part in parts.items()
    if part.examples
  }
  size = sum(table.nbytes for table in tables.values())
  print(
    f'features of {rows:,} rows cached ({size / 2**20:.1f} MB) in '
    f'{time.monotonic() - started:.0f} s; dropout in the body is off'
  )

  def held_out(name: str) -> list[Batch]:
    examples: list[Example] = parts[name].examples
    if not examples:
      return []
    return train.feature_eval_batches(
      examples, tables[name], config.eval.batch_size, max_length=config.data.max_length
    )

  model = train.head_only(job.model)
  batches = train.feature_batches(
    corpus.train.examples,
    tables['train'],
    config.train.batch_size,
    max_length=config.data.max_length,
    seed=config.seed,
  )
  objective = make(config, model, job.tok, corpus.names)
  return Inputs(model, objective, batches, held_out('valid'), held_out('test'))
