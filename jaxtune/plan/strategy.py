"""Which strategy, and a whole setting for it: what a model, its data and a machine suggest.

Rules of thumb, each with its reason and its source. They are to be confirmed by a compile
(`experiments.plan`) and tuned from (`experiments.tune`).
"""

import math
from typing import NamedTuple

from jaxtune.plan.rules import PRIMER, WITHOUT_REGRET, Advice, starting_point, writes

FEW = 32  # rows that fit into a prompt
BITS = 2.0  # that a parameter can hold, arXiv:2404.05405
LARGEST_RANK = 256
TRAINED = 16.0  # bytes of a parameter that trains: float32 weight, gradient and two moments
FROZEN = {'cpu': 4.0, 'tpu': 2.0, 'cuda': 2.0}  # bytes of one that does not
ROOM = 0.7  # of the memory, beside activations


class Model(NamedTuple):
  """What counts of a pretrained model.

  Attributes:
    parameters: of all of it.
    width: of its hidden states.
    per_rank: parameters of a LoRA of rank 1 on all its matrices.
    generates: whether it writes text, so that it can be asked without training.
  """

  parameters: int
  width: int
  per_rank: int
  generates: bool


class Data(NamedTuple):
  """What counts of the rows to train on.

  Attributes:
    task: as in a configuration: 'classification', 'causal_lm', 'preference', ...
    rows: how many.
    bits: of a row: its supervised tokens, at about one bit each, or the logarithm of the classes.
  """

  task: str
  rows: int
  bits: float


def strategy(model: Model, data: Data, memory: float, platform: str) -> tuple[Advice, ...]:
  """The method, and how many bits its base has.

  Args:
    memory: bytes of all devices together.
    platform: 'cpu', 'cuda' or 'tpu': of the base's usual type there.
  """

  def chosen(method: str, reason: str, source: str) -> Advice:
    return Advice('method.name', method, reason, source)

  if data.rows == 0:
    return (chosen('zero_shot', 'there are no rows to learn from', 'docs/evaluate.md'),)
  if data.rows <= FEW:
    if model.generates:
      reason = f'{data.rows} rows fit into the prompt'
      return (chosen('few_shot', reason, 'Brown et al. 2020, arXiv:2005.14165'),)
    reason = f'{data.rows} rows are too few to move the features'
    return (chosen('probe', reason, 'Kumar et al. 2022, arXiv:2202.10054'),)
  needed = rank_for(model, data)
  frozen = FROZEN[platform] * model.parameters
  trained = TRAINED * model.parameters
  if needed > LARGEST_RANK and trained <= ROOM * memory:
    reason = f'{data.rows:,} rows say more than an adapter of rank {LARGEST_RANK} holds'
    return (chosen('full', reason, WITHOUT_REGRET),)
  reason = 'with enough rank it learns as full fine-tuning does, for less memory'
  lora = chosen('lora', reason, WITHOUT_REGRET)
  if frozen <= ROOM * memory:
    return (lora,)
  size, room = frozen / 2**30, memory / 2**30
  reason = f'a base of {size:.0f} GiB does not fit into {room:.0f} GiB beside the rest'
  few = Advice('method.quantize', 'nf4', reason, 'Dettmers et al. 2023, arXiv:2305.14314')
  return lora, few


def rank_for(model: Model, data: Data) -> int:
  """The smallest power of two whose adapter can hold the rows, at 2 bits a parameter."""
  parameters = data.rows * data.bits / BITS
  return 2 ** max(0, math.ceil(math.log2(max(1.0, parameters / max(1, model.per_rank)))))


def advise(
  model: Model, data: Data, memory: float, platform: str = 'cpu', steps: int = 0
) -> tuple[Advice, ...]:
  """A whole setting: strategy, rule, rates, capacity, batch and length.

  Args:
    memory, platform: as of `strategy`.
    steps: a budget; 0 for as many as the usual epochs take.

  Returns:
    Each value with its reason and source, by the keys of a configuration; without training
    (`zero_shot`, `few_shot`) there is nothing beyond the strategy.
  """
  found = list(strategy(model, data, memory, platform))
  method = found[0].value
  if method in ('zero_shot', 'few_shot'):
    return tuple(found)
  rule = 'adamw'
  reason = 'pretrained with Adam, as nearly all are: others gain little and need rates of their own'
  found.append(Advice('optim.name', rule, reason, 'arXiv:2605.10468'))
  batch = 16
  reason = 'under 32: adapters suffer from large batches'
  found.append(Advice('train.batch_size', batch, reason, WITHOUT_REGRET))
  epochs = 3 if data.rows < 2_000 else 2 if data.rows < 20_000 else 1
  usual = max(1, math.ceil(epochs * data.rows / batch))
  if steps and steps < usual:
    found.append(Advice('train.steps', steps, 'the budget', 'yours'))
  else:
    reason = f'1 to 3 are usual, more of them for fewer rows; {usual:,} steps'
    found.append(Advice('train.epochs', float(epochs), reason, PRIMER))
  found.append(Advice('optim.schedule', 'cosine', 'linear or cosine to zero are usual', PRIMER))
  length = min(steps, usual) if steps else usual
  for one in starting_point(method, rule, width=model.width, steps=length, task=data.task):
    if one.key == 'method.rank':
      rank = min(LARGEST_RANK, max(one.value, rank_for(model, data)))
      if rank > one.value:
        text = 'tokens' if writes(data.task) else 'labels'
        reason = f'{data.rows:,} rows of {data.bits:.0f} bits of {text}, at 2 bits a parameter'
        one = one._replace(value=rank, reason=reason)
    found.append(one)
  return tuple(found)
