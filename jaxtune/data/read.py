"""Files to records: one dict a row, with nothing added to it."""

import csv
import difflib
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxtune.typing import InputError

Record = dict[str, Any]


def read(path: str | os.PathLike) -> list[Record]:
  """Reads a table or texts into a list of records.

  `.csv` and `.tsv` have a header and give strings; `.jsonl` and `.ndjson` hold one JSON object a
  line, `.json` one list of objects, and their values keep their types; `.txt` and `.md` are one
  record `{'text': the whole file}` each, and so is every such file of a folder, sorted by name.
  Bytes are UTF-8; a byte order mark is skipped, and so are blank lines of CSV and JSONL.

  Raises:
    InputError: no such file, an unknown suffix, or content that is not what the suffix says.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in _TEXT and f.is_file())
    if not files:
      raise InputError(f'{path}: the folder holds no .txt or .md file; name a file inside it')
    return [{'text': _decode(file)} for file in files]
  if not path.exists():
    raise InputError(f'{path}: no such file; {_nearby(path)}')
  suffix = path.suffix.lower()
  if suffix not in _READERS:
    raise InputError(f'{path}: cannot read {suffix or "no suffix"!r}; use {", ".join(_READERS)}')
  text = _decode(path)
  if not text.strip():
    raise InputError(f'{path}: the file is empty; it must hold at least one record')
  records = _READERS[suffix](path, text)
  if not records:
    raise InputError(f'{path}: no records in the file; it must hold at least one')
  return records


def _nearby(path: pathlib.Path) -> str:
  if not path.parent.is_dir():
    return f'the folder {path.parent} does not exist either; check the path'
  near = difflib.get_close_matches(path.name, [f.name for f in path.parent.iterdir()], n=3)
  return f'did you mean {" or ".join(near)}?' if near else f'nothing like it in {path.parent}'


def _decode(path: pathlib.Path) -> str:
  data = path.read_bytes()
  try:
    return data.decode('utf-8').removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    at = error.start
    line = data.count(b'\n', 0, at) + 1
    raise InputError(
      f'{path}: line {line}: byte 0x{data[at]:02x} at offset {at} is not UTF-8; save the file as '
      'UTF-8 (for example: iconv -f latin1 -t utf-8)'
    ) from None


def _csv(path: pathlib.Path, text: str, delimiter: str = ',') -> list[Record]:
  # One field may be a whole book, and csv refuses more than 131,072 characters. A quote that is
  # never closed would swallow the rest of the file in silence: strict makes it an error.
  limit = csv.field_size_limit(2**31 - 1)
  rows = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
  try:
    header = next(row for row in rows if row)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
      raise InputError(f'{path}: line {rows.line_num}: two columns are named {twice[0]!r}')
    records = []
    for row in rows:
      if row and len(row) != len(header):
        raise InputError(
          f'{path}: line {rows.line_num}: {len(row)} fields, but the header has {len(header)} '
          f'({", ".join(header)}); quote fields that hold {delimiter!r} or a line break'
        )
      if row:
        records.append(dict(zip(header, row, strict=True)))
    return records
  except csv.Error as error:
    raise InputError(
      f'{path}: line {rows.line_num}: not valid CSV ({error}); double every quote inside a quoted '
      'field, and close every quote'
    ) from None
  finally:
    csv.field_size_limit(limit)


def _tsv(path: pathlib.Path, text: str) -> list[Record]:
  return _csv(path, text, '\t')


def _loads(place: str, text: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    # JSON's own line number counts from the start of `text`, a column is right for one line only.
    where = f'line {error.lineno}, ' if '\n' in text else ''
    raise InputError(
      f'{place}: not JSON ({error.msg} at {where}column {error.colno}): {_short(text, error.pos)}; '
      'mend it there'
    ) from None


def _jsonl(path: pathlib.Path, text: str) -> list[Record]:
  records = []
  for number, line in enumerate(text.split('\n'), 1):  # JSON strings may hold U+2028: no splitlines
    if line.strip():
      place = f'{path}: line {number}'
      records.append(_object(place, _loads(place, line)))
  return records


def _json(path: pathlib.Path, text: str) -> list[Record]:
  items = _loads(str(path), text)
  if not isinstance(items, list):
    kind = type(items).__name__
    raise InputError(f'{path}: holds one {kind}, not a list; write [{{...}}, ...] or use .jsonl')
  return [_object(f'{path}: item {number}', item) for number, item in enumerate(items, 1)]


def _object(place: str, value: Any) -> Record:
  if not isinstance(value, dict):
    raise InputError(
      f'{place}: {_short(json.dumps(value))} is not an object; write {{"name": value, ...}}'
    )
  return value


def _text(path: pathlib.Path, text: str) -> list[Record]:
  return [{'text': text}]


def _short(text: str, at: int = 0) -> str:
  start = max(0, at - 20)
  return repr(text[start : start + 40])


_TEXT = ('.txt', '.md')
_READERS: dict[str, Callable[[pathlib.Path, str], list[Record]]] = {
  '.csv': _csv,
  '.tsv': _tsv,
  '.jsonl': _jsonl,
  '.ndjson': _jsonl,
  '.json': _json,
  **dict.fromkeys(_TEXT, _text),
}
