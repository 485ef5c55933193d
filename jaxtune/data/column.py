"""One named field of all records."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.data.row import RecordError, check_characters, place
from jaxtune.typing import InputError


def column(records: Sequence[Mapping[str, Any]], name: str, source: str = 'the data') -> list[Any]:
  """The values of field `name`, one a record; `source` is what an error calls the records.

  Raises:
    InputError: there are no records, or one of them lacks the field; it lists the fields there are.
  """
  if not records:
    raise InputError(f'{source}: no records; at least one is needed')
  for number, record in enumerate(records, 1):
    if name not in record:
      known = [str(key) for key in record]
      near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise RecordError(
        f'{place(record, number, source)} has no column {name!r}; it has '
        f'{", ".join(known) or "none"}{hint}'
      )
  return [record[name] for record in records]


def number(value: Any) -> float:
  """The value as a number; NaN where it is none, or none that float32 holds."""
  try:
    found = float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan
  return found if abs(found) <= float(np.finfo(np.float32).max) else math.nan


def numbers(
  records: Sequence[Mapping[str, Any]], name: str, source: str = 'the data'
) -> list[np.ndarray]:
  """The values of field `name`, all of them finite numbers, as float32.

  Raises:
    InputError: as `column` does, or a value is no finite number.
  """
  found = []
  for row, (record, value) in enumerate(zip(records, column(records, name, source), strict=True)):
    if math.isnan(number(value)):
      raise RecordError(
        f'{place(record, row + 1, source)}: {name!r} is {value!r:.40}, which is not a finite '
        'number; correct or remove the row'
      )
    found.append(np.asarray(number(value), np.float32))
  return found


def strings(records: Sequence[Mapping[str, Any]], name: str, source: str = 'the data') -> list[str]:
  """The values of field `name`, all of them strings.

  Raises:
    InputError: as `column` does, or a value is not a string that UTF-8 can hold.
  """
  values = column(records, name, source)
  for number, (record, value) in enumerate(zip(records, values, strict=True), 1):
    if not isinstance(value, str):
      raise RecordError(
        f'{place(record, number, source)}: {name!r} is {value!r:.40}, which is not a string; '
        'choose a column of text'
      )
    if not value.isascii():
      check_characters(value, f'{place(record, number, source)}: {name!r}')
  return values
