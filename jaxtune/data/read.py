"""Files to records: one dict a row, with nothing added to it."""

import os
from typing import Any

from jaxtune.data import files, hub
from jaxtune.data.row import Row
from jaxtune.typing import InputError


def read(source: str | os.PathLike | Any) -> list[dict[str, Any]]:
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

  Raises:
    InputError: no such file, an unknown suffix, or content that is not what the suffix says.
  """
  if isinstance(source, str) and source.startswith(hub.PREFIX):
    source = hub.load(source)
  if hub.is_dataset(source):
    hub.check(source)
    rows: list[dict[str, Any]] = [record for record, _, _ in hub.rows(source)]
    if not rows:
      raise InputError('the dataset has no rows; it must hold at least one')
    return rows
  paths = files.find(source)
  records: list[dict[str, Any]] = []
  for path in paths:
    before = len(records)
    if files.kind(path) in files.TEXT:
      text = files.whole(path)
      if text.strip() or len(paths) > 1:  # an empty file among others is an empty text
        records.append(Row({'text': text}, str(path)))
    else:
      records += [record for record, _, _ in files.READERS[files.kind(path)](path, 0, 0)]
    if len(records) == before:
      raise InputError(
        f'{path}: no records in the file, which is empty or ends with its header; it must hold at '
        'least one'
      )
  return records
