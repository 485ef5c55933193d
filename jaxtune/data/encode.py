"""What every encoding shares: its result, and tokens that fit a length."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tokenizers

from jaxtune.data import fold
from jaxtune.typing import InputError

# Arrays by name. A part, as `chosen` and `rejected`, is an example in the example, with tokens of
# its own.
Example = dict[str, Any]

# The values that have one entry a token; any other is one value an example.
SEQUENCES = (
  'tokens',
  'supervised',
  'segments',
  'positions',
  'tags',
  'words',
  'teacher_indices',
  'teacher_values',
)


# Characters encoded at a time: what a tokenizer holds of a text while it works is 40 times larger.
_ENCODED = 2**22


class Encoded(NamedTuple):
  """Examples, and what happened to the rows on the way; the counts belong into the report.

  Attributes:
    examples: one dict each; `tokens` int32 [n] (and others of `SEQUENCES`) with n <= max_length,
      anything else is one value an example (`label`), or a part with tokens of its own.
    truncated: how many rows lost tokens to max_length.
    empty: how many rows had no text; they are left out of training data, and kept for prediction.
    unlearned: how many rows were left out because no token is left to learn from.
    names: the names of the classes, in the order of their numbers; None when there are none.
    unfinished: how many of the truncated rows lost the end of something that is learned.
    repeated: how many rows have a positive that an earlier row has too.
  """

  examples: list[Example]
  truncated: int = 0
  empty: int = 0
  unlearned: int = 0
  names: tuple[str, ...] | None = None
  unfinished: int = 0
  repeated: int = 0


def tokenize(
  tokenizer: tokenizers.Tokenizer, texts: Sequence[str], max_length: int | None
) -> tuple[list[list[int]], int]:
  """Token ids of each text and how many were cut at the right; no text is padded.

  With a `max_length` the tokenizer adds its special tokens, and they survive the cut; without one
  it adds none and cuts nothing. The tokenizer's own settings for both are ignored and not changed.

  Raises:
    InputError: max_length leaves no room beside the special tokens.
  """
  if max_length is not None:
    special = special_count(tokenizer)
    # At or below that number the tokenizer itself stops truncating, and says nothing.
    if max_length <= special:
      raise InputError(
        f'max_length is {max_length}, but the tokenizer adds {special} special tokens to a text; '
        f'it must be at least {special + 1}'
      )
  encode = _encoder(tokenizer.to_str(), max_length)
  tokens: list[list[int]] = []
  cut = 0
  for some in slices(map(len, texts)):
    encodings = encode(list(texts[some]), add_special_tokens=max_length is not None)
    tokens += [encoding.ids for encoding in encodings]
    cut += sum(1 for encoding in encodings if encoding.overflowing)
  return tokens, cut


@functools.lru_cache(maxsize=4)  # making one takes as long as encoding a thousand texts
def _encoder(state: str, max_length: int | None) -> fold.Encode:
  """That of a tokenizer in this state, with no padding, and this truncation."""
  own = tokenizers.Tokenizer.from_str(state)
  own.no_padding()
  own.no_truncation()
  if max_length is not None:
    own.enable_truncation(max_length)
  return fold.encoder(own)


def slices(characters: Iterable[int]) -> Iterator[slice]:
  """Stretches of texts of these lengths that may be encoded at a time."""
  start = stop = held = 0
  for count in characters:
    stop, held = stop + 1, held + count
    if held >= _ENCODED:
      yield slice(start, stop)
      start, held = stop, 0
  if stop > start:
    yield slice(start, stop)


def special_count(tokenizer: tokenizers.Tokenizer) -> int:
  """How many special tokens the tokenizer adds to one text."""
  return tokenizer.num_special_tokens_to_add(is_pair=False)
