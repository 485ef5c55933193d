"""Records of any common format, recognized, checked, and brought into one form a kind."""

import difflib
import itertools
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain

from jaxtune.data import canonical
from jaxtune.data.bad import Bad, Skipped, attempt, good
from jaxtune.data.conversation import short_of
from jaxtune.data.row import Row, place
from jaxtune.data.stream import Stream
from jaxtune.typing import InputError

Record = Mapping[str, Any]

# What each kind is made of, as a person names its columns: `field=column`, `?` when a row may lack
# it; what stands first is preferred. Kinds of one line are readings of the same columns.
_SHAPES: dict[str, tuple[str, ...]] = {
  'preference': (
    'prompt chosen rejected system?',
    'prompt=question chosen rejected system?',
    'prompt=instruction chosen rejected system?',
    'prompt=input chosen rejected system?',
    'chosen rejected system?',
  ),
  'messages': (
    'messages tools? system?',
    'messages=conversations tools? system?',
    'messages=conversation tools? system?',
    'messages=dialogue tools? system?',
  ),
  'tags': (
    *(f'tokens{words} tags{tags}' for words in ('', '=words') for tags in ('', '=labels')),
    *(f'tokens{words} tags={tags}_tags' for words in ('', '=words') for tags in ('ner', 'pos')),
    'tokens tags=chunk_tags',
  ),
  'triplet': (
    'anchor positive negative',
    'anchor=query positive negative',
    'anchor=question positive negative',
    'anchor=sentence1 positive=sentence2 negative=sentence3',
  ),
  'scored_pair': tuple(
    f'{pair} label{label}'
    for pair in (
      'anchor positive',
      'anchor=sentence1 positive=sentence2',
      'anchor=sentence_A positive=sentence_B',
      'anchor=text1 positive=text2',
    )
    for label in ('', '=score', '=similarity', '=similarity_score', '=relatedness_score')
  ),
  'pair': (
    'anchor positive',
    'anchor=query positive',
    'anchor=question positive',
    'anchor=sentence1 positive=sentence2',
    'anchor=sentence_A positive=sentence_B',
    'anchor=text1 positive=text2',
  ),
  'unpaired': ('prompt completion label system?', 'prompt=question completion=response label'),
  'completion': (
    'prompt completion system?',
    'instruction input? output',
    'prompt completion=response',
    'prompt=question completion=response system=system_prompt?',
    'prompt=instruction context? completion=response',
    'prompt=query completion=response',
    'prompt=prompt completion=answer',
    'prompt=question completion=answer',
    'prompt=problem completion=solution',
  ),
  'labelled': ('text label', 'text label=labels', 'text=sentence label', 'text=content label'),
  'text': ('text', 'text=content'),
  'prompt': (
    'prompt system?',
    'prompt=question system?',
    'prompt=problem system?',
    'prompt=messages',
    'prompt=conversations',
  ),
}
# Other columns that a kind may be made of when it is asked for: a conversation of one turn each.
_READINGS = {'messages': _SHAPES['completion']}
_FAMILIES = (
  ('preference',),
  ('messages',),
  ('tags',),
  ('triplet', 'scored_pair', 'pair'),
  ('unpaired', 'completion'),
)
_SAID = {
  'preference': 'preferences',
  'messages': 'conversations',
  'tags': 'words with tags',
  'triplet': 'triplets of texts',
  'scored_pair': 'pairs of texts with a score',
  'pair': 'pairs of texts that belong together',
  'unpaired': 'answers with good or bad',
  'completion': 'prompts with completions',
  'labelled': 'texts with labels',
  'text': 'plain text',
  'prompt': 'prompts to answer',
}
_LOOK = 100  # records of which the columns are taken; one that they all lack is not there


class Format(NamedTuple):
  """What records are.

  Attributes:
    kind: a key of `CANONICAL`.
    fields: what each field of the kind is taken from, a column or a template over columns.
    said: one sentence for the user and the report.
  """

  kind: str
  fields: Mapping[str, str]
  said: str


class Formatted(NamedTuple):
  """Records in the canonical form of their kind; a stream stays one."""

  records: Any  # list[Row] | grain.IterDataset
  kind: str
  said: str


