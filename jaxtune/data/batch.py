"""Examples to batches of one static shape, in an endless seeded order whose place can be saved."""

import functools
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain import experimental

from jaxtune.data.encode import SEQUENCES, Example
from jaxtune.typing import InputError

Batch = dict[str, Any]  # of arrays, and of parts, which are batches without weights

_BINS = 64  # rows filled at a time: at 64 nearly all room is used, and a restart refills at most 64
_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # 15x faster for data in memory


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
    saved = state['identity']
    for name, value in self._identity.items():
      if saved.get(name) != value:
        raise InputError(
          f'the saved place in the data is for {name}={saved.get(name)}, this run has '
          f'{name}={value}; continue with the same data and settings, or start a new run'
        )
    self._stream.set_state(state['cursor'])


def batches(
  examples: Sequence[Example],
  batch_size: int,
  *,
  max_length: int,
  seed: int,
  pack: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> Batches:
  """Shuffled batches of padded or packed rows, without end; each epoch has an order of its own.

  A batch holds `tokens` int32 [B, T], `mask` bool [B, T] (real tokens), `weight` float32 [B]
  (ones), T being max_length and padding on the right; `supervised` bool [B, T] when the examples
  have it; and any other value of the examples stacked, as `label` [B]. A part of the examples, as
  `chosen`, is a batch in the batch, with a `mask` of its own. With `pack` several examples
  share a row (Grain's first-fit packing) and `segments` int32 [B, T] (0 is padding, examples are
  1..n) and `positions` int32 [B, T] (from 0 in each) keep them apart. The first token of an example
  is never supervised: in a packed row the token before it belongs to another document.

  A batch that reaches past the end of an epoch goes on into the next, so few examples fill a large
  batch by repetition. Every process counts through the same global order and takes rows
  `process_index::process_count` of each batch: together they see the batches of one process.

  Args:
    examples: as the `encode_*` functions give.
    batch_size: rows of a global batch B; a process gets batch_size / process_count of them.
    max_length: T, at least the length of the longest example.
    seed: of the order, at least 0.
    pack: whether examples share rows.
    process_index: this process, in [0, process_count).
    process_count: number of processes.

  Raises:
    InputError: no examples, an example longer than max_length, a size that does not fit, or
      examples that cannot be packed because they have values of their own (`label`).
  """
  _check(examples, batch_size, max_length, pack, process_index, process_count)
  if seed < 0:
    raise InputError(f'seed is {seed}; it must be at least 0')

  @functools.lru_cache(maxsize=2)  # packing looks back over the border of two epochs
  def order(epoch: int) -> np.ndarray:
    # Grain's own shuffle walks a cycle of thousands of steps for each of a few examples (2 ms at
    # 32). Sorting draws of a named generator gives one order on every machine and release.
    draws = np.random.Generator(np.random.PCG64([seed, epoch])).random(len(examples))
    return np.argsort(draws, kind='stable')

  def pick(index: int) -> Example:
    epoch, place = divmod(index, len(examples))
    return examples[order(epoch)[place]]

  rows = grain.MapDataset.range(sys.maxsize).map(pick).to_iter_dataset(_READ)
  if pack:
    rows = _packed(rows, examples[0], max_length, shuffle_seed=seed)
  collate = functools.partial(
    _collate, max_length=max_length, start=process_index, stride=process_count
  )
  identity = {
    'examples': len(examples),
    'checksum': _checksum(examples),
    'batch_size': batch_size,
    'max_length': max_length,
    'seed': seed,
    'pack': pack,
    'process_count': process_count,
  }
  return Batches(iter(rows.batch(batch_size, batch_fn=collate)), identity)


def eval_batches(
  examples: Sequence[Example],
  batch_size: int,
  *,
  max_length: int,
  pack: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> list[Batch]:
  """All examples once and in order, in batches of the one shape that `batches` gives too.

  The last batch is filled up with copies of its last row that have `weight` 0 and nothing
  supervised: a row without a single real token could turn attention into NaN.

  Raises:
    InputError: as `batches` does.
  """
  _check(examples, batch_size, max_length, pack, process_index, process_count)
  rows: Sequence[Example] = examples
  if pack:
    order = grain.MapDataset.source(examples).to_iter_dataset(_READ)
    rows = list(_packed(order, examples[0], max_length, shuffle_seed=None))
  return [
    _collate(
      rows[start : start + batch_size], max_length, process_index, process_count, fill=batch_size
    )
    for start in range(0, len(rows), batch_size)
  ]


def steps_per_epoch(
  examples: Sequence[Example], batch_size: int, *, max_length: int, pack: bool = False
) -> float:
  """How many batches one pass over the examples takes: `ceil(epochs * this)` steps for `epochs`.

  Exact when rows are padded. Packed rows are counted by packing once in the given order; a shuffled
  epoch differs from that by a few rows.
  """
  _check(examples, batch_size, max_length, pack, process_index=0, process_count=1)
  if not pack:
    return len(examples) / batch_size
  order = grain.MapDataset.source(examples).to_iter_dataset(_READ)
  rows = sum(1 for _ in _packed(order, examples[0], max_length, shuffle_seed=None))
  return rows / batch_size


def _packed(
  rows: grain.IterDataset, example: Example, max_length: int, shuffle_seed: int | None
) -> grain.IterDataset:
  packed = experimental.FirstFitPackIterDataset(
    rows,
    length_struct={key: max_length for key in example},
    num_packing_bins=_BINS,
    shuffle_bins=shuffle_seed is not None,  # first bins are the fullest; spread them over batches
    seed=shuffle_seed or 0,
    meta_features=[key for key in example if key != 'tokens'],  # they need no segments of their own
  )
  return packed.map(_rename)


def _rename(row: Example) -> Example:
  row = dict(row)
  row['segments'] = row.pop('tokens_segment_ids')
  row['positions'] = row.pop('tokens_positions')
  return row


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
      batch[key] = np.zeros((len(rows), max_length), value.dtype)
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


def _check(
  examples: Sequence[Example],
  batch_size: int,
  max_length: int,
  pack: bool,
  process_index: int,
  process_count: int,
) -> None:
  if not examples:
    raise InputError('no examples to batch; at least one is needed')
  if not 0 <= process_index < process_count:
    raise InputError(f'process_index is {process_index}; it must be in [0, {process_count})')
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f'batch_size is {batch_size}; it must be a positive multiple of the number of processes, '
      f'{process_count}'
    )
  longest = max(longest_part(example) for example in examples)
  if longest > max_length:
    raise InputError(
      f'max_length is {max_length}, but an example has {longest} tokens; encode with the same '
      'max_length'
    )
  own = [key for key in examples[0] if key not in ('tokens', 'supervised')]
  if pack and own:
    raise InputError(
      f'examples with {own[0]!r} cannot be packed, for a row would hold several of them; set pack '
      'to False'
    )


def longest_part(example: Mapping[str, Any]) -> int:
  """The tokens of an example, or of the longest of its parts."""
  if 'tokens' in example:
    return len(example['tokens'])
  return max(longest_part(part) for part in example.values() if isinstance(part, Mapping))


def _checksum(examples: Sequence[Example]) -> int:
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
