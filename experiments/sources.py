"""The rows of a run: of one file or of several, in memory or as they come; read and split."""

import importlib.util
import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain

from experiments import tasks
from experiments.keys import Config
from jaxtune import data
from jaxtune.typing import InputError

Record = dict[str, Any]
TELLING = ('messages', 'prompt', 'completion', 'text', 'negative')  # by which encoders know a kind
LOOK = 4096  # rows of a stream that stand for all of it, where all would have to be seen


class Rows(NamedTuple):
  """What is read.

  Attributes:
    splits: rows to learn from (`train`, of streams the first ones), and `valid` and `test`.
    learned: the rows to learn from once more, by the path that they come from.
    notes: remarks for the report.
    skipped: the rows that cannot be used, where they are left out.
  """

  splits: dict[str, list[Record]]
  learned: dict[str, list[Record] | grain.IterDataset]
  notes: list[str]
  skipped: data.Skipped | None = None


def resolve(source: str) -> str:
  """A path or Hub id as it is; `package://NAME/PATH` as the file inside the installed package."""
  match = re.fullmatch(r'package://(\w+)/(.+)', source)
  if not match:
    return source
  spec = importlib.util.find_spec(match[1])
  if spec is None or not spec.submodule_search_locations:
    raise InputError(f'{source}: the package {match[1]!r} is not installed')
  return str(pathlib.Path(spec.submodule_search_locations[0]) / match[2])


def read(config: Config) -> Rows:
  """The rows of all sources, and some of each held out.

  In memory no row is there twice. What is held out of a stream is kept out of that stream alone.
  """
  found = Rows({'train': [], 'valid': [], 'test': []}, {}, [], leave_out(config))
  for source in (config.data.path, *config.data.also):
    path = resolve(source)
    if config.data.stream:
      splits, learned, note = _streamed(config, path, found.skipped)
    else:
      splits, note = _split(config, path, found.splits, found.skipped)
      learned = splits['train']
    for name, rows in splits.items():
      found.splits[name].extend(rows)
    found.learned[source] = learned
    found.notes.append(f'{pathlib.Path(path).name}: {note}')
  if found.skipped:
    found.skipped.check(sum(map(len, found.splits.values())))
  return found


def seed(config: Config) -> int:
  """Of the splits and of the order of rows."""
  return config.seed if config.data.seed < 0 else config.data.seed


def leave_out(config: Config) -> data.Skipped | None:
  """What counts the rows that cannot be used, where a run leaves them out."""
  return data.Skipped(config.data.bad_limit) if config.data.bad == 'skip' else None


def mixed(config: Config, learned: Mapping[str, Any]) -> grain.IterDataset:
  """What is learned of all sources, each with its share."""
  weights = dict(zip(learned, config.data.weights, strict=True)) if config.data.weights else None
  if weights is None and len(learned) == 1:
    weights = dict.fromkeys(learned, 1.0)
  return data.mix(learned, weights, temperature=config.data.temperature, seed=seed(config))


def _split(
  config: Config, path: str, others: Mapping[str, list[Record]], skipped: data.Skipped | None
) -> tuple[dict[str, list[Record]], str]:
  """The rows of a file in their splits, without those that other files have."""
  records, said = read_file(config, path, skipped)
  by = duplicates_by(records[0])
  beside = [row for rows in others.values() for row in rows if by is None or by in row]
  records, dropped = data.deduplicate(records, by, beside=beside)
  if not records:
    raise InputError(f'{path}: all {dropped:,} rows are in the files before it; leave it out')
  sizes = {name: held_out(config.data[name], len(records)) for name in ('valid', 'test')}
  splits = data.split(records, sizes, seed(config))
  counts = ', '.join(f'{len(rows):,} {name}' for name, rows in splits.items())
  return splits, f'{counts} rows; {dropped:,} duplicates left out. Read as {said}.'


