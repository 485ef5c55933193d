"""Several documents in one row, kept apart by segments: less padding, the same loss."""

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from grain import experimental

from jaxtune.data.encode import SEQUENCES, Example
from jaxtune.data.windows import Windows
from jaxtune.typing import InputError

STRATEGIES = ('first_fit', 'best_fit', 'concat')

_BINS = 64  # first fit: rows filled at a time, and what a restart refills
_ROWS = 256  # the others: rows' worth of tokens packed at a time; reviews fill them to 99.7%


class Pieces(NamedTuple):
  """Where tokens go, int arrays `[n]` in the order of `row`, then of `at`.

  Attributes:
    example: tokens `start` to `stop` of this example
    start:
    stop:
    row: go into this row
    at: from this place on.
  """

  example: np.ndarray
  start: np.ndarray
  stop: np.ndarray
  row: np.ndarray
  at: np.ndarray


def strategy(pack: str | bool) -> str:
  """The name of a strategy, '' for none; `True` is 'first_fit'.

  Raises:
    InputError: there is none of that name.
  """
  name = ('first_fit' if pack else '') if isinstance(pack, bool) else pack
  if name and name not in STRATEGIES:
    raise InputError(f'pack is {pack!r}; it must be one of {", ".join(STRATEGIES)}, or False')
  return name


def best_fit(lengths: Sequence[int] | np.ndarray, width: int) -> Pieces:
  """Best-fit-decreasing: the longest first, each into the row that it leaves the least room in.

  No example is cut, and none may be longer than `width`. Ding et al. 2024, "Fewer truncations
  improve language modeling" (arXiv:2404.10830), section 3.2, without their split of what is longer
  than a row: the encoding has cut that already. Takes n log n steps for n examples.
  """
  lengths = np.asarray(lengths, np.int64)
  order = np.argsort(-lengths, kind='stable')
  rows = np.zeros(len(lengths), np.int64)
  at = np.zeros(len(lengths), np.int64)
  room: list[tuple[int, int]] = []  # sorted: what is left of a row, and its number
  count = 0
  for i, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
    place = bisect.bisect_left(room, (length, -1))
    if place < len(room):
      left, row = room.pop(place)
    else:
      left, row, count = width, count, count + 1
    rows[i], at[i] = row, width - left
    if left > length:
      bisect.insort(room, (left - length, row))
  order = np.lexsort((at, rows))
  return Pieces(order, np.zeros(len(order), np.int64), lengths[order], rows[order], at[order])


def concat(lengths: Sequence[int] | np.ndarray, width: int) -> Pieces:
  """Examples of any length one after the other, cut where a row ends.

  What is cut goes on in the next row with its last token again: so each token of an example but its
  first has a predictor, and is learned once. The next piece sees nothing before that token.
  """
  pieces = []
  row = at = 0
  for example, length in enumerate(np.asarray(lengths).tolist()):
    start = 0
    while True:
      if width - at < min(length - start, 2):  # one token of several would teach nothing there
        row, at = row + 1, 0
      stop = min(length, start + width - at)
      pieces.append((example, start, stop, row, at))
      at += stop - start
      if stop == length:
        break
      start = stop - 1
  return Pieces(*np.array(pieces, np.int64).reshape(-1, 5).T)


_PLANS: dict[str, Callable[[Sequence[int] | np.ndarray, int], Pieces]] = {
  'best_fit': best_fit,
  'concat': concat,
}


def rows(examples: Sequence[Example], width: int, name: str) -> list[Example]:
  """The rows of one window: what the examples hold, with `segments` and `positions`, all `[T]`.

  Segments are 1..n in a row and 0 in what no piece fills, positions count from 0 in each piece.
  """
  plan = _PLANS[name]([len(example['tokens']) for example in examples], width)
  size = plan.stop - plan.start
  within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
  first = np.cumsum([0, *(len(example['tokens']) for example in examples)])
  source = np.repeat(first[plan.example] + plan.start, size) + within
  target = np.repeat(plan.row * width + plan.at, size) + within
  count = int(plan.row[-1]) + 1

  def laid(values: np.ndarray, rest: Any = 0) -> np.ndarray:
    out = np.full(count * width, rest, values.dtype)
    out[target] = values
    return out.reshape(count, width)

  # The number of a piece in its row: pieces before it, less those of the rows before.
  number = np.arange(len(plan.row)) - np.searchsorted(plan.row, plan.row)
  packed = {
    key: laid(np.concatenate([example[key] for example in examples])[source], PADDING.get(key, 0))
    for key in examples[0]
  }
  packed['segments'] = laid(np.repeat(number + 1, size).astype(np.int32))
  packed['positions'] = laid(within.astype(np.int32))
  return [{key: value[row] for key, value in packed.items()} for row in range(count)]


