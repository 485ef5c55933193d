"""Where to start a run: the usual values, each with its reason and its source.

They are rules of thumb, to be tuned from; docs/adapt.md and docs/optim.md have the tables.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from jaxtune import adapt

BESIDE = ('lora', 'dora', 'adalora', 'loha', 'lokr')  # products beside the weights
WHOLE = ('full', 'freeze', 'last_layers')  # the weights themselves
LIKE_ADAM = ('adamw', 'adam', 'adamw_8bit', 'adam_mini', 'cautious_adamw', 'lora_plus', 'radam')
LIKE_LION = ('lion', 'cautious_lion')
PRIMER = "Tinker's LoRA primer and cookbook"
GLUE = "LoRA's own GLUE scripts, microsoft/LoRA"
WITHOUT_REGRET = 'LoRA Without Regret, thinkingmachines.ai/blog/lora'


class Advice(NamedTuple):
  """A value of one key of a configuration, and why."""

  key: str
  value: Any
  reason: str
  source: str


def starting_point(
  method: str, rule: str, *, width: int, steps: int, task: str
) -> tuple[Advice, ...]:
  """The values to start from; keys for which there is no rule of thumb are left out.

  Args:
    method: of `adapt.METHODS`.
    rule: of `optim.names()`.
    width: of the model's hidden states.
    steps: of the run.
    task: what is learned, as in a configuration: 'classification', 'causal_lm', 'preference', ...
  """
  options = adapt.options_of(method)
  found = [learning_rate(method, rule, width=width, steps=steps, task=task)]
  found.append(Advice('optim.warmup', 0.06, 'between 5 and 10% of the steps is usual', GLUE))
  if method in BESIDE:
    found += capacity(task)
  if 'dropout' in options:
    reason = 'the recipes of LoRA leave it out'
    found.append(Advice('method.options.dropout', 0.0, reason, WITHOUT_REGRET))
  return tuple(advice for advice in found if advice)


def learning_rate(method: str, rule: str, *, width: int, steps: int, task: str) -> Advice | None:
  """5e-5 (2000 / width)^0.78 for whole weights; 10 times that for LoRA, 15 times in short runs.

  None for methods and rules whose rates have another scale.
  """
  if method not in BESIDE + WHOLE or rule not in LIKE_ADAM + LIKE_LION:
    return None
  lora = method in BESIDE
  if task == 'preference':
    rate, reason, source = 5e-6 if lora else 1e-6, 'usual for preferences', 'TRL, DPO'
  else:
    rate = 5e-5 * (2000 / width) ** 0.78
    reason, source = f'5e-5 (2000 / {width})^0.78', PRIMER
    if lora:
      factor = 10 if steps >= 100 else 15
      rate *= factor
      short = ', of a run under 100 steps' if factor == 15 else ''
      reason = f'{factor} times the rate of full fine-tuning{short}, {reason}'
  if rule in LIKE_LION:
    rate /= 5
    reason += "; Lion's is a third to a tenth of AdamW's"
  return Advice('optim.lr', float(f'{rate:.1e}'), reason, source)


def capacity(task: str) -> Collection[Advice]:
  """Rank and alpha of an adapter."""
  rank, what = (32, 'text') if writes(task) else (16, 'labels')
  return (
    Advice('method.rank', rank, f'enough for {what} in most data of fine-tuning', WITHOUT_REGRET),
    Advice(
      'method.alpha', 32.0, 'held as the rank grows, the best rate hardly moves', WITHOUT_REGRET
    ),
  )


def writes(task: str) -> bool:
  """Whether text is learned, and not labels."""
  return task in ('causal_lm', 'masked_lm', 'preference', 'unpaired_preference', 'reinforcement')