def _streamed(
  config: Config, path: str, skipped: data.Skipped | None
) -> tuple[dict[str, list[Record]], grain.IterDataset, str]:
  """The rows of a file as they come, but those that are held out: the first ones."""
  records = data.stream(path, skipped)
  found = data.normalize(records, kind=kind(config), columns=columns(config), source=path)
  said = accepted(config, path, found)
  if found.kind == 'text' and config.task == 'embedding':
    raise InputError(
      f'{path}: these are {said}, whose halves are pairs only where all are in memory; leave out '
      'data.stream'
    )
  sizes = {name: held_out(config.data[name], 0) for name in ('valid', 'test')}
  first = list(itertools.islice(found.records, sum(sizes.values())))
  held, learned = first, found.records
  if first:
    by = duplicates_by(first[0])
    held, _ = data.deduplicate(first, by)
    learned = learned.filter(data.absent_from(held, by))
  splits = {'valid': held[: sizes['valid']], 'test': held[sizes['valid'] :]}
  splits['train'] = list(itertools.islice(learned, LOOK))
  if not splits['train']:
    raise InputError(
      f'{path}: its {len(first):,} rows are held out (data.valid and data.test), and none is left '
      'to learn from; hold out fewer'
    )
  return (
    splits,
    learned,
    f'read as it comes; the first {len(first):,} rows are held out ({len(splits["valid"]):,} '
    f'valid, {len(splits["test"]):,} test), and nothing like them is learned from it. '
    f'Read as {said}.',
  )


def read_file(
  config: Config, path: str, skipped: data.Skipped | None = None
) -> tuple[list[Record], str]:
  """The rows of a file with the fields of their kind beside their columns, and what they are."""
  records: list[Any] = data.read(path, skipped)
  found = data.normalize(
    records, kind=kind(config), columns=columns(config), source=path, skipped=skipped
  )
  said, columned = accepted(config, path, found), {row.place: row for row in records}
  # Beside the fields of its kind a row keeps its columns, but none that makes another kind of it.
  hidden = set(TELLING) - {config.data.text}
  rows: list[Record] = []
  for new in found.records:
    old = {k: v for k, v in columned[new.place].items() if k not in hidden}
    rows.append(data.Row({**old, **new}, new.place))
  check = tasks.TASKS[config.task].check
  if skipped and check:
    rows = [*data.sift(rows, check, skipped)]
  if config.task == 'embedding' and 'text' in found.records[0]:
    pairs, left_out = data.halves(rows)
    said += f', of which the halves are pairs; {left_out:,} of one sentence were left out'
    return list(map(dict, pairs)), said
  return rows, said


def accepted(config: Config, path: str, found: data.Formatted) -> str:
  """What the records are; refuses a kind that the task cannot learn from."""
  known = tasks.TASKS[config.task].kinds
  if found.kind == 'labelled' and 'text' in known:
    return 'plain text (the labels are not used)'
  if found.kind not in known:
    raise InputError(
      f'{path}: these are {found.said}, and task {config.task} learns from {" or ".join(known)}; '
      'take another task, or set data.kind'
    )
  return found.said


def kind(config: Config) -> str | None:
  """The kind of the records where the configuration fixes it."""
  if config.data.kind:
    return config.data.kind
  if config.data.prompt:
    return 'completion'
  known = tasks.TASKS[config.task].kinds
  return known[0] if len(known) == 1 else None


def columns(config: Config) -> dict[str, str]:
  """Where fields have another name in the data than in their kind, or are filled by a template."""
  c = config.data
  named = {'text': c.text, 'label': c.label}
  if c.prompt:
    named = {'prompt': c.prompt, 'completion': c.completion}
  if kind(config) not in ('labelled', 'completion'):
    named = {name: column for name, column in named.items() if name == 'text' != column}
  return {**{name: column for name, column in named.items() if column != name}, **dict(c.columns)}


def duplicates_by(record: Record) -> str | None:
  """What makes two rows the same: what the model is asked, or all of it where that is compared."""
  compared = ({'chosen'}, {'positive'}, {'messages'}, {'tags'}, {'completion', 'label'})
  if any(fields <= set(record) for fields in compared):
    return None
  return 'prompt' if 'prompt' in record else 'text'


def held_out(size: float, rows: int) -> int:
  """A count from 1 up; below that a fraction of the rows, and then at least one of them."""
  return int(size) if size >= 1 or size == 0 else max(1, round(size * rows))
