"""Examples to batches of one static shape, in an endless seeded order whose place can be saved."""

import functools
import itertools
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from jaxtune.data import pack as packing
from jaxtune.data.encode import SEQUENCES, Example
from jaxtune.data.windows import Windows
from jaxtune.typing import InputError

Batch = dict[str, Any]  # of arrays, and of parts, which are batches without weights

_SORTED = 32  # batches whose rows are sorted by length at a time


class Batches(grain.DatasetIterator):
  """The endless iterator of `batches`; Grain and Orbax save and restore it as any of Grain's.

  Its place counts examples of the global order, so it is the same in every process.
  """

  def __init__(self, stream: grain.DatasetIterator, identity: Mapping[str, Any]):
    super().__init__(stream)
    self._stream = stream
    self._identity = dict(identity)

  def __next__(self) -> Batch:
    return next(self._stream)

  def get_state(self) -> dict[str, Any]:
    """The place as a small dict that JSON can hold, with what the place is a place in."""
    return {'cursor': self._stream.get_state(), 'identity': dict(self._identity)}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a saved place; the batches after it are exactly those that came after it then.

    Raises:
      InputError: the place was saved with other data, sizes, seed or number of processes.
    """
    saved, own = state['identity'], self._identity
    for name in {**own, **saved}:
      if saved.get(name) != own.get(name):
        raise InputError(
          f'the saved place in the data is for {name}={saved.get(name)}, this run has '
          f'{name}={own.get(name)}; continue with the same data and settings, or start a new run'
        )
    self._stream.set_state(state['cursor'])


def batches(
  examples: Sequence[Example],
  batch_size: int,
  *,
  max_length: int,
  seed: int,
  pack: str | bool = False,
  buckets: Sequence[int] = (),
  process_index: int = 0,
  process_count: int = 1,
) -> Batches:
  """Shuffled batches of padded or packed rows, without end; each epoch has an order of its own.

  A batch holds `tokens` int32 [B, T], `mask` bool [B, T] (real tokens), `weight` float32 [B]
  (ones), T being max_length and padding on the right; `supervised` bool [B, T] when the examples
  have it; and any other value of the examples stacked, as `label` [B]. A part of the examples, as
  `chosen`, is a batch in the batch, with a `mask` of its own.

  With `pack` several examples share a row, and `segments` int32 [B, T] (0 is padding, examples are
  1..n) and `positions` int32 [B, T] (from 0 in each) keep them apart. The first token of an example
  is never supervised: in a packed row the token before it belongs to another document.

  - 'first_fit' (or True): an example goes into the first of 64 open rows with room (Grain's).
  - 'best_fit': the longest of a window of 256 rows first, each into the row that it fills best
    (`pack.best_fit`); it pads least without cutting.
  - 'concat': examples of any length one after the other, cut where a row ends (`pack.concat`); no
    padding, but what is cut loses its context.

  With `buckets` examples stay alone in their rows, and a batch holds rows of about one length: the
  rows of 32 batches at a time are sorted by it, and each batch is as wide as the smallest of the
  buckets that holds it, or `max_length`. They come in random order, but the widest of the first 32
  ahead, so that what does not fit the memory fails at once. A step compiles once for each width.

  A batch that reaches past the end of an epoch goes on into the next, so few examples fill a large
  batch by repetition. Every process counts through the same global order and takes rows
  `process_index::process_count` of each batch: together they see the batches of one process.

  Args:
    examples: as the `encode_*` functions give.
    batch_size: rows of a global batch B; a process gets batch_size / process_count of them.
    max_length: T, at least the length of the longest example (but with 'concat').
    seed: of the order, at least 0.
    pack: how examples share rows; False: not at all.
    buckets: widths of batches below max_length, such as (128, 256); none to pad all to max_length.
    process_index: this process, in [0, process_count).
    process_count: number of processes.

  Raises:
    InputError: no examples, an example longer than max_length, a size that does not fit, or
      examples that cannot be packed because they have values of their own (`label`).
  """
  pack = packing.strategy(pack)
  check(examples, batch_size, max_length, pack, process_index, process_count, seed)

  @functools.lru_cache(maxsize=2)  # packing looks back over the border of two epochs
  def order(epoch: int) -> np.ndarray:
    # Grain's own shuffle walks a cycle of thousands of steps for each of a few examples (2 ms at
    # 32). Sorting draws of a named generator gives one order on every machine and release.
    draws = np.random.Generator(np.random.PCG64([seed, epoch])).random(len(examples))
    return np.argsort(draws, kind='stable')

  def pick(index: int) -> Example:
    epoch, place = divmod(index, len(examples))
    return examples[order(epoch)[place]]

  stream = grain.MapDataset.range(sys.maxsize).map(pick).to_iter_dataset(packing.READ)
  about = {'examples': len(examples), 'checksum': checksum(examples)}
  return of_stream(
    stream,
    list(examples[0]),
    batch_size,
    max_length=max_length,
    seed=seed,
    pack=pack,
    buckets=buckets,
    process_index=process_index,
    process_count=process_count,
    identity=about,
  )


def of_stream(
  examples: grain.IterDataset,
  keys: Sequence[str],
  batch_size: int,
  *,
  max_length: int,
  seed: int,
  pack: str,
  buckets: Sequence[int],
  process_index: int,
  process_count: int,
  identity: Mapping[str, Any],
) -> Batches:
  """The batches of an endless stream of examples with these keys, in the order of the stream."""
  widths = _widths(buckets, max_length, pack)
  if pack:
    examples = packing.packed(examples, keys, pack, max_length, shuffle_seed=seed)

  def collate(group: Sequence[Example]) -> Batch:
    return _collate(group, _width(group, widths), process_index, process_count)

  if buckets:
    made = _of_one_length(examples, batch_size, seed).map(collate)
  else:
    made = examples.batch(batch_size, batch_fn=collate)
  settings = {
    'batch_size': batch_size,
    'max_length': max_length,
    'seed': seed,
    'pack': {'': False, 'first_fit': True}.get(pack, pack),  # as the first release wrote it
    'process_count': process_count,
    **({'buckets': widths} if buckets else {}),
  }
  return Batches(iter(made), {**identity, **settings})


def eval_batches(
  examples: Sequence[Example],
  batch_size: int,
  *,
  max_length: int,
  pack: str | bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> list[Batch]:
  """All examples once and in order, in batches of the one shape that `batches` gives too.

  The last batch is filled up with copies of its last row that have `weight` 0 and nothing
  supervised: a row without a single real token could turn attention into NaN.

  Raises:
    InputError: as `batches` does.
  """
  pack = packing.strategy(pack)
  check(examples, batch_size, max_length, pack, process_index, process_count)
  rows: Sequence[Example] = examples
  if pack:
    order = grain.MapDataset.source(examples).to_iter_dataset(packing.READ)
    rows = list(packing.packed(order, list(examples[0]), pack, max_length, shuffle_seed=None))
  return [
    _collate(
      rows[start : start + batch_size], max_length, process_index, process_count, fill=batch_size
    )
    for start in range(0, len(rows), batch_size)
  ]


def steps_per_epoch(
  examples: Sequence[Example], batch_size: int, *, max_length: int, pack: str | bool = False
) -> float:
  """How many batches one pass over the examples takes: `ceil(epochs * this)` steps for `epochs`.

  Exact when rows are padded. Packed rows are counted by packing once in the given order; a shuffled
  epoch differs from that by a few rows.
  """
  pack = packing.strategy(pack)
  check(examples, batch_size, max_length, pack, process_index=0, process_count=1)
  if not pack:
    return len(examples) / batch_size
  lengths = [len(example['tokens']) for example in examples]
  return packing.count_rows(lengths, pack, max_length) / batch_size


def _of_one_length(rows: grain.IterDataset, batch_size: int, seed: int) -> grain.IterDataset:
  """Groups of `batch_size` rows of about one length, in random order."""

  def make(window: list[Example], number: int) -> list[list[Example]]:
    lengths = [longest_part(example) for example in window]
    order = np.argsort(lengths, kind='stable').reshape(-1, batch_size)
    groups = [[window[i] for i in group] for group in order]
    if number:
      return packing.shuffled(groups, seed, number)
    return [groups[-1], *packing.shuffled(groups[:-1], seed, number)]

  count = batch_size * _SORTED
  return Windows(rows, lambda stream: list(itertools.islice(stream, count)), make)


def _widths(buckets: Sequence[int], max_length: int, pack: str) -> list[int]:
  if buckets and pack:
    raise InputError(f'buckets are for rows that are not packed; set pack={pack!r} or buckets')
  if any(not 0 < width <= max_length for width in buckets):
    raise InputError(
      f'buckets are {", ".join(map(str, buckets))}; each must be in [1, {max_length}], max_length'
    )
  return sorted({*buckets, max_length})


def _width(group: Sequence[Example], widths: Sequence[int]) -> int:
  if len(widths) == 1:
    return widths[0]
  longest = max(map(longest_part, group))
  return next(width for width in widths if width >= longest)


def _collate(
  rows: Sequence[Example], max_length: int, start: int, stride: int, fill: int | None = None
) -> Batch:
  real = len(rows)
  rows = [*rows, *[rows[-1]] * ((fill or real) - real)][start::stride]
  weight = (np.arange(fill or real) < real)[start::stride]
  return {**_stack(rows, max_length, weight), 'weight': weight.astype(np.float32)}


def _stack(rows: Sequence[Example], max_length: int, real: np.ndarray) -> Batch:
  batch: Batch = {}
  for key, value in rows[0].items():
    if isinstance(value, Mapping):
      batch[key] = _stack([row[key] for row in rows], max_length, real)
    elif key in SEQUENCES:
      shape = (len(rows), max_length, *value.shape[1:])
      batch[key] = np.full(shape, packing.PADDING.get(key, 0), value.dtype)
      for target, row in zip(batch[key], rows, strict=True):
        target[: len(row[key])] = row[key]
    else:
      batch[key] = np.stack([row[key] for row in rows])
  if 'tokens' not in batch:
    return batch
  if 'segments' in batch:
    batch['mask'] = batch['segments'] > 0
    learnable = batch['positions'] > 0
  else:
    lengths = np.array([len(row['tokens']) for row in rows])
    batch['mask'] = np.arange(max_length) < lengths[:, None]
    learnable = np.arange(max_length) > 0
  if 'supervised' in batch:
    batch['supervised'] &= learnable & real[:, None]
  return batch


def check(
  examples: Sequence[Example],
  batch_size: int,
  max_length: int,
  pack: str,
  process_index: int,
  process_count: int,
  seed: int = 0,
) -> None:
  """Says what of these cannot be batched."""
  if not examples:
    raise InputError('no examples to batch; at least one is needed')
  if seed < 0:
    raise InputError(f'seed is {seed}; it must be at least 0')
  if not 0 <= process_index < process_count:
    raise InputError(f'process_index is {process_index}; it must be in [0, {process_count})')
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f'batch_size is {batch_size}; it must be a positive multiple of the number of processes, '
      f'{process_count}'
    )
  if pack:
    packing.check(examples, pack, max_length)
  if pack != 'concat':
    check_lengths(examples, max_length)


def check_lengths(examples: Sequence[Example], max_length: int) -> None:
  """Says whether an example is too long for a row."""
  longest = max(map(longest_part, examples), default=0)
  if longest > max_length:
    raise InputError(
      f'max_length is {max_length}, but an example has {longest} tokens; encode with the same '
      'max_length'
    )


def longest_part(example: Mapping[str, Any]) -> int:
  """The tokens of an example, or of the longest of its parts."""
  if 'tokens' in example:
    return len(example['tokens'])
  return max(longest_part(part) for part in example.values() if isinstance(part, Mapping))


def checksum(examples: Sequence[Example]) -> int:
  """A number that tells examples, in this order, from others."""
  check = 0
  for example in examples:
    check = _continued(example, check)
  return check


def _continued(example: Mapping[str, Any], check: int) -> int:
  for key in sorted(example):
    value = example[key]
    if isinstance(value, Mapping):
      check = _continued(value, check)
    else:
      check = zlib.crc32(np.ascontiguousarray(value).tobytes(), check)
  return check
