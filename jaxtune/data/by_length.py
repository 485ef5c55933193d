"""Examples to batches of about one length each, for an evaluation: little padding, few shapes."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxtune.data.batch import Batch, eval_batches
from jaxtune.data.encode import Example
from jaxtune.typing import InputError


def by_length(
  examples: Sequence[Example], batch_size: int, *, limit: int | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
  """Pairs of places `[n]` in `examples` and a batch of them, the longest first.

  The batches are those of `eval_batches`, padded on the right to `padded_length` tokens, but not
  beyond `limit`, which a model's positions may set. Rows behind the first n only fill the batch and
  have weight 0.

  Raises:
    InputError: batch_size is below 1.
  """
  if batch_size < 1:
    raise InputError(f'batch_size is {batch_size}; it must be at least 1')
  lengths = [len(example['tokens']) for example in examples]
  for places in longest_first(lengths, batch_size):
    longest = lengths[places[0]]
    width = padded_length(longest)
    width = width if limit is None else max(longest, min(width, limit))
    (batch,) = eval_batches([examples[i] for i in places], batch_size, max_length=width)
    yield places, batch


def longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
  """Places `[n]` of `batch_size` rows at a time, or of what is left, the longest first."""
  order = np.argsort(-np.array(lengths, int), kind='stable')
  for start in range(0, len(order), batch_size):
    yield order[start : start + batch_size]


def padded_length(tokens: int) -> int:
  """The next of 32, 64, 96, 128, 192, 256, 384, 512, ...: each compiles once, which takes seconds.

  Quarters of the power of two above, so at most a third of a batch is padding.
  """
  step = max(32, (1 << (tokens - 1).bit_length()) // 4)
  return -(-tokens // step) * step