def recognize(
  records: Sequence[Record],
  *,
  kind: str | None = None,
  columns: Mapping[str, str] | None = None,
  source: str = 'the data',
) -> Format:
  """What the records are, by the names of their columns; see `normalize`.

  Raises:
    InputError: no kind fits, several do, or the given one lacks a column.
  """
  if not records:
    raise InputError(f'{source}: no records; at least one is needed')
  for number, record in enumerate(records[:_LOOK], 1):
    _check_record(record, f'{source}: row {number}')
  names = list(dict.fromkeys(itertools.chain.from_iterable(records[:_LOOK])))
  mapped = dict(columns or {})
  used = {c for value in mapped.values() for c in _columns_of(value, names, source)}
  there = [*mapped, *(name for name in names if name not in used)]
  if kind is None:
    kind, found = _recognized(there, source)
  else:
    if kind not in _SHAPES:
      raise InputError(f'the kind {kind!r} is unknown; use {", ".join(_SHAPES)}')
    found = _match(kind, there, _READINGS.get(kind, ()))
    if not found:
      needs = ' and '.join(name for name, _, may in _parsed(_SHAPES[kind][0]) if not may)
      raise InputError(
        f'{source}: the kind {kind} needs {needs}, but the columns are {", ".join(names)}; say '
        f'which are meant, as columns={{{needs.split()[0]!r}: ...}}'
      )
  strange = [name for name in mapped if name not in found.values()]
  if strange:
    raise InputError(
      f'{source}: columns names {strange[0]!r}, which {kind} does not have; it has '
      f'{", ".join(found)}'
    )
  fields = {field: mapped.get(column, column) for field, column in found.items()}
  return Format(kind, fields, _sentence(kind, fields, names, records[0]))


def normalize(
  records: Sequence[Record] | grain.IterDataset,
  *,
  kind: str | None = None,
  columns: Mapping[str, str] | None = None,
  source: str = 'the data',
  skipped: Skipped | None = None,
) -> Formatted:
  """Records of any common format in the canonical form of their kind.

  The kinds and their canonical records; columns of other names are known too, see `said`:

    text         {text}
    completion   {prompt, completion}: texts or turns; Alpaca's instruction, input and output become
                 texts by Alpaca's own prompt template
    messages     {messages, tools?}: turns of {role, content, ...}; ShareGPT's become such
    preference   {prompt, chosen, rejected}: texts or turns; the prompt may be implicit
    unpaired     {prompt, completion, label: bool}
    pair, triplet, scored_pair   {anchor, positive}, and {negative} or {label: float}
    tags         {tokens: [str], tags: [str | int]}
    labelled     {text, label}: a class, a number, or a list of classes
    prompt       {prompt, ...}: for answers of the model's own; the other columns stay

  A column `system` begins each conversation. Every record is checked, and becomes a `Row` that
  knows its place. In a stream that happens as they come, after a look at the first hundred.

  Args:
    records: as `read` or `stream` gives, or any dicts.
    kind: one of the above; by default recognized by the names of the columns.
    columns: what fields are taken from: a column, `{'prompt': 'question'}`, or a template over
      columns, `{'prompt': '{title}\\n{body}'}`.
    source: what errors call the data, where a record does not know its place.
    skipped: counts the records that are left out; without it, and in what is no list, one is an
      error. A stream of `stream` leaves out by its own.

  Raises:
    InputError: as `recognize` does, or a record is not what its kind asks for: a missing or null
      value, a wrong type, an impossible conversation, chosen = rejected, an id that comes twice.
  """
  if isinstance(records, grain.IterDataset):
    form = recognize(
      list(itertools.islice(iter(records), _LOOK)), kind=kind, columns=columns, source=source
    )
    own = _Convert(form, source)
    made = records.converted(own) if isinstance(records, Stream) else records.map(own)
    return Formatted(made, form.kind, form.said)
  form = recognize(records, kind=kind, columns=columns, source=source)
  repeated = _repeated_ids(records, source)
  rows = (
    repeated[n] if n in repeated else attempt(convert, form, record, place(record, n, source))
    for n, record in enumerate(records, 1)
  )
  kept = [*good(rows, skipped)]
  if skipped and not kept:
    skipped.check(0)
  return Formatted(kept, form.kind, form.said)


def convert(form: Format, record: Record, where: str) -> Row:
  """One record in canonical form; `where` is what an error calls it."""
  _check_record(record, where)
  values = {}
  for field, column in form.fields.items():
    value = _filled(column, record, where) if '{' in column else record.get(column)
    if value is not None:
      values[field] = value
    elif field not in _OPTIONAL[form.kind]:
      _given(column, record, where)
  made = canonical.CANONICAL[form.kind](values, where)
  if form.kind == 'prompt':
    made = {**{k: v for k, v in record.items() if k not in form.fields.values()}, **made}
  return Row(made, where)


def _check_record(record: Any, where: str) -> None:
  if not isinstance(record, Mapping):
    raise InputError(f'{where} is {short_of(record)}, no record; give dicts, as {{"text": ...}}')


class _Convert:
  """`convert` for the records of a stream, which know their places."""

  def __init__(self, form: Format, source: str):
    self._form, self._source = form, source

  def __call__(self, record: Record) -> Row:
    return convert(self._form, record, record.place if isinstance(record, Row) else self._source)


def _parsed(shape: str) -> list[tuple[str, str, bool]]:
  """Field, column and whether it may be absent, of each word."""
  words = [(word.rstrip('?'), word.endswith('?')) for word in shape.split()]
  return [(name.split('=')[0], name.split('=')[-1], may) for name, may in words]


