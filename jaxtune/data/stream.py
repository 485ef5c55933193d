"""Records of files larger than memory, in a stream whose place can be saved."""

import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain

from jaxtune.data import files, hub
from jaxtune.data.bad import Bad, Skipped, attempt
from jaxtune.data.lines import Step
from jaxtune.data.row import Row
from jaxtune.typing import InputError

Convert = Callable[[Row], Row]


def stream(source: str | os.PathLike | Any, skipped: Skipped | None = None) -> grain.IterDataset:
  """The records of files in their order, a few in memory at a time; otherwise as `read`.

  What comes is a Grain dataset: `.map`, `.filter`, `.batch` and the rest build on it, and the place
  of its iterators, `get_state()`, is a small dict of numbers, exact to the record: where in which
  file reading goes on (a byte, in JSONL, CSV and text; a row elsewhere). It ends after the last
  record; `grain.experimental.RepeatIterDataset` begins again. No record may exceed 64 MiB. A text
  of more than 1 MiB comes in pieces, cut between lines; a `.json` list must fit memory whole. To
  go on in a packed (`.gz`) file, the part before is unpacked again.

  What `skipped` counts is left out, what `normalize` refuses of these records too; the saved place
  holds how many it were from the beginning of the source.

  Raises:
    InputError: as `read` does, at once where files are missing, else when a record is reached.
  """
  if isinstance(source, str) and source.startswith(hub.PREFIX):
    source = hub.load(source, streaming=True)
  if hub.is_dataset(source):
    hub.check(source)
    return Stream(source, skipped)
  return Stream(files.find(source), skipped)


class Stream(grain.IterDataset):
  """What `stream` gives; what comes out is made by `converts`, one after the other."""

  def __init__(
    self,
    source: Sequence[pathlib.Path] | Any,
    skipped: Skipped | None,
    converts: tuple[Convert, ...] = (),
  ):
    super().__init__()
    self._source, self._skipped, self._converts = source, skipped, converts

  def __iter__(self) -> 'Records':
    return Records(self._source, self._skipped, self._converts)

  def converted(self, convert: Convert) -> 'Stream':
    """A `map` of which a record is bad where `convert` refuses it."""
    return Stream(self._source, self._skipped, (*self._converts, convert))


class Records(grain.DatasetIterator):
  """The iterator of `stream`; Grain and Orbax save and restore it as any of Grain's."""

  def __init__(
    self,
    source: Sequence[pathlib.Path] | Any,
    skipped: Skipped | None,
    converts: tuple[Convert, ...] = (),
  ):
    super().__init__()
    self._source, self._skipped, self._converts = source, skipped, converts
    self._paths = None if hub.is_dataset(source) else list(source)
    self._count = 1 if self._paths is None else len(self._paths)
    self._files = _checksum(self._paths or [])
    self._file = self._at = self._number = self._bad = 0
    self._steps: Iterator[Step] | None = None

  def __next__(self) -> Row:
    while self._file < self._count:
      if self._steps is None:
        self._steps = self._open()
      step = next(self._steps, None)
      if step is not None:
        record, self._at, self._number = step
        for convert in self._converts:
          record = record if isinstance(record, Bad) else attempt(convert, record)
        if not isinstance(record, Bad):
          return record
        self._skip(record)
        continue
      if not self._at and (self._count == 1 or not self._is_text()):
        raise InputError(
          f'{self._name()}: no records; it is empty or ends with its header, and must hold one'
        )
      self._file, self._at, self._number, self._steps = self._file + 1, 0, 0, None
    raise StopIteration

  def _skip(self, bad: Bad) -> None:
    if self._skipped is None:
      raise InputError(bad.why)
    self._bad += 1
    self._skipped.add(bad, self._bad)

  def get_state(self) -> dict[str, int]:
    """The place: which file, the byte or row in it, the lines before it, and of which files."""
    place = {'file': self._file, 'at': self._at, 'number': self._number, 'files': self._files}
    return place if self._skipped is None else {**place, 'bad': self._bad}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a saved place; the records after it are exactly those that came after it then.

    Raises:
      InputError: the place is one in files of other names or sizes.
    """
    if state['files'] != self._files:
      raise InputError(
        f'the saved place in {self._name()} is one in files of other names or sizes; continue with '
        'the same data, or start a new run'
      )
    self._file, self._at, self._number = state['file'], state['at'], state['number']
    self._bad = state.get('bad', 0)
    self._steps = None

  def _open(self) -> Iterator[Step]:
    if self._paths is None:
      return hub.rows(self._source, self._at)
    path = self._paths[self._file]
    return files.READERS[files.kind(path)](path, self._at, self._number)

  def _is_text(self) -> bool:
    return self._paths is not None and files.kind(self._paths[self._file]) in files.TEXT

  def _name(self) -> str:
    return (
      'the dataset' if self._paths is None else str(self._paths[min(self._file, self._count - 1)])
    )


def _checksum(paths: Sequence[pathlib.Path]) -> int:
  # Names without folders: data may move. Sizes, not times: it may be copied.
  return zlib.crc32(repr([(path.name, path.stat().st_size) for path in paths]).encode())
