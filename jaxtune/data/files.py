"""What a user names as her data, as files of one kind and what reads them."""

import difflib
import functools
import glob
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxtune.data import columnar, lines
from jaxtune.data.bad import attempt
from jaxtune.data.lines import Step
from jaxtune.data.row import Row
from jaxtune.typing import InputError

Reader = Callable[[pathlib.Path, int, int], Iterator[Step]]

TEXT = ('.txt', '.md')
_PACKED = ('.csv', '.tsv', '.jsonl', '.ndjson', '.json', *TEXT)  # also with .gz after it
_OWN = ('dataset_info.json', 'state.json')  # beside the files that `datasets` saves


def find(source: str | os.PathLike) -> list[pathlib.Path]:
  """The files that a path, a folder or a pattern such as `data/*.jsonl` stands for, by name.

  A folder stands for its `.txt` and `.md` files, and where it has none (a README aside) for its
  files of the one other kind that it holds.

  Raises:
    InputError: there is no such file, or none that can be read, or files of several kinds.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    files = sorted(f for f in path.iterdir() if f.is_file() and f.name not in _OWN)
    texts = [f for f in files if kind(f) in TEXT]
    others = [f for f in files if kind(f) in READERS and kind(f) not in TEXT]
    if others and all(f.stem.lower() == 'readme' for f in texts):
      texts = []
    files = texts or others
    if not files:
      raise InputError(
        f'{path}: the folder holds no .txt or .md file, nor {", ".join(list(READERS)[:-2])}; name '
        'a file inside it'
      )
  elif path.exists():
    files = [path]
  elif glob.has_magic(str(path)):
    files = sorted(
      f for f in map(pathlib.Path, glob.glob(str(path), recursive=True)) if f.is_file()
    )
    if not files:
      raise InputError(f'{path}: no file matches this pattern; check it')
  else:
    raise InputError(f'{path}: no such file; {_nearby(path)}')
  for file in files:
    if kind(file) not in READERS:
      raise InputError(
        f'{file}: cannot read {kind(file) or "no suffix"!r}; use {", ".join(READERS)}'
      )
  kinds = sorted({kind(f) for f in files})
  if len({READERS[k] for k in kinds}) > 1:
    raise InputError(
      f'{path}: holds files of several kinds ({", ".join(kinds)}); name one kind, as in '
      f'{(path if path.is_dir() else path.parent) / ("*" + kinds[0])}'
    )
  return files


def kind(path: pathlib.Path) -> str:
  """The suffix that says how a file is read; `.jsonl.gz` is read as `.jsonl`."""
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes[-1:] == ['.gz'] and suffixes[-2:-1] and suffixes[-2] in _PACKED:
    return suffixes[-2]
  return suffixes[-1] if suffixes else ''


def whole(path: pathlib.Path) -> str:
  """A whole file of text."""
  with lines.unpacked(path) as file:
    try:
      data = file.read()
    except lines.UNREADABLE as error:
      raise lines.damaged(path, error) from None
  return lines.decode(path, data).removeprefix('\ufeff')


def _listed(path: pathlib.Path, at: int = 0, number: int = 0) -> Iterator[Step]:
  text = whole(path)
  if not text.strip():
    return
  items = lines.loads(str(path), text)
  if not isinstance(items, list):
    name = type(items).__name__
    raise InputError(f'{path}: holds one {name}, not a list; write [{{...}}, ...] or use .jsonl')
  for n, item in enumerate(items[at:], at + 1):
    yield attempt(_item, f'{path}: item {n}', item), n, n


def _item(place: str, item: Any) -> Row:
  return Row(lines.an_object(place, item), place)


def _nearby(path: pathlib.Path) -> str:
  if not path.parent.is_dir():
    return f'the folder {path.parent} does not exist either; check the path'
  near = difflib.get_close_matches(path.name, [f.name for f in path.parent.iterdir()], n=3)
  return f'did you mean {" or ".join(near)}?' if near else f'nothing like it in {path.parent}'


READERS: dict[str, Reader] = {
  '.csv': lines.separated,
  '.tsv': functools.partial(lines.separated, delimiter='\t'),
  '.jsonl': lines.jsonl,
  '.ndjson': lines.jsonl,
  '.json': _listed,
  '.parquet': columnar.parquet,
  '.arrow': columnar.ipc,
  '.feather': columnar.ipc,
  '.ipc': columnar.ipc,
  **dict.fromkeys(TEXT, lines.pieces),
}
