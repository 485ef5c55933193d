"""One method in one compiled step, run at any learning rate from any seed."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import build, dataset, parameters
from experiments.keys import Config
from experiments.strategies import settings
from experiments.strategies.settings import Strategy
from jaxtune import adapt, data, losses, models, plan, train, tree
from jaxtune.models import ModelSpec
from jaxtune.typing import Params


class Cost(NamedTuple):
  """What a method takes: trained parameters, and bytes while a step runs (from the compiler)."""

  trained: int
  bytes: int


class Outcome(NamedTuple):
  """A finished run.

  Attributes:
    valid: mean loss on the validation rows, which chooses the learning rate.
    correct: which test rows are right, bool `[N]`.
    seconds: of the steps, without compiling and evaluating.
  """

  valid: float
  correct: np.ndarray
  seconds: float


class Runner(NamedTuple):
  cost: Cost
  run: Callable[[float, int, Callable[[], int]], Outcome | None]


def runner(
  config: Config, strategy: Strategy, body: tuple[ModelSpec, Params], corpus: dataset.Corpus
) -> Runner:
  """Compiles the step of a strategy; `run(rate, seed, stop)` is None when it was stopped.

  A seed makes the head, the adapter and the order of the rows, the same for every strategy.
  """
  outputs = len(corpus.names)
  model, _ = models.classifier(jax.random.key(0), *body, outputs)
  objective = losses.classification(model)

  def start(seed: int) -> adapt.Adapted:
    head_key, method_key = jax.random.split(jax.random.key(seed))
    _, fresh = models.classifier(head_key, *body, outputs)
    return parameters.method(settings.of_run(config, strategy, 1.0), method_key, model, fresh)

  def batches(seed: int) -> data.Batches:
    return data.batches(
      corpus.train.examples,
      config.train.batch_size,
      max_length=config.data.max_length,
      seed=seed,
    )

  first, steps = start(0), config.train.steps

  def optimizer(rate: float) -> Any:
    rule = build.optimizer(settings.of_run(config, strategy, rate), steps)
    return adapt.wrap_optimizer(first, rule, steps)

  program = train.prepare(
    model,
    first,
    objective,
    optimizer(1.0),
    batches(0),
    mesh=parameters.mesh_sizes(config),
    replicate=config.mesh.replicate,
  )
  forecast = plan.forecast(program.compiled, program.state, program.frozen, program.batch)
  place = jax.tree.map(lambda x: x.sharding, (program.state, program.frozen))
  apply = jax.jit(lambda trainable, frozen, tokens, mask: model.apply(
    tree.combine(trainable, frozen), tokens, mask))  # fmt: skip
  evaluation = jax.jit(train.make_evaluation(objective))
  valid, test = (dataset.eval_batches(config, part) for part in (corpus.valid, corpus.test))

  def run(rate: float, seed: int, stop: Callable[[], int]) -> Outcome | None:
    trainable, frozen = adapt.trainable(start(seed))
    state = train.init_state(trainable, optimizer(rate), jax.random.key(seed))
    state, frozen = jax.device_put((state, frozen), place)
    mine = program._replace(frozen=frozen)
    began = time.perf_counter()
    state = train.fit(mine, batches(seed), steps=steps, state=state, stop=stop)
    jax.block_until_ready(state.trainable)
    seconds = time.perf_counter() - began
    if int(state.step) < steps:
      return None
    loss = train.evaluate(evaluation, state.trainable, frozen, valid, place=program.place)['loss']
    logits = dataset.of_real_rows(
      test, lambda b: apply(state.trainable, frozen, b['tokens'], b['mask'])
    )
    return Outcome(loss, correct(logits.argmax(axis=1), corpus.test.examples), seconds)

  return Runner(Cost(tree.count(program.state.trainable), forecast.total), run)


def correct(guess: np.ndarray, examples: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
  """Which rows are right, bool `[N]`."""
  return guess == np.array([int(example['label']) for example in examples])
