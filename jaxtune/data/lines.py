"""Files of lines as records with the place after each: one record in memory at a time."""

import collections
import csv
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxtune.data.bad import Bad, attempt
from jaxtune.data.row import Row, check_characters
from jaxtune.typing import InputError

# A record after which reading goes on at byte `at` (of the unpacked file), `number` lines read.
Step = tuple[Row | Bad, int, int]

# Bytes of one record; what is longer is a file that has lost its line breaks or a quote.
LONGEST = 2**26
UNREADABLE = (OSError, EOFError, zlib.error)
PIECE = 2**20  # bytes of a long text that are one record in a stream


class Lines:
  """The lines of a file, decoded; `at` and `number` are the bytes and lines read so far.

  Call `record` where one begins. What of its bytes is no text stands in `fault` then.
  """

  def __init__(self, path: pathlib.Path, at: int = 0, number: int = 0, returns: bool = False):
    self.path = path
    self.at = at
    self.number = number
    self.fault = ''
    self._begin = at
    self._second = (at, number)  # where the second line of the record begins
    self._returns = returns  # whether a carriage return alone ends a line too, as in old CSV
    self._parts: collections.deque[bytes] = collections.deque()
    self._file = unpacked(path)
    try:
      self._file.seek(at)
    except UNREADABLE as error:
      raise damaged(path, error) from None

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    if not self._parts:
      self._fill()
    data = self._parts.popleft()
    try:
      text = decode(self.path, data, self.at, self.number + 1)
    except InputError as error:
      self.fault = self.fault or str(error)
      text = data.decode('utf-8', 'replace')
    if not self.at:
      text = text.removeprefix('\ufeff')
    if self.at == self._begin:
      self._second = (self.at + len(data), self.number + 1)
    self.number += 1
    self.at += len(data)
    return text

  def record(self) -> None:
    """A record begins here."""
    self._begin, self.fault = self.at, ''

  def back(self) -> None:
    """Goes back to the second line of the record, which is then the first of another."""
    self.at, self.number = self._second
    self._parts.clear()
    self._file.seek(self.at)

  def _fill(self) -> None:
    room = LONGEST - (self.at - self._begin)
    try:
      data = self._file.readline(room + 1)
    except UNREADABLE as error:
      raise damaged(self.path, error, f' after line {self.number}') from None
    if not data:
      raise StopIteration
    if len(data) > room:
      raise InputError(
        f'{self.path}: line {self.number + 1}: a record of more than {LONGEST >> 20} MiB; put each '
        'record on a line of its own and close every quote, or cut the text into several records'
      )
    if self._returns and b'\r' in data[:-2]:
      self._parts.extend(re.findall(rb'[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+', data))
    else:
      self._parts.append(data)

  def __del__(self) -> None:
    if hasattr(self, '_file'):
      self._file.close()


def unpacked(path: pathlib.Path) -> BinaryIO:
  """The bytes of a file, or of what is packed in a `.gz`."""
  if path.suffix.lower() == '.gz':
    return io.BufferedReader(gzip.open(path), 2**20)  # type: ignore[arg-type]
  return open(path, 'rb')


def damaged(path: pathlib.Path, error: Exception, where: str = '') -> InputError:
  """What to say of a file that cannot be read or unpacked."""
  return InputError(
    f'{path}: cannot be read{where} ({error}); the file is damaged or cut off, get it again'
  )


def decode(path: pathlib.Path, data: bytes, at: int = 0, line: int = 1) -> str:
  """Bytes of UTF-8, which stand at byte `at` of the file, in line `line`, as text."""
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    line += data.count(b'\n', 0, error.start)
    raise InputError(
      f'{path}: line {line}: byte 0x{data[error.start]:02x} at offset {at + error.start} is not '
      'UTF-8; save the file as UTF-8 (for example: iconv -f latin1 -t utf-8)'
    ) from None


def jsonl(path: pathlib.Path, at: int = 0, number: int = 0) -> Iterator[Step]:
  """The objects of a file, one a line; JSON strings may hold U+2028, which ends no line."""
  lines = Lines(path, at, number)

  def row(line: str) -> Row:
    if lines.fault:
      raise InputError(lines.fault)
    place = f'{path}: line {lines.number}'
    return Row(an_object(place, loads(place, line)), place)

  for line in lines:
    if line.strip():
      yield attempt(row, line), lines.at, lines.number
    lines.record()


