"""Every strategy on the same rows: its learning rate tuned, then new seeds to compare.

metrics.jsonl gets a line a run; a comparison that is started again goes on behind the last of them.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import dataset
from experiments.comparison.log import Log
from experiments.keys import Config
from experiments.strategies import trained, untrained
from experiments.strategies.settings import UNTRAINED, Strategy
from experiments.tuned import Tuned
from jaxtune.typing import InputError


class Entry(NamedTuple):
  """A strategy's results.

  Attributes:
    rate: the learning rate with the lowest validation loss; None where nothing trains.
    at_edge: whether a better one may lie outside of those tried.
    tuning: mean validation loss by rate.
    correct: bool `[seeds, rows]`; one seed where there is nothing random.
    seconds: of one run.
    cost: trained parameters and bytes of the step; None where nothing trains.
  """

  strategy: Strategy
  rate: float | None
  at_edge: bool
  tuning: dict[float, float]
  correct: np.ndarray
  seconds: float
  cost: trained.Cost | None


def enter(
  config: Config,
  strategy: Strategy,
  run: Tuned,
  corpus: dataset.Corpus,
  log: Log,
  show: Callable[[str], None],
  stop: Callable[[], int],
) -> Entry | str:
  """What a strategy comes to, or why this model cannot take it.

  Raises:
    KeyboardInterrupt: it was stopped; all finished runs are in the log.
  """
  if strategy.label in UNTRAINED and not strategy.method:
    return _untrained(config, strategy, run, corpus, log)
  made: list[trained.Runner] = []

  def runner() -> trained.Runner:
    if not made:
      show(f'{strategy.label}  compiling')
      made.append(trained.runner(config, strategy, (run.model, run.params), corpus))
    return made[0]

  def one(stage: str, rate: float, seed: int) -> dict[str, Any]:
    group = {'strategy': strategy.label, 'stage': stage, 'learning_rate': rate, 'seed': seed}
    if found := _found(log, group):
      return found
    machine = runner()
    show(f'{strategy.label}  {stage}  rate {rate:g}  seed {seed}')
    try:
      outcome = machine.run(rate, seed, stop)
    except InputError:  # the loss is no number: a rate that cannot be used
      outcome = trained.Outcome(float('inf'), np.zeros(len(corpus.test.examples), bool), 0.0)
    if outcome is None:
      raise KeyboardInterrupt
    return log.add(
      {
        'step': config.train.steps,
        **group,
        'valid_loss': outcome.valid if np.isfinite(outcome.valid) else None,
        'accuracy': float(outcome.correct.mean()),
        'correct': _packed(outcome.correct),
        'seconds': round(outcome.seconds, 3),
        'trained': machine.cost.trained,
        'bytes': machine.cost.bytes,
      }
    )

  seeds = range(config.compare.tuning_seeds)
  try:
    tuned = {rate: [one('tuning', rate, seed) for seed in seeds] for rate in strategy.rates}
  except InputError as error:
    return str(error)
  losses = {rate: float(np.mean([_loss(line) for line in lines])) for rate, lines in tuned.items()}
  best = min(losses, key=lambda rate: losses[rate])
  further = range(len(seeds), len(seeds) + config.compare.seeds)
  lines = [one('comparison', best, seed) for seed in further]
  ends = (min(strategy.rates), max(strategy.rates))
  return Entry(
    strategy=strategy,
    rate=best,
    at_edge=len(strategy.rates) > 1 and best in ends,
    tuning=losses,
    correct=np.stack([_unpacked(line['correct']) for line in lines]),
    seconds=float(np.mean([line['seconds'] for line in lines])),
    cost=trained.Cost(lines[0]['trained'], lines[0]['bytes']),
  )


def _untrained(
  config: Config, strategy: Strategy, run: Tuned, corpus: dataset.Corpus, log: Log
) -> Entry:
  few = strategy.label == 'few_shot'
  lines = []
  for seed in range(config.compare.seeds) if few else range(1):
    group = {'strategy': strategy.label, 'stage': 'comparison', 'seed': seed}
    line = _found(log, group)
    if line is None:
      began = time.perf_counter()
      guess = (
        untrained.few_shot_of(config, run, corpus, seed)
        if few
        else untrained.zero_shot(config, run, corpus)
      )
      right = trained.correct(guess, corpus.test.examples)
      line = log.add(
        {
          'step': 0,
          **group,
          'accuracy': float(right.mean()),
          'correct': _packed(right),
          'seconds': round(time.perf_counter() - began, 3),
        }
      )
    lines.append(line)
  correct = np.stack([_unpacked(line['correct']) for line in lines])
  return Entry(strategy, None, False, {}, correct, lines[0]['seconds'], None)


def _found(log: Log, group: dict[str, Any]) -> dict[str, Any] | None:
  return next((line for line in log.lines if group.items() <= line.items()), None)


def _loss(line: dict[str, Any]) -> float:
  return float('inf') if line['valid_loss'] is None else line['valid_loss']


def _packed(correct: np.ndarray) -> str:
  return ''.join('01'[int(right)] for right in correct)


def _unpacked(text: str) -> np.ndarray:
  return np.array([char == '1' for char in text])
