"""Texts whose tokens are hidden and found again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxtune.data.column import strings
from jaxtune.data.encode import Encoded, Example
from jaxtune.data.encodings import encodings
from jaxtune.typing import InputError

Record = dict[str, Any]


def encode_masked(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_length: int,
  text: str = 'text',
) -> Encoded:
  """Texts for `losses.masked_lm`: examples `{tokens int32 [n], words int32 [n]}`.

  `words` numbers the words of an example from 0, as the tokenizer cuts them, and is -1 for special
  tokens. A text that is longer than `max_length` tokens becomes several examples, each with special
  tokens of its own, and nothing is truncated; a word on a border is in both. Rows without text are
  counted and left out.

  Raises:
    InputError: the column is missing, all texts are empty, or max_length leaves no room beside the
      special tokens.
  """
  texts = strings(records, text)
  examples: list[Example] = []
  empty = 0
  for encoding in encodings(tokenizer, texts, max_length):
    held = len(examples)
    for block in (encoding, *encoding.overflowing):
      words = np.array([-1 if word is None else word for word in block.word_ids], np.int32)
      if (words >= 0).any():
        numbers = np.unique(words[words >= 0], return_inverse=True)[1]
        words[words >= 0] = numbers
        examples.append({'tokens': np.array(block.ids, np.int32), 'words': words})
    empty += held == len(examples)
  if not examples:
    raise InputError(f'column {text!r} is empty in all {empty} rows; choose a column of text')
  return Encoded(examples, empty=empty)
