"""Columns of text to sequences of which each token is learned from the tokens before it."""

from collections.abc import Sequence
from typing import Any

import tokenizers

from jaxtune.data.column import strings
from jaxtune.data.encode import Encoded
from jaxtune.data.render import Written, collect, tokenized
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
  written = [Written(t, [(0, len(t))], first, last) for t in texts]
  rows = [{'text': t} for t in texts]
  rendered = zip(rows, tokenized(tokenizer, written), strict=True)
  return collect(rendered, max_length, f'column {text!r}')


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
  pairs = list(zip(strings(records, prompt), strings(records, completion), strict=True))
  written = [Written(p + c, [(len(p), len(p + c))], first, last) for p, c in pairs]
  rows = [{'prompt': p, 'completion': c} for p, c in pairs]
  return collect(zip(rows, tokenized(tokenizer, written), strict=True), max_length)


def _special(tokenizer: tokenizers.Tokenizer, **token: int | None) -> list[int]:
  ((name, number),) = token.items()
  if number is None:
    return []
  if number < 0 or tokenizer.id_to_token(number) is None:
    size = tokenizer.get_vocab_size()
    raise InputError(f'{name} is {number}, which is none of the {size} tokens of the tokenizer')
  return [number]
