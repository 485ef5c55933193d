"""Texts to tokens that know which word they are of."""

import json
from collections.abc import Iterator, Sequence

import tokenizers

from jaxtune.data.encode import tokenize

_TEXTS = 1024  # encoded at a time: an encoding with words is large


def encodings(
  tokenizer: tokenizers.Tokenizer, texts: Sequence[str] | Sequence[list[str]], max_length: int
) -> Iterator[tokenizers.Encoding]:
  """The encoding of each text, special tokens included, and `overflowing` what does not fit.

  A text may be a list of words; `word_ids` are then places in it.

  Raises:
    InputError: max_length leaves no room beside the special tokens.
  """
  tokenize(tokenizer, (), max_length)  # for its refusal
  own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  own.no_padding()
  own.enable_truncation(max_length)
  split = bool(texts) and not isinstance(texts[0], str)
  for start in range(0, len(texts), _TEXTS):
    yield from own.encode_batch(list(texts[start : start + _TEXTS]), is_pretokenized=split)


def spaced(tokenizer: tokenizers.Tokenizer, words: Sequence[str]) -> list[str]:
  """The words as they would stand in a text, for tokenizers to which a space belongs to a word.

  Byte-level BPE has other tokens for a word behind a space, and they are what the model knows.
  """
  kind = json.dumps(json.loads(tokenizer.to_str())['pre_tokenizer'])
  if '"ByteLevel"' not in kind:
    return list(words)
  return [f' {word}' if place else word for place, word in enumerate(words)]
