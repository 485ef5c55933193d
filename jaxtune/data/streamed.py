"""Records of any number to batches: a window of them is in memory at a time."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
from grain import experimental

from jaxtune.data import batch
from jaxtune.data import pack as packing
from jaxtune.data.encode import Encoded, Example
from jaxtune.data.windows import Windows
from jaxtune.typing import InputError

Record = Mapping[str, Any]

_HELD = 2**25  # characters of records in memory; arrays of their tokens take about 3 bytes each


def stream_batches(
  records: grain.IterDataset,
  encode: Callable[[Sequence[Record]], Encoded],
  batch_size: int,
  *,
  max_length: int,
  seed: int,
  pack: str | bool = False,
  buckets: Sequence[int] = (),
  window: int = 4096,
  process_index: int = 0,
  process_count: int = 1,
) -> batch.Batches:
  """The batches of `batches` from records that need not fit the memory, as `data.stream` reads.

    encode = lambda records: data.render_many(tok, records, max_length=1024)
    data.stream_batches(data.stream('big.jsonl'), encode, 8, max_length=1024, seed=0, pack='concat')

  `window` records at a time (or fewer of 32 million characters) are encoded and their examples
  shuffled: a batch mixes neighbours in the file, so shuffle a sorted file once. Behind the last
  record the first comes again, in another order. The saved place is a few numbers: going on from it
  encodes the windows that were open again.

  Every process reads and encodes all records, and takes its rows of each batch.

  Args:
    records: a Grain dataset whose iterators save their place; endless ones, as mixtures, too.
    encode: a pure function of some records, such as `render_many` with a `max_length`.
    window: records that are shuffled among each other.
    batch_size, max_length, seed, pack, buckets, process_index, process_count: as of `batches`.

  Raises:
    InputError: as `batches`; what is wrong with a record, when its window is reached.
  """
  pack = packing.strategy(pack)
  if window < 1:
    raise InputError(f'window is {window}; it must be at least 1')

  def examples(window: list[Record]) -> list[Example]:
    found = encode(window).examples
    if pack != 'concat':
      batch.check_lengths(found, max_length)
    return found

  # The first examples say what all are like, and in a saved place what they were encoded with.
  first = examples(_take(iter(records), 64))
  batch.check(first, batch_size, max_length, pack, process_index, process_count, seed)

  def make(window: list[Record], number: int) -> list[Example]:
    return packing.shuffled(examples(window), seed, number)

  return batch.of_stream(
    Windows(experimental.RepeatIterDataset(records), lambda stream: _take(stream, window), make),
    list(first[0]),
    batch_size,
    max_length=max_length,
    seed=seed,
    pack=pack,
    buckets=buckets,
    process_index=process_index,
    process_count=process_count,
    identity={'checksum': batch.checksum(first), 'window': window},
  )


def _take(stream: Iterator[Record], count: int) -> list[Record]:
  window: list[Record] = []
  characters = 0
  for record in itertools.islice(stream, count):
    window.append(record)
    characters += _characters(record)
    if characters >= _HELD:
      break
  return window


def _characters(value: Any) -> int:
  if isinstance(value, str):
    return len(value)
  if isinstance(value, Mapping):
    return sum(map(_characters, value.values()))
  if isinstance(value, (list, tuple)):
    return sum(map(_characters, value))
  return 1
