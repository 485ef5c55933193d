"""Records to sequences of which each token is learned from the tokens before it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxtune.data.column import strings
from jaxtune.data.encode import Encoded, Example, tokenize
from jaxtune.typing import InputError

Record = dict[str, Any]


def encode_text(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  text: str,
  max_length: int,
  bos: int | None = None,
  eos: int | None = None,
) -> Encoded:
  """Whole documents for language modelling: examples `{tokens int32 [n], supervised bool [n]}`.

  A document is `[bos] + tokens + [eos]`, cut into blocks of at most `max_length`. A block starts
  with the last token of the block before it, so every token of a document but its first is learned
  exactly once, and nothing is truncated. Documents are never joined: batches that pack put short
  ones into one row and keep them apart by segments.

  Raises:
    InputError: the column is missing, all texts are empty, no document has two tokens, `max_length`
      is under 2, or `bos` or `eos` is no token.
  """
  if max_length < 2:
    raise InputError(f'max_length is {max_length}; a block needs at least 2 tokens to learn one')
  first, last = _special(tokenizer, bos=bos), _special(tokenizer, eos=eos)
  texts = strings(records, text)
  examples: list[Example] = []
  empty = unlearned = 0
  for ids in tokenize(tokenizer, texts, None)[0]:
    if not ids:
      empty += 1
      continue
    document = np.array(first + ids + last, np.int32)
    unlearned += len(document) < 2
    for start in range(0, len(document) - 1, max_length - 1):
      block = document[start : start + max_length]
      examples.append({'tokens': block, 'supervised': np.arange(len(block)) > 0})
  if empty == len(texts):
    raise InputError(f'column {text!r} is empty in all {empty} rows; choose a column of text')
  if not examples:
    raise InputError(f'column {text!r}: no document has the 2 tokens it takes to learn one')
  return Encoded(examples, empty=empty, unlearned=unlearned)


def encode_completions(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  prompt: str,
  completion: str,
  max_length: int,
  bos: int | None = None,
  eos: int | None = None,
) -> Encoded:
  """Prompts with what should follow: examples `{tokens int32 [n], supervised bool [n]}`.

  Tokens are `[bos] + prompt + completion + [eos]`; those of the completion and `eos` are
  supervised. Prompt and completion are tokenized apart and joined as they are, so the border is
  exact and the same at prediction: put a space between them into one of the two. What exceeds
  `max_length` is cut at the right and counted; a row that has nothing supervised left, or an empty
  completion, is counted and left out. The first token is never supervised: nothing predicts it.

  Raises:
    InputError: a column is missing, `bos` or `eos` is no token, or no token at all is supervised.
  """
  first, last = _special(tokenizer, bos=bos), _special(tokenizer, eos=eos)
  prompts = tokenize(tokenizer, strings(records, prompt), None)[0]
  completions = tokenize(tokenizer, strings(records, completion), None)[0]
  examples: list[Example] = []
  truncated = empty = unlearned = 0
  for before, after in zip(prompts, completions, strict=True):
    if not after:
      empty += 1
      continue
    given = first + before
    tokens = np.array(given + after + last, np.int32)
    truncated += len(tokens) > max_length
    tokens = tokens[: max(max_length, 0)]
    supervised = np.arange(len(tokens)) >= max(len(given), 1)
    if supervised.any():
      examples.append({'tokens': tokens, 'supervised': supervised})
    else:
      unlearned += 1
  if not examples:
    raise InputError(
      f'no supervised token: of {len(completions)} rows {empty} have an empty {completion!r}, and '
      f'{unlearned} lose all of it to max_length {max_length}; raise it or shorten {prompt!r}'
    )
  return Encoded(examples, truncated=truncated, empty=empty, unlearned=unlearned)


def _special(tokenizer: tokenizers.Tokenizer, **token: int | None) -> list[int]:
  ((name, number),) = token.items()
  if number is None:
    return []
  if number < 0 or tokenizer.id_to_token(number) is None:
    size = tokenizer.get_vocab_size()
    raise InputError(f'{name} is {number}, which is none of the {size} tokens of the tokenizer')
  return [number]
