"""Records of two or three texts, for objectives on embeddings."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxtune.data.column import numbers, strings
from jaxtune.data.encode import Encoded, special_count, tokenize
from jaxtune.data.row import Row, place
from jaxtune.typing import InputError

Record = Mapping[str, Any]

_SENTENCE_END = re.compile(r'[.!?][\'")\]]*\s+')


def encode_pairs(
  records: Sequence[Record], tokenizer: tokenizers.Tokenizer, max_length: int
) -> Encoded:
  """Examples `{anchor: {tokens}, positive: {tokens}, negative?: {tokens}, label?: float32}`.

  `negative` and `label` are there when the first record has them, and then in every row. A text has
  the tokenizer's special tokens, and is cut at the right to `max_length` tokens with them;
  `truncated` counts texts, of which a row has two or three. Rows in which a text is empty are
  counted and left out.

  `repeated` counts the rows whose positive is that of an earlier row. Where both are in one batch
  each is a negative of the other's anchor, though it is the right answer: `losses.info_nce` leaves
  such negatives out. Batches are not composed to avoid them.

  Raises:
    InputError: a text is missing or is no string, a label is no finite number, no row is left, or
      max_length leaves no room beside the special tokens.
  """
  first = records[0] if records else {}
  names = ['anchor', 'positive', *(['negative'] if 'negative' in first else [])]
  texts = {name: strings(records, name) for name in names}
  labels = numbers(records, 'label') if 'label' in first else None
  special = special_count(tokenizer)
  tokens, truncated = {}, 0
  for name in names:
    tokens[name], cut = tokenize(tokenizer, texts[name], max_length)
    truncated += cut
  examples: list[dict[str, Any]] = []
  seen: set[str] = set()
  for row in range(len(records)):
    if any(not texts[name][row].strip() or len(tokens[name][row]) <= special for name in names):
      continue
    example: dict[str, Any] = {
      name: {'tokens': np.array(tokens[name][row], np.int32)} for name in names
    }
    examples.append(example if labels is None else {**example, 'label': labels[row]})
    seen.add(texts['positive'][row])
  empty = len(records) - len(examples)
  if not examples:
    raise InputError(f'in all {empty} rows {" or ".join(names)} is empty; choose columns of text')
  return Encoded(examples, truncated=truncated, empty=empty, repeated=len(examples) - len(seen))


def halves(records: Sequence[Record], text: str = 'text') -> tuple[list[Record], int]:
  """Pairs of the two halves of each text, and how many texts were left out.

  A text is cut at the end of the sentence nearest its middle, so that neither half has a word of
  the other: an anchor finds its positive by what both are about. The inverse cloze task (Lee et al.
  2019, arXiv:1906.00300), with halves in place of one sentence and the rest; it makes pairs of any
  plain texts. Those of one sentence are left out.

  Args:
    records: with the column.
    text: the column.

  Returns:
    Records `{anchor, positive}`, and the number of texts without a border.

  Raises:
    InputError: the column is missing or no text, or no text has two sentences.
  """
  pairs: list[Record] = []
  for number, (record, whole) in enumerate(zip(records, strings(records, text), strict=True), 1):
    whole = whole.strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(whole)]
    if ends:
      at = min(ends, key=lambda end: abs(2 * end - len(whole)))  # noqa: B023
      pair = {'anchor': whole[:at].rstrip(), 'positive': whole[at:]}
      pairs.append(Row(pair, place(record, number)))
  if not pairs:
    raise InputError(f'column {text!r}: none of the {len(records)} texts has two sentences to part')
  return pairs, len(records) - len(pairs)
