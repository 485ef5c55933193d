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


def factory(config: Config) -> Callable[..., train.Reward]:
  """`(**options) -> reward`, of `REWARDS` or the user's own.

  Raises:
    InputError: no such reward, or options that it does not have.
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
  known = inspect.signature(make).parameters
  objective.check_options(known, c.options, 'rollout.options', f'the reward {c.reward}')
  return make


def reward(config: Config) -> train.Reward:
  """What the configuration rewards.

  Raises:
    InputError: as `factory`; or an option that is missing or cannot be.
  """
  options = dict(config.rollout.options)
  return objective.call(factory(config), key='rollout.options', options=options)


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