def separated(
  path: pathlib.Path, at: int = 0, number: int = 0, delimiter: str = ','
) -> Iterator[Step]:
  """The rows of CSV under its header, all values strings; fields may hold line breaks."""
  lines = Lines(path, returns=True)
  header = next(_rows(path, lines, delimiter), None)
  if header is None:
    return
  if isinstance(header, Bad):
    raise InputError(header.why)
  twice = [name for name, count in collections.Counter(header).items() if count > 1]
  if twice:
    raise InputError(f'{path}: line {lines.number}: two columns are named {twice[0]!r}')
  if at:
    lines = Lines(path, at, number, returns=True)

  def record(row: list[str]) -> Row:
    if len(row) != len(header):
      raise InputError(
        f'{path}: line {lines.number}: {len(row)} fields, but the header has {len(header)} '
        f'({", ".join(header)}); quote fields that hold {delimiter!r} or a line break'
      )
    return Row(zip(header, row, strict=True), f'{path}: line {lines.number}')

  for row in _rows(path, lines, delimiter):
    made = row if isinstance(row, Bad) else attempt(record, row)
    yield made, lines.at, lines.number


def _rows(path: pathlib.Path, lines: Lines, delimiter: str) -> Iterator[list[str] | Bad]:
  # A quote that is never closed would swallow the rest of the file in silence: strict makes it an
  # error. One field may be a whole book, and csv refuses more than 131,072 characters.
  rows = csv.reader(lines, delimiter=delimiter, strict=True)
  while True:
    lines.record()
    limit = csv.field_size_limit(LONGEST)
    try:
      row = next(rows, None)
    except csv.Error as error:
      # A quote too many has taken in the lines behind it: they may be records.
      last = lines.number
      lines.back()
      first = lines.number
      where = f'line {first}' if first == last else f'lines {first} to {last}'
      yield Bad(
        f'{path}: {where}: not valid CSV ({error}); double every quote inside a quoted field, '
        'and close every quote'
      )
      continue
    finally:
      csv.field_size_limit(limit)
    if row is None:
      return
    if lines.fault:
      yield Bad(lines.fault)
    elif row:
      yield row


def pieces(path: pathlib.Path, at: int = 0, number: int = 0) -> Iterator[Step]:
  """A text as one record, or a long one in pieces of at most `PIECE` bytes, cut between lines."""
  lines = Lines(path, at, number)
  taken: list[str] = []
  start, first, fault = lines.at, lines.number, ''

  def piece() -> Row | Bad:
    return Bad(fault) if fault else Row({'text': ''.join(taken)}, f'{path}: line {first + 1}')

  for line in lines:
    fault = fault or lines.fault
    lines.record()
    taken.append(line)
    if lines.at - start >= PIECE:
      yield piece(), lines.at, lines.number
      taken, start, first, fault = [], lines.at, lines.number, ''
  if taken:
    yield piece(), lines.at, lines.number


def loads(place: str, text: str) -> Any:
  """JSON whose objects have each key once and whose strings are whole characters."""
  try:
    value = _decoder.decode(text)
  except json.JSONDecodeError as error:
    # JSON's own line number counts from the start of `text`, a column is right for one line only.
    where = f'line {error.lineno}, ' if '\n' in text.rstrip() else ''
    raise InputError(
      f'{place}: not JSON ({error.msg.removesuffix(" at")} at {where}column {error.colno}): '
      f'{short(text, error.pos)}; mend it there'
    ) from None
  except (ValueError, RecursionError) as error:  # a key twice, a number or a nesting without end
    raise InputError(f'{place}: cannot read the JSON ({error}); mend it there') from None
  if '\\u' in text:
    check_characters(json.dumps(value, ensure_ascii=False), place)
  return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = dict(pairs)
  if len(values) != len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'an object has the key {twice!r} twice')
  return values


_decoder = json.JSONDecoder(object_pairs_hook=_once)


def an_object(place: str, value: Any) -> dict[str, Any]:
  """The value, which must be a JSON object."""
  if not isinstance(value, dict):
    raise InputError(
      f'{place}: {short(json.dumps(value))} is not an object; write {{"name": value, ...}}'
    )
  return value


def short(text: str, at: int = 0) -> str:
  """What stands around character `at`."""
  start = max(0, at - 20)
  return repr(text[start : start + 40])