# What stands where no token is; anything else is 0.
PADDING = {'tags': -100, 'words': -1}


def packed(
  examples: grain.IterDataset,
  keys: Iterable[str],
  name: str,
  width: int,
  shuffle_seed: int | None,
) -> grain.IterDataset:
  """A stream of examples as a stream of rows; a seed spreads full and sparse rows over batches."""
  if name == 'first_fit':
    first_fit = experimental.FirstFitPackIterDataset(
      examples,
      length_struct={key: width for key in keys},
      num_packing_bins=_BINS,
      shuffle_bins=shuffle_seed is not None,  # first bins are the fullest
      seed=shuffle_seed or 0,
      meta_features=[key for key in keys if key != 'tokens'],  # they need no segments of their own
      padding_struct={key: PADDING.get(key, 0) for key in keys},
    )
    return first_fit.map(_renamed)

  def make(window: list[Example], number: int) -> list[Example]:
    made = rows(window, width, name)
    return made if shuffle_seed is None else shuffled(made, shuffle_seed, number)

  return Windows(examples, lambda stream: _window(stream, width), make)


def shuffled(items: Sequence[Any], seed: int, number: int) -> list[Any]:
  """The items of window `number` in a random order: one on every machine and release."""
  draws = np.random.Generator(np.random.PCG64([seed, number])).random(len(items))
  return [items[i] for i in np.argsort(draws, kind='stable')]


def count_rows(lengths: Sequence[int], name: str, width: int) -> int:
  """How many rows examples of these lengths take, in this order."""
  if name == 'first_fit':
    tokens = np.zeros(max(lengths), np.int32)
    examples = grain.MapDataset.source([{'tokens': tokens[:n]} for n in lengths])
    stream = examples.to_iter_dataset(READ)
    return sum(1 for _ in packed(stream, ['tokens'], name, width, shuffle_seed=None))
  total, start = 0, 0
  ends = np.cumsum(lengths)
  while start < len(ends):
    before = ends[start - 1] if start else 0
    stop = int(np.searchsorted(ends, before + _ROWS * width)) + 1
    total += int(_PLANS[name](lengths[start:stop], width).row[-1]) + 1
    start = stop
  return total


# 15x faster than threads for data in memory.
READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def fill(batches: Iterable[Mapping[str, Any]]) -> float:
  """The share of real tokens in batches, in (0, 1]: what the padding leaves of every step.

  Rows without weight, which only fill the last batch of an evaluation, count as padding.
  """
  real = slots = 0
  for batch in batches:
    for mask in _masks(batch):
      real += int((mask & (batch['weight'] > 0)[:, None]).sum())
      slots += mask.size
  if not slots:
    raise InputError('no batches to look at; at least one is needed')
  return real / slots


def _masks(batch: Mapping[str, Any]) -> Iterator[np.ndarray]:
  if 'mask' in batch:
    yield np.asarray(batch['mask'])
  for part in batch.values():
    if isinstance(part, Mapping):
      yield from _masks(part)


def check(examples: Sequence[Example], name: str, width: int) -> None:
  """Says whether rows of `width` tokens can hold several of these examples.

  Raises:
    InputError: they have values of their own, or concat's pieces have no room for two tokens.
  """
  own = [key for key in examples[0] if key not in SEQUENCES]
  if own:
    raise InputError(
      f'examples with {own[0]!r} cannot be packed, for a row would hold several of them; set pack '
      'to False'
    )
  if name == 'concat' and width < 2:
    raise InputError(f'max_length is {width}; to cut documents it must be at least 2')


def _window(stream: Iterator[Example], width: int) -> list[Example]:
  window, tokens = [], 0
  for example in stream:
    window.append(example)
    tokens += len(example['tokens'])
    if tokens >= _ROWS * width:
      break
  return window


def _renamed(row: Example) -> Example:
  row = dict(row)
  row['segments'] = row.pop('tokens_segment_ids')
  row['positions'] = row.pop('tokens_positions')
  return row
