"""Learning from rewards: whose they are, and how answers are drawn."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import objective
from experiments.keys import Config
from experiments.sentiment import judge
from jaxtune import adapt, data, losses, models, train
from jaxtune.models import ModelSpec
from jaxtune.typing import Batch, InputError

# Each is `(**options) -> train.Reward`, and so is FILE.py:FUNCTION of the user's own.
REWARDS: dict[str, Callable[..., train.Reward]] = {
  'classifier': judge.reward,
  'exact_match': train.exact_match,
  'matches': train.matches,
  'near_length': train.near_length,
}


def reward(config: Config) -> train.Reward:
  """What the configuration rewards.

  Raises:
    InputError: no such reward, or options that it does not have, or lacks.
  """
  c = config.rollout
  if objective.OWN in c.reward:
    make = objective.own_function(c.reward, 'rollout.reward')
  elif c.reward in REWARDS:
    make = REWARDS[c.reward]
  else:
    raise InputError(
      f'rollout.reward is {c.reward!r}; choose one of {", ".join(REWARDS)}, or FILE.py:FUNCTION '
      'of your own'
    )
  parameters = inspect.signature(make).parameters
  for name in c.options:
    if name not in parameters:
      raise InputError(
        f'rollout.options.{name}: the reward {c.reward} has no such option; it has '
        f'{", ".join(parameters) or "none"}'
      )
  for name, parameter in parameters.items():
    if parameter.default is parameter.empty and name not in c.options:
      raise InputError(f'rollout.options.{name} is missing; the reward {c.reward} needs it')
  return make(**dict(c.options))


def rolls(
  config: Config,
  model: ModelSpec,
  tok: data.Tokenizer,
  records: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, train.Roll]:
  """Of each split `(params, step, prompts) -> batch, metrics` for the prompts of its records."""
  c = config.rollout
  advantage = functools.partial(losses.advantages, scale=c.scale)
  make = functools.partial(
    train.rollout,
    model,
    tok,
    rewards={c.reward: reward(config)},
    group=c.group,
    max_tokens=c.max_tokens,
    seed=config.seed,
    sampling=models.Sampling(temperature=c.temperature),
    advantage=losses.leave_one_out if config.objective.name == 'rloo' else advantage,
    overlong=c.overlong,
    mask_truncated=c.mask_truncated,
    kl=c.kl,
    reference=adapt.policy_and_reference if c.kl else None,
    old=c.updates > 1,
    merge=not config.method.quantize,
    chunk=config.train.chunk or None,
  )
  return {split: make(rows) for split, rows in records.items()}


def example(config: Config, prompts: Batch) -> dict[str, np.ndarray]:
  """The shapes of a step's batch, for `train.prepare`."""
  c = config.rollout
  return train.rollout_example(prompts, c.group, c.max_tokens, old=c.updates > 1)