_OPTIONAL = {
  kind: {
    name for shape in (*shapes, *_READINGS.get(kind, ())) for name, _, may in _parsed(shape) if may
  }
  for kind, shapes in _SHAPES.items()
}


def _match(kind: str, there: Sequence[str], more: Sequence[str] = ()) -> dict[str, str]:
  """Field to column, by the first shape of the kind that fits; empty when none does."""
  for shape in (*_SHAPES[kind], *more):
    fields = _parsed(shape)
    if all(may or column in there for _, column, may in fields):
      return {name: column for name, column, _ in fields if column in there}
  return {}


def _recognized(there: Sequence[str], source: str) -> tuple[str, dict[str, str]]:
  found = {}
  for family in _FAMILIES:
    matches = ((kind, _match(kind, there)) for kind in family)
    found.update(dict(itertools.islice(((k, m) for k, m in matches if m), 1)))
  if 'preference' in found:
    found.pop('messages', None)  # beside preferences, the conversation of the chosen answer
  several = [name for name in there if name.endswith('_tags')]
  if found.get('tags', {}).get('tags') in several and len(several) > 1:
    raise InputError(
      f'{source}: tags could be {" or ".join(several)}; say which, as '
      f"columns={{'tags': {several[-1]!r}}}"
    )
  answers = found.get('completion', {}).get('completion') in ('answer', 'solution')
  if not found or answers:  # an answer may be what is learned, or what a reward compares with
    found.update({k: m for k in ('labelled', 'text', 'prompt') if (m := _match(k, there))})
    if 'labelled' in found:
      found.pop('text', None)
  if not found:
    raise InputError(
      f'{source}: no known kind of data has the columns {", ".join(there) or "none"}; say which of '
      "them are meant, as columns={'text': ...} or columns={'prompt': ..., 'completion': ...}"
    )
  if len(found) > 1:
    raise InputError(
      f'{source}: the columns {", ".join(there)} could be {" or ".join(found)}; set the kind to '
      'one of these'
    )
  return next(iter(found.items()))


def _sentence(kind: str, fields: Mapping[str, str], names: Sequence[str], first: Record) -> str:
  parts = [f if f == c else f'{f} from {c!r}' for f, c in fields.items()]
  said = f'{_SAID[kind]} ({", ".join(parts)})'
  if 'instruction' in fields:
    said += ", in Alpaca's prompt template" if kind == 'completion' else ', from Alpaca'
  if kind == 'preference' and 'prompt' not in fields:
    said += '; the prompt is what chosen and rejected begin with'
  turns = first.get(fields.get('messages', ''))
  if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and 'from' in turns[0]:
    said += ', from ShareGPT (from and value)'
  used = {name for column in fields.values() for name in _named(column)}
  rest = [name for name in names if name not in used]
  if rest:
    said += f'; {"kept beside" if kind == "prompt" else "not used"}: {", ".join(rest)}'
  return said


def _named(column: str) -> list[str]:
  if '{' not in column:
    return [column]
  return [name for _, name, _, _ in string.Formatter().parse(column) if name is not None]


def _columns_of(column: str, names: Sequence[str], source: str) -> list[str]:
  """The columns that a mapping names, all of which must exist."""
  try:
    named = _named(column)
  except ValueError as error:
    raise InputError(
      f'{source}: {column!r} is no template like "{{column}}" ({error}); mend it'
    ) from None
  for name in named:
    if name not in names:
      near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise InputError(f'{source}: there is no column {name!r}; it has {", ".join(names)}{hint}')
  return named


def _filled(template: str, record: Record, where: str) -> str:
  for name in _named(template):
    _given(name, record, where)
  try:
    return template.format_map(record)
  except (ValueError, TypeError, LookupError, AttributeError) as error:
    raise InputError(
      f'{where}: {template!r} cannot be filled ({error}); write columns as "{{column}}"'
    ) from None


def _given(column: str, record: Record, where: str) -> Any:
  value = record.get(column)
  if value is None:
    state = 'is null' if column in record else f'is missing; the row has {", ".join(record)}'
    raise InputError(f'{where}: {column} {state}; give it a value or remove the row')
  return value


def _repeated_ids(records: Sequence[Record], source: str) -> dict[int, Bad]:
  """The records whose id is that of one before, by their numbers."""
  seen: dict[Any, int] = {}
  found = {}
  for number, record in enumerate(records, 1):
    own = record.get('id') if isinstance(record, Mapping) else None
    if not isinstance(own, str | int):
      continue
    if own in seen:
      first = place(records[seen[own] - 1], seen[own], source)
      found[number] = Bad(
        f'{place(record, number, source)}: the id {short_of(own)} is also that of {first}; remove '
        'one of them, or rename the column if it names no record'
      )
    else:
      seen[own] = number
  return found
