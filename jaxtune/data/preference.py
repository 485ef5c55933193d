"""Records that say which completion is better: pairs, or single ones that are good or bad."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.data.column import numbers
from jaxtune.data.encode import Encoded, Example, tokenize
from jaxtune.data.render import Rendered, render_many
from jaxtune.data.row import RecordError, Row, place
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.typing import InputError

Record = Mapping[str, Any]

_WHOLE = 1 << 30  # tokens, longer than any text


def encode_preferences(tok: Tokenizer, records: Sequence[Record], max_length: int) -> Encoded:
  """Examples `{chosen: {tokens, supervised}, rejected: {tokens, supervised}}` of `preference`.

  Both are rendered as completions of the same prompt, see `data.render`, and the assistant's part
  of them is supervised. What exceeds `max_length` is cut at the right; `truncated` and `unfinished`
  count rows of which either lost tokens, or the end of its completion. Left out and counted are
  rows with an empty completion (`empty`), and those in which a completion lost all of itself, or
  whose two are the same behind the cut (`unlearned`): nothing tells them apart.

  Raises:
    InputError: as `data.render`, with the row; or no row is left.
  """
  return _pairs(tok, records, max_length, ('tokens', 'supervised'))


def encode_rewards(tok: Tokenizer, records: Sequence[Record], max_length: int) -> Encoded:
  """Examples `{chosen: {tokens}, rejected: {tokens}, margin?: float32}` for a model of rewards.

  Otherwise as `encode_preferences`. `margin` is there when the first record has it, and then in
  every row. Where the model has no token that ends a text, as an encoder, prompt and completion are
  one text with the special tokens of its tokenizer, which survive the cut.

  Raises:
    InputError: as `encode_preferences`, or a margin is no finite number.
  """
  return _pairs(tok, records, max_length, ('tokens',))


def encode_unpaired(
  tok: Tokenizer, records: Sequence[Record], max_length: int, mismatched: bool = True
) -> Encoded:
  """Examples `{tokens, supervised, label: bool, mismatched: {tokens, supervised}}` of `unpaired`.

  Rendered, cut and counted as `encode_preferences` does. `mismatched` is the row's prompt with the
  completion of the next row that has another prompt, the first following the last: KTO estimates
  its divergence with them. TRL takes the completion of the row before within a batch, whatever its
  prompt; neighbours are often answers to the same one, which do match.

  Args:
    tok: of the model.
    records: `{prompt, completion, label}`.
    max_length: of a row.
    mismatched: whether the examples have that part; BCO, and KTO with a baseline, need none.

  Raises:
    InputError: as `data.render`, with the row; a label that is neither true nor false; no row is
      left; or all rows have one prompt, so that nothing is mismatched.
  """
  labels = [_label(record, row) for row, record in enumerate(records, 1)]
  rendered = _rendered(tok, records, 'completion')
  examples: list[Example] = []
  kept: list[Record] = []
  truncated = empty = unlearned = unfinished = 0
  for record, label, whole in zip(records, labels, rendered, strict=True):
    part = _cut(whole, max_length)
    if record['completion'] == '':
      empty += 1
      continue
    truncated += len(whole[0]) > max_length
    if not part['supervised'].any():
      unlearned += 1
      continue
    unfinished += bool(whole[1][max_length:].any())
    examples.append({**part, 'label': np.asarray(label)})
    kept.append(record)
  if not examples:
    raise InputError(_nothing_left(len(records), empty, unlearned, max_length))
  if mismatched:
    others = [
      {**record, 'completion': kept[other]['completion']}
      for record, other in zip(kept, _mismatched(kept), strict=True)
    ]
    for example, whole in zip(examples, _rendered(tok, others, 'completion'), strict=True):
      example['mismatched'] = _cut(whole, max_length)
  return Encoded(examples, truncated, empty, unlearned, unfinished=unfinished)


def _pairs(
  tok: Tokenizer, records: Sequence[Record], max_length: int, fields: tuple[str, ...]
) -> Encoded:
  margins = None
  if 'supervised' not in fields and records and 'margin' in records[0]:
    margins = numbers(records, 'margin')
  encoder = 'supervised' not in fields and _is_encoder(tok, records)
  written = _texts if encoder else _rendered
  both = [written(tok, records, name) for name in ('chosen', 'rejected')]
  examples: list[Example] = []
  truncated = empty = unlearned = unfinished = 0
  for row, (record, *pair) in enumerate(zip(records, *both, strict=True)):
    if '' in (record['chosen'], record['rejected']):
      empty += 1
      continue
    truncated += any(len(tokens) > max_length for tokens, _ in pair)
    chosen, rejected = (_cut(whole, max_length, encoder) for whole in pair)
    lost = not (chosen['supervised'].any() and rejected['supervised'].any())
    if lost or np.array_equal(chosen['tokens'], rejected['tokens']):
      unlearned += 1
      continue
    unfinished += any(bool(learned[max_length:].any()) for _, learned in pair)
    example: Example = {
      'chosen': {field: chosen[field] for field in fields},
      'rejected': {field: rejected[field] for field in fields},
    }
    examples.append(example if margins is None else {**example, 'margin': margins[row]})
  if not examples:
    raise InputError(_nothing_left(len(records), empty, unlearned, max_length))
  return Encoded(examples, truncated, empty, unlearned, unfinished=unfinished)


def _rendered(tok: Tokenizer, records: Sequence[Record], field: str) -> list[Rendered]:
  """Prompts with the completions in `field`."""
  completions = []
  for row, record in enumerate(records, 1):
    for name in ('prompt', field):
      if name not in record:
        raise RecordError(
          f'{place(record, row)}: no {name!r}; it has {", ".join(map(str, record)) or "nothing"}: '
          'bring the records into form with data.normalize'
        )
    own = {'prompt': record['prompt'], 'completion': record[field]}
    own |= {'tools': record['tools']} if 'tools' in record else {}
    completions.append(Row(own, record.place) if isinstance(record, Row) else own)
  return render_many(tok, completions)


def _texts(tok: Tokenizer, records: Sequence[Record], field: str) -> list[Rendered]:
  """Prompt and completion as one text with the special tokens that the tokenizer adds."""
  texts = [record['prompt'] + record[field] for record in records]
  tokens, _ = tokenize(tok.encoder, texts, _WHOLE)
  return [(np.array(ids, np.int32), np.ones(len(ids), bool)) for ids in tokens]


def _is_encoder(tok: Tokenizer, records: Sequence[Record]) -> bool:
  plain = all(
    isinstance(record.get(name), str)
    for record in records
    for name in ('prompt', 'chosen', 'rejected')
  )
  return plain and tok.special.eos is None


def _cut(whole: Rendered, max_length: int, last: bool = False) -> dict[str, np.ndarray]:
  """The first `max_length` tokens; with `last` the last one ends them, as an encoder's must."""
  tokens, supervised = whole
  if len(tokens) > max_length:
    at = np.arange(max(max_length, 0))
    at[-1:] = len(tokens) - 1 if last else max_length - 1
    tokens, supervised = tokens[at], supervised[at]
  return {'tokens': tokens, 'supervised': supervised}


def _mismatched(records: Sequence[Record]) -> list[int]:
  """Of each row the next one, going round, that has another prompt."""
  prompts = [repr(record['prompt']) for record in records]
  count = len(prompts)
  following = [0] * (2 * count)
  for row in reversed(range(2 * count - 1)):
    same = prompts[row % count] == prompts[(row + 1) % count]
    following[row] = following[row + 1] if same else (row + 1) % count
  if len(set(prompts)) < 2:
    raise InputError(
      f'all {count} rows have the same prompt, so no completion is mismatched with it; add rows '
      'with other prompts, or set mismatched to False (bco, or kto with a baseline)'
    )
  return following[:count]


def _label(record: Record, row: int) -> bool:
  label = record.get('label')
  if label not in (True, False):  # as 1 and 0 are
    raise RecordError(
      f"{place(record, row)}: 'label' is {label!r}; it must be true for a good completion or false"
    )
  return bool(label)


def _nothing_left(rows: int, empty: int, unlearned: int, max_length: int) -> str:
  return (
    f'no completion to learn from: of {rows} rows {empty} have an empty one, and {unlearned} lose '
    f'them, or what they differ in, to max_length {max_length}; raise it or shorten the prompts'
  )
