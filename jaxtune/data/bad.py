"""Records that cannot be used: refused, or left out and counted. Their errors all pass here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxtune.data.row import RecordError
from jaxtune.typing import InputError

Made = TypeVar('Made')

_NAMED = 3  # of those left out, in a remark


class Bad(NamedTuple):
  """What stands in place of a record that cannot be used: where it is, and why."""

  why: str


class Skipped:
  """The records that were left out, each counted once however often it is read.

  Which they are depends on nothing but the records, so a stream goes on at a saved place as ever.

  Args:
    limit: how many may be: from 1 up a count, below it a fraction of all records, which is looked
      at when all of a file are read.

  Attributes:
    reasons: one for each, with its file and line.
  """

  def __init__(self, limit: float):
    if not limit > 0:
      raise InputError(f'the limit of bad records is {limit}; it must be above zero')
    self.limit = limit
    self.reasons: dict[str, None] = {}

  def add(self, bad: Bad, count: int = 0) -> None:
    """Counts one; `count` are those that a stream, this one included, has left out so far.

    Raises:
      InputError: they are more than the limit.
    """
    self.reasons[bad.why] = None
    if 1 <= self.limit < max(count, len(self.reasons)):
      raise InputError(
        f'more than {self.limit:,.0f} records cannot be used (data.bad_limit); the first: '
        f'{next(iter(self.reasons))}'
      )

  def check(self, kept: int) -> None:
    """Says whether beside `kept` records too many were left out, or all."""
    bad = len(self.reasons)
    if bad and (not kept or self.limit < 1 and bad > self.limit * (bad + kept)):
      limit = f'more than {self.limit:.2%} (data.bad_limit)' if kept else 'which are all'
      raise InputError(
        f'{bad:,} of {bad + kept:,} records cannot be used, {limit}; the first: '
        f'{next(iter(self.reasons))}'
      )

  def remark(self) -> str:
    """How many, and what was wrong with the first; empty where none was."""
    first = [why.rstrip('.') for why in list(self.reasons)[:_NAMED]]
    more = f'; and {len(self.reasons) - _NAMED:,} more' if len(self.reasons) > _NAMED else ''
    said = f'{len(self.reasons):,} records could not be used and were left out: {"; ".join(first)}'
    return f'{said}{more}.' if first else ''


def attempt(make: Callable[..., Made], *arguments: Any) -> Made | Bad:
  """What `make` gives of one record, or what is wrong with it."""
  try:
    return make(*arguments)
  except InputError as error:
    return Bad(str(error))


def good(records: Iterable[Made | Bad], skipped: Skipped | None) -> Iterator[Made]:
  """The records that can be used.

  Raises:
    InputError: one cannot, and none may be left out; or as `Skipped.add`.
  """
  for record in records:
    if not isinstance(record, Bad):
      yield record
    elif skipped is None:
      raise InputError(record.why)
    else:
      skipped.add(record)


def usable(
  records: Sequence[Any], use: Callable[[Sequence[Any]], Made], skipped: Skipped | None
) -> tuple[Sequence[Any], Made]:
  """The records that `use` takes, and what it makes of them together.

  Raises:
    InputError: one is refused, and none may be left out; or all are; or as `Skipped.add`.
  """
  try:
    return records, use(records)
  except RecordError:
    if skipped is None:
      raise
  records = sift(records, use, skipped)
  if not records:
    skipped.check(0)
  return records, use(records)


def sift(
  records: Sequence[Any], use: Callable[[Sequence[Any]], Any], skipped: Skipped
) -> Sequence[Any]:
  """The records without those that `use` refuses one by one (`RecordError`), found by halving."""
  try:
    use(records)
  except RecordError as error:
    if len(records) == 1:
      skipped.add(Bad(str(error)))
      return []
    middle = len(records) // 2
    return [
      *sift(records[:middle], use, skipped),
      *sift(records[middle:], use, skipped),
    ]
  except InputError:  # of some records together, which is no fault of one
    pass
  return records
