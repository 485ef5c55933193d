"""Records to disjoint sets of records."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtune.data.column import column
from jaxtune.typing import InputError

Record = dict[str, Any]


def deduplicate(
  records: Sequence[Record],
  field: str | None = None,
  *,
  near: bool = False,
  beside: Iterable[Record] = (),
) -> tuple[list[Record], int]:
  """Keeps the first record of each content; also gives how many were dropped.

  Do it before `split`: a text on both sides of a split makes the test score a lie.

  Args:
    records: any; what is kept keeps its order.
    field: what makes two records the same; None for all of their fields.
    near: whether texts that differ in case and white space only are the same too.
    beside: records of another set, such as a test file; what is in it is dropped here.

  Raises:
    InputError: there are no records, or the field is not in them.
  """
  seen = _contents(beside, field, near)
  kept = []
  for record, value in zip(records, _values(records, field), strict=True):
    content = _content(value, near)
    if content not in seen:
      seen.add(content)
      kept.append(record)
  return kept, len(records) - len(kept)


def absent_from(
  records: Iterable[Record], field: str | None = None, *, near: bool = False
) -> Callable[[Record], bool]:
  """A function that says whether no one of these records has the content of another.

  What is held out can so be kept out of a stream:

    held = list(itertools.islice(stream, 1000))
    train = stream.filter(data.absent_from(held))

  Args: as of `deduplicate`.
  """
  seen = _contents(records, field, near)

  def absent(record: Record) -> bool:
    (value,) = _values([record], field)
    return _content(value, near) not in seen

  return absent


def _contents(records: Iterable[Record], field: str | None, near: bool) -> set[bytes]:
  records = list(records)
  return {_content(value, near) for value in _values(records, field)} if records else set()


def _values(records: Sequence[Record], field: str | None) -> Sequence[Any]:
  return records if field is None and records else column(records, str(field))


def _content(value: Any, near: bool = False, seed: int = 0) -> bytes:
  """A digest of a value of a record, of 128 bits: the same on every machine, in every order."""
  value = _folded(value) if near else value
  if type(value) is str:
    text = json.encoder.encode_basestring(value)  # the same at a third of the time
  else:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
  salt = seed.to_bytes(16, 'little', signed=True)
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16, salt=salt).digest()


def _folded(value: Any) -> Any:
  if isinstance(value, str):
    return ' '.join(value.casefold().split())
  if isinstance(value, Mapping):
    return {key: _folded(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_folded(item) for item in value]
  return value


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


def side_by_hash(
  sizes: Mapping[str, float], seed: int, field: str | None = None
) -> Callable[[Record], str]:
  """A function that says which set a record belongs to, by nothing but what is in the record.

  So a record never changes sides when its file grows or is put into another order, records of the
  same content are on the same side, and a stream can be split:

    side = data.side_by_hash({'test': 0.01}, seed=0)
    train = data.stream('big.jsonl').filter(lambda record: side(record) == 'train')

  Args:
    sizes: `{'valid': 0.05, 'test': 0.05}`, the probability of each set; the rest is `train`.
    seed: another seed gives other sets.
    field: the column that decides, so that records which share it, as all answers to one prompt,
      stay together; None for the whole record.

  Raises:
    InputError: a size that is no fraction, fractions that leave nothing, or later a record without
      the field.
  """
  for name, size in sizes.items():
    if isinstance(size, bool) or not isinstance(size, float) or not 0 < size < 1:
      raise InputError(
        f'split: {name} has size {size!r}; by hash it takes a fraction between 0 and 1'
      )
    if name == 'train':
      raise InputError('split: train gets what the other sets leave; do not give it a size')
  if sum(sizes.values()) >= 1:
    raise InputError(f'split: {dict(sizes)} leaves nothing to train on; ask for less')

  def side(record: Record) -> str:
    value = record if field is None else column([record], field, 'a record')[0]
    draw = int.from_bytes(_content(value, seed=seed)[:8], 'little') / 2**64
    for name, size in sizes.items():
      if draw < size:
        return name
      draw -= size
    return 'train'

  return side


def split_by_hash(
  records: Sequence[Record], sizes: Mapping[str, float], seed: int, field: str | None = None
) -> dict[str, list[Record]]:
  """Cuts the records into sets by `side_by_hash`; each keeps the order of the records.

  Raises:
    InputError: as `side_by_hash` does, or a set would be empty.
  """
  side = side_by_hash(sizes, seed, field)
  sets: dict[str, list[Record]] = {name: [] for name in ('train', *sizes)}
  for record in records:
    sets[side(record)].append(record)
  for name, found in sets.items():
    if not found:
      raise InputError(
        f'split: by hash none of {len(records)} records falls to {name}; ask for more, or cut by '
        'count'
      )
  return sets


def check_classes(splits: Mapping[str, Sequence[Record]], field: str) -> list[str]:
  """One sentence for each set that lacks classes of `train`; lists hold several classes each.

  Raises:
    InputError: another set has a class that `train` lacks, which could not be learned.
  """
  classes = {
    name: {str(one) for value in column(rows, field) for one in _several(value)}
    for name, rows in splits.items()
    if rows
  }
  train, remarks = classes.get('train', set()), []
  for name, found in classes.items():
    if strange := sorted(found - train):
      raise InputError(
        f'split: {name} has the class {strange[0]!r} of {field!r}, which train lacks and cannot '
        'learn; split with another seed, or give the class more rows'
      )
    if absent := sorted(train - found):
      remarks.append(
        f'{name} has no row of {", ".join(map(repr, absent[:5]))}'
        + (f' and {len(absent) - 5} other classes' if len(absent) > 5 else '')
        + f', of the {len(train)} classes of {field!r}: nothing is measured there.'
      )
  return remarks


def _several(value: Any) -> Sequence[Any]:
  return value if isinstance(value, list | tuple) else [value]


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
