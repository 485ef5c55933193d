"""What a run learns from and is measured on: texts, or features of a frozen body computed once."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments import dataset, parameters, rollouts, sources
from experiments.build import Job
from experiments.objective import compares, make, refers
from jaxtune import data, losses, shard, train, tree
from jaxtune.data.batch import Batch
from jaxtune.data.encode import Example
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

MOST_BYTES = 4 << 30  # of features held in memory; a body with more of them runs in every step


class Inputs(NamedTuple):
  """Batches, and the model and objective that take them.

  Attributes:
    model: the job's, or its head alone.
    objective: of that model.
    batches: to train on, without end; their place can be saved.
    held_out: of `valid` and of `test` every example once.
    rolls: of prompts, by split: how they are answered, see `train.fit`.
    example: of prompts, what a step gets, see `train.prepare`.
  """

  model: ModelSpec
  objective: losses.Objective
  batches: Any
  held_out: dict[str, list[Batch]]
  rolls: Mapping[str, train.Roll] | None = None
  example: Batch | None = None


def measure(given: Inputs, program: train.Program, trained: Params, split: str) -> dict[str, float]:
  """The objective with its metrics on what is held out; of prompts the rewards of their answers."""
  batches = given.held_out[split]
  if given.rolls is None:
    return program.evaluate(trained, batches)
  params = tree.combine(trained, program.frozen)
  return train.evaluate_rollouts(given.rolls[split], params, batches)


def texts(job: Job) -> Inputs:
  """The examples as they are."""
  config = job.config
  grid = shard.mesh(parameters.mesh_sizes(config))
  devices = math.prod(grid.shape[axis] for axis in shard.ROWS)
  if config.eval.batch_size % devices:
    raise InputError(
      f'eval.batch_size is {config.eval.batch_size}, which cannot be spread over {devices} '
      f'devices; set it to a multiple of {devices}'
    )
  corpus = referred(job)
  options = {
    'max_length': config.data.max_length,
    'seed': sources.seed(config),
    'pack': config.data.pack,
    'buckets': tuple(config.data.buckets),
  }
  size = config.train.batch_size
  if corpus.stream is None:
    batches = data.batches(corpus.train.examples, size, **options)
  else:
    records, encode, window = corpus.stream
    batches = data.stream_batches(records, encode, size, window=window, **options)
  held_out = {
    'valid': dataset.eval_batches(config, corpus.valid),
    'test': dataset.eval_batches(config, corpus.test),
  }
  given = Inputs(job.model, job.objective, batches, held_out)
  return answered(job, given) if config.task == 'reinforcement' else given


def answered(job: Job, given: Inputs) -> Inputs:
  """Prompts whose answers are drawn and rewarded in every step, and in every evaluation."""
  cursor = given.batches.get_state()
  example = rollouts.example(job.config, next(given.batches))
  given.batches.set_state(cursor)
  rolls = rollouts.rolls(job.config, job.model, job.tok, job.corpus.records)
  return given._replace(rolls=rolls, example=example)


def referred(job: Job) -> dataset.Corpus:
  """The examples with what the model says of them before the first step, where that is cached."""
  config, corpus = job.config, job.corpus
  if config.objective.reference != 'cached' or not refers(config):
    return corpus
  print('the reference: computing its log-probabilities once', flush=True)

  def cached(part: data.Encoded) -> data.Encoded:
    found = train.reference_log_probs(
      job.model,
      job.params,
      part.examples,
      config.eval.batch_size,
      max_length=config.data.max_length,
      chunk=config.train.chunk or None,
    )
    return part._replace(examples=found)

  return dataclasses.replace(
    corpus, train=cached(corpus.train), valid=cached(corpus.valid), test=cached(corpus.test)
  )


def features(job: Job, runs: int = 1) -> Inputs | None:
  """Features in place of the texts, computed now; None where that would not do, or not pay.

  It does where nothing trains but the head of a classifier, and pays where the steps see every row.
  A restarted run computes them again. Dropout in the body is off. `runs` learn from the same ones.
  """
  config, corpus = job.config, job.corpus
  parts = {'train': corpus.train, 'valid': corpus.valid, 'test': corpus.test}
  rows = sum(len(part.examples) for part in parts.values())
  length = config.data.max_length if job.model.task == 'token_classification' else 1
  if (
    not train.trains_head_alone(job.model, job.params)
    or job.arguments is not None  # the rule looks into the body
    or compares(config)
    or config.objective.neftune
    or config.objective.teacher
    or corpus.stream is not None
    or runs * job.steps * config.train.batch_size < len(corpus.train.examples)
    or rows * length * job.model.config.width * 4 > MOST_BYTES
  ):
    return None
  print(f'the body is frozen: computing its features of {rows:,} rows once', flush=True)
  started = time.monotonic()
  grid = shard.mesh(parameters.mesh_sizes(config))
  params = shard.put(job.params, parameters.shardings(config, job.model, job.params))
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
    seed=sources.seed(config),
  )
  objective = make(config, model, job.tok, corpus.names)
  return Inputs(model, objective, batches, {name: held_out(name) for name in ('valid', 'test')})
