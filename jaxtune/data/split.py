"""Records to disjoint sets of records."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.column import column
from jaxtune.typing import InputError

Record = dict[str, Any]


def deduplicate(records: Sequence[Record], field: str) -> tuple[list[Record], int]:
  """Keeps the first record of each value of `field`; also gives how many were dropped.

  Do it before `split`: a text on both sides of a split makes the test score a lie.

  Raises:
    InputError: there are no records, or the field is not in them.
  """
  first: dict[str, Record] = {}
  for record, value in zip(records, column(records, field), strict=True):
    first.setdefault(repr(value), record)  # repr: a value may be a list, which cannot be a key
  return list(first.values()), len(records) - len(first)


def split(
  records: Sequence[Record], sizes: Mapping[str, int | float], seed: int
) -> dict[str, list[Record]]:
  """Shuffles the records and cuts them into the sets that `sizes` names; the rest is `train`.

  Args:
    records: any sequence; the result is a partition of it.
    sizes: `{'valid': 1000, 'test': 0.1}`; an int counts records, a float in (0, 1) is a fraction
      of all of them, rounded.
    seed: the same seed and number of records give the same sets on every machine and release.

  Raises:
    InputError: a size that is negative or no size, or nothing is left to train on.
  """
  counts = {name: _count(name, size, len(records)) for name, size in sizes.items()}
  left = len(records) - sum(counts.values())
  if left < 1:
    asked = ' + '.join(f'{name} {count}' for name, count in counts.items())
    raise InputError(
      f'split: {asked or "no sets"} of {len(records)} records leaves {max(left, 0)} to train on; '
      'ask for less'
    )
  # Only random() itself is promised to stay the same in later Pythons, shuffle() is not; a test set
  # that a resumed run redraws would leak into training.
  draw = random.Random(seed)
  order = sorted(range(len(records)), key=lambda _: draw.random())
  sets = {}
  for name, count in {'train': left, **counts}.items():
    sets[name], order = [records[i] for i in order[:count]], order[count:]
  return sets


def _count(name: str, size: int | float, total: int) -> int:
  if name == 'train':
    raise InputError('split: train gets what the other sets leave; do not give it a size')
  if isinstance(size, int) and size >= 0:
    return size
  if isinstance(size, float) and 0 < size < 1:
    count = round(size * total)
    if not count:
      raise InputError(f'split: {name} {size} of {total} records is none; ask for more or for 0')
    return count
  raise InputError(
    f'split: {name} has size {size!r}; give a count of at least 0, or a fraction between 0 and 1'
  )
