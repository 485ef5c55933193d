"""Parquet and Arrow files as records with the place after each: a few rows in memory at a time."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxtune.data.bad import attempt
from jaxtune.data.lines import Step
from jaxtune.data.row import Row
from jaxtune.typing import InputError

_ROWS = 256  # turned into Python at a time


def parquet(path: pathlib.Path, at: int = 0, number: int = 0) -> Iterator[Step]:
  """The rows of a Parquet file; `at` and `number` both count rows. Resumes at a row group."""
  with _readable(path):
    from pyarrow import parquet

    # Buffered and not prefetched: a row group may be larger than memory.
    file = parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    _check_names(path, file.schema_arrow)
    begin = 0
    for group in range(file.num_row_groups):
      count = file.metadata.row_group(group).num_rows
      if begin + count > at:
        batches = file.iter_batches(_ROWS, row_groups=[group])
        yield from _steps(path, batches, begin, at)
      begin += count


def ipc(path: pathlib.Path, at: int = 0, number: int = 0) -> Iterator[Step]:
  """The rows of an Arrow file or stream (Feather, and what `datasets` saves), as `parquet`."""
  with _readable(path) as arrow:
    # Mapped, since a batch may be larger than memory; skipping over batches reads nothing.
    with arrow.memory_map(str(path)) as file:
      if file.read(6) == b'ARROW1':
        reader = arrow.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
      else:
        file.seek(0)
        reader = arrow.ipc.open_stream(file)
        batches = iter(reader)
      _check_names(path, reader.schema)
      yield from _steps(path, batches, 0, at)


def _steps(path: pathlib.Path, batches: Any, begin: int, at: int) -> Iterator[Step]:
  for batch in batches:
    end = begin + batch.num_rows
    for row in range(max(at, begin), end, _ROWS):
      some = batch.slice(row - begin, min(_ROWS, end - row))
      try:
        values = some.to_pylist()
      except UnicodeDecodeError:
        values = (some.slice(n, 1) for n in range(some.num_rows))
      for number, record in enumerate(values, row + 1):
        yield attempt(_row, record, f'{path}: row {number}'), number, number
    begin = end


def _row(record: Any, place: str) -> Row:
  """A record, or a table of the one that it is."""
  try:
    return Row(record if isinstance(record, dict) else record.to_pylist()[0], place)
  except UnicodeDecodeError as error:
    raise InputError(f'{place}: a text is not UTF-8 ({error}); write the file again') from None


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[Any]:
  try:
    import pyarrow
  except ImportError:
    raise InputError(
      f"{path}: reading {path.suffix} takes pyarrow; pip install 'jaxtune[data]'"
    ) from None
  try:
    yield pyarrow
  except (pyarrow.ArrowException, OSError, EOFError) as error:
    text = ' '.join(str(error).split())[:200]
    raise InputError(
      f'{path}: cannot be read ({text}); the file is damaged, cut off or of another kind: get it '
      'again'
    ) from None


def _check_names(path: pathlib.Path, schema: Any) -> None:
  twice = [name for name in schema.names if schema.names.count(name) > 1]
  if twice:
    raise InputError(f'{path}: two columns are named {twice[0]!r}; rename one')
