"""Files to records: one dict a row, with nothing added to it."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxtune.data import files, hub
from jaxtune.data.bad import Bad, Skipped, attempt, good
from jaxtune.data.row import Row
from jaxtune.typing import InputError


def read(source: str | os.PathLike | Any, skipped: Skipped | None = None) -> list[dict[str, Any]]:
  """Reads tables or texts into a list of records; what does not fit memory is for `stream`.

  `.csv` and `.tsv` have a header and give strings; `.jsonl` and `.ndjson` hold one JSON object a
  line, `.json` one list of objects, `.parquet` and `.arrow` (`.feather`, `.ipc`) typed columns, and
  their values keep their types; `.txt` and `.md` are one record `{'text': the whole file}` each.
  All but Parquet and Arrow may be packed (`.jsonl.gz`). Bytes are UTF-8; a byte order mark is
  skipped, and so are blank lines of CSV and JSONL. A folder or a pattern (`data/*.jsonl`) gives the
  records of its files, by name. A record is a `Row`: it knows its file and line, for errors later.

  Args:
    source: a path, a folder, a pattern, a dataset of Hugging Face's `datasets`, or its name on the
      Hub, `hub://owner/name[:config][/split]`.
    skipped: counts the records that cannot be read and are left out; without it one is an error.

  Raises:
    InputError: no such file, an unknown suffix, or content that is not what the suffix says.
  """
  if isinstance(source, str) and source.startswith(hub.PREFIX):
    source = hub.load(source)
  if hub.is_dataset(source):
    hub.check(source)
    rows: list[dict[str, Any]] = [*good((record for record, _, _ in hub.rows(source)), skipped)]
    if not rows:
      raise InputError('the dataset has no rows; it must hold at least one')
    return rows
  paths = files.find(source)
  records: list[dict[str, Any]] = []
  for path in paths:
    before = len(records), skipped and len(skipped.reasons)
    is_text = files.kind(path) in files.TEXT
    records += good(_text(path, len(paths) == 1) if is_text else _rows(path), skipped)
    if before == (len(records), skipped and len(skipped.reasons)):
      raise InputError(
        f'{path}: no records in the file, which is empty or ends with its header; it must hold at '
        'least one'
      )
  if skipped and not records:
    skipped.check(0)
  return records


def _text(path: pathlib.Path, alone: bool) -> Iterator[Row | Bad]:
  text = attempt(files.whole, path)
  if isinstance(text, Bad):
    yield text
  elif text.strip() or not alone:  # an empty file among others is an empty text
    yield Row({'text': text}, str(path))


def _rows(path: pathlib.Path) -> Iterator[Row | Bad]:
  return (record for record, _, _ in files.READERS[files.kind(path)](path, 0, 0))
