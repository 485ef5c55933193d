"""Records as tokens, each with what becomes of it: learned, only seen, cut off or padding."""

import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxtune import data
from jaxtune.data.encode import Example, tokenize
from jaxtune.data.render import Supervise
from jaxtune.typing import InputError

MOST = 20_000  # records that are measured
_LARGE = 2**28  # bytes of a file that is not read whole
_WHOLE = 2**30  # tokens, longer than any text

LEARNED, SEEN, CUT, PADDING, BORDER = 'learned', 'seen', 'cut', 'padding', 'document'
RENDERED = ('text', 'completion', 'messages', 'preference', 'unpaired')


class Part(NamedTuple):
  """A text of a record: `chosen`, or '' where there is one; tokens int32 [T], learned bool [T]."""

  name: str
  tokens: np.ndarray
  learned: np.ndarray


class Inspected(NamedTuple):
  """What the file holds: the records that were looked at and their parts, side by side.

  Attributes:
    said: what the format is, a sentence.
    kind: of the records, as `data.normalize` names it.
    records:
    parts: of each record.
    whole: whether these are all records of the file.
    skipped: those that cannot be used.
  """

  said: str
  kind: str
  records: Sequence[Mapping[str, Any]]
  parts: list[list[Part]]
  whole: bool
  skipped: data.Skipped


class Token(NamedTuple):
  """Of a text: what it is to the loss, and its text; a `document` only marks where one begins."""

  kind: str
  text: str


def read(
  path: str,
  tok: data.Tokenizer,
  kind: str | None,
  columns: Mapping[str, str],
  supervise: Supervise,
) -> Inspected:
  """Reads, recognizes and tokenizes a file, or the beginning of a large one.

  Raises:
    InputError: as `data.read`, `data.normalize` and `data.render_many`.
  """
  rows: list[Any]
  skipped = data.Skipped(math.inf)
  if os.path.isfile(path) and pathlib.Path(path).stat().st_size > _LARGE:
    rows = list(itertools.islice(iter(data.stream(path, skipped)), MOST + 1))
  else:
    rows = data.read(path, skipped)
  whole = len(rows) <= MOST
  found = data.normalize(rows[:MOST], kind=kind, columns=columns, source=path, skipped=skipped)

  def parts(records: Sequence[Any]) -> list[list[Part]]:
    return _parts(tok, found.kind, records, supervise, path)

  records, made = data.usable(found.records, parts, skipped)
  return Inspected(found.said, found.kind, records, made, whole, skipped)


def _parts(
  tok: data.Tokenizer, kind: str, records: Sequence[data.Row], supervise: Supervise, path: str
) -> list[list[Part]]:
  parts: list[list[Part]] = [[] for _ in records]
  for name, texts in _texts(kind, records).items():
    if kind in RENDERED:
      made = data.render_many(tok, texts, supervise, source=path)
      for record, (_, learned) in zip(texts, made, strict=True):
        learned &= record.get('completion') != ''  # runs leave these rows out
    else:
      made = _encoded(tok, kind, texts)
    for row, (tokens, learned) in zip(parts, made, strict=True):
      row.append(Part(name, tokens, learned))
  return parts


def _texts(kind: str, records: Sequence[data.Row]) -> dict[str, list[data.Row]]:
  """The texts of the records by the names of their parts."""

  def both(name: str) -> list[data.Row]:
    keep = ('prompt', 'tools')
    return [
      data.Row({k: r[k] for k in keep if k in r} | {'completion': r[name]}, r.place)
      for r in records
    ]

  if kind == 'preference':
    return {name: both(name) for name in ('chosen', 'rejected')}
  if kind in ('pair', 'triplet', 'scored_pair'):
    names = [name for name in ('anchor', 'positive', 'negative') if name in records[0]]
    return {name: [data.Row({'text': r[name]}, r.place) for r in records] for name in names}
  return {'': list(records)}


def _encoded(
  tok: data.Tokenizer, kind: str, records: Sequence[data.Row]
) -> list[tuple[np.ndarray, np.ndarray]]:
  """What a model is given of records from which no next token is learned."""
  if kind == 'tags':
    found = data.encode_tags(records, tok.encoder, max_length=_WHOLE, tags=None).examples
    return [(example['tokens'], example['tags'] >= 0) for example in found]
  if kind == 'prompt':
    ids = [example['tokens'] for example in data.encode_prompts(tok, records, _WHOLE).examples]
  else:
    texts, _ = tokenize(tok.encoder, [record['text'] for record in records], _WHOLE)
    ids = [np.array(text, np.int32) for text in texts]
  return [(one, np.zeros(len(one), np.bool_)) for one in ids]


def tokens(encoder: tokenizers.Tokenizer, part: Part, max_length: int | None = None) -> list[Token]:
  """The tokens of a part in order, those behind `max_length` cut off."""
  cut = len(part.tokens) if max_length is None else max_length
  kinds = [
    CUT if place >= cut else LEARNED if learned else SEEN
    for place, learned in enumerate(part.learned)
  ]
  return list(_shown(encoder, part.tokens.tolist(), kinds))


def packed(
  encoder: tokenizers.Tokenizer,
  examples: Sequence[Example],
  max_length: int,
  pack: str,
  rows: int,
) -> list[list[Token]]:
  """The first rows of a batch: documents that share them, and padding."""
  few = list(examples[: 64 * rows])
  batch = data.eval_batches(few, rows, max_length=max_length, pack=pack or False)[0]
  shown = []
  for row in range(rows):
    if not batch['weight'][row]:
      continue
    real = int(batch['mask'][row].sum())
    line: list[Token] = []
    segments = np.asarray(batch['segments' if 'segments' in batch else 'mask'][row], np.int32)
    for segment in range(1, int(segments.max()) + 1):
      places = np.flatnonzero(segments == segment)
      kinds = [LEARNED if batch['supervised'][row, i] else SEEN for i in places]
      line.append(Token(BORDER, f'document {segment}'))
      line += _shown(encoder, batch['tokens'][row, places].tolist(), kinds)
    if real < max_length:
      line.append(Token(PADDING, f'{max_length - real:,} tokens of padding'))
    shown.append(line)
  return shown


def _shown(
  encoder: tokenizers.Tokenizer, ids: Sequence[int], kinds: Sequence[str]
) -> Iterable[Token]:
  """Tokens as texts; several that make one character are one."""
  before: list[int] = []
  held: list[int] = []
  for place, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
    held.append(token)
    # Alone a token may lose the space ahead of it.
    ahead = encoder.decode(before, skip_special_tokens=False)
    text = encoder.decode(before + held, skip_special_tokens=False)[len(ahead) :]
    last = place + 1 == len(ids) or kinds[place + 1] != kind
    if text.endswith('\ufffd') and len(held) < 4 and not last:
      continue
    yield Token(kind, text)
    before, held = held, []


def columns(given: Sequence[str]) -> dict[str, str]:
  """`FIELD=COLUMN` as a mapping.

  Raises:
    InputError: one is not of that form.
  """
  found = {}
  for pair in given:
    field, _, column = pair.partition('=')
    if not field or not column:
      raise InputError(f'--columns: {pair!r} is not FIELD=COLUMN, as prompt=question')
    found[field] = column
  return found
