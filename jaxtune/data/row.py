"""A record that knows where it stands, so that an error can name its file and line."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtune.typing import InputError


class RecordError(InputError):
  """What is wrong with one record alone, so that the others could be used without it."""


class Row(dict[str, Any]):
  """A record as any other dict, with `place`, as 'reviews.jsonl: line 12'.

  The place stays with the record through shuffles, splits and mixtures; `dict(row)` drops it.
  """

  __slots__ = ('place',)

  def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]], place: str):
    super().__init__(values)
    self.place = place

  def __reduce__(self) -> tuple[Any, ...]:
    return Row, (dict(self), self.place)


def place(record: Mapping[str, Any], number: int, source: str = 'the data') -> str:
  """Where a record stands: what it knows itself, else its number from 1 in `source`."""
  return record.place if isinstance(record, Row) else f'{source}: row {number}'


def check_characters(text: str, where: str) -> None:
  """Refuses a text that UTF-8 cannot hold."""
  if text.isascii():
    return
  try:
    text.encode()
  except UnicodeEncodeError as error:
    around = text[max(0, error.start - 20) : error.start + 20]
    raise RecordError(
      f'{where} holds half a character ({around!a}), as JSON writes with a lone \\ud800; correct '
      'or remove the row'
    ) from None
