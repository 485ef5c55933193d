"""Texts to tokens with borders that no token crosses."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxtune.data import fold
from jaxtune.data.encode import slices

Span = tuple[int, int]
Marked = tuple[np.ndarray, np.ndarray]  # int32 and bool [T]


class _Codec(NamedTuple):
  """A tokenizer as it is needed at the start of a text, and behind a border.

  begins: without special tokens, truncation and padding of its own; its offsets are exact.
  inside: the same without the space that it puts ahead of a text; `begins` itself if it puts none.
  fast: their encoding without offsets, of `begins` and of `inside`.
  added: finds the tokens that are cut out of a text first, ahead of everything, where the space is
    put behind each of them too; else None.
  special: the texts of special tokens.
  greedy: the texts of tokens that take in the white space behind them.
  """

  begins: tokenizers.Tokenizer
  inside: tokenizers.Tokenizer
  fast: tuple[fold.Encode, fold.Encode]
  added: re.Pattern[str] | None
  special: tuple[str, ...]
  greedy: tuple[str, ...]


def encode(
  tokenizer: tokenizers.Tokenizer, texts: Sequence[tuple[str, Sequence[Span]]]
) -> list[Marked]:
  """The token ids of each text, and for each token whether it lies in one of the text's spans.

  No token crosses the start of a span: what is ahead of it is tokenized as if nothing followed, as
  a model reads a prompt. Neither does one cross an end, where a special token stands there or not.
  No special tokens are added.

  Args:
    tokenizer: its own truncation and padding are ignored.
    texts: each with the `[start, end)` of its spans, in order and without overlap.
  """
  codec = _codec(tokenizer, tokenizer.get_vocab_size())
  found: list[Marked] = []
  for some in slices(len(text) for text, _ in texts):
    found += _encoded(codec, texts[some])
  return found


def _encoded(codec: _Codec, texts: Sequence[tuple[str, Sequence[Span]]]) -> list[Marked]:
  cut = [_cut(codec, text, spans) for text, spans in texts]
  # Few pieces are learned in part, and only these need offsets.
  queues: dict[tuple[bool, bool], list[str]] = {}
  for length, end, inside, piece in (part for parts in cut for part in parts):
    queues.setdefault((inside, 0 < end < length), []).append(piece)
  encodings = {}
  for (inside, partly), queue in queues.items():
    exact = (codec.inside if inside else codec.begins).encode_batch
    encodings[inside, partly] = iter((exact if partly else codec.fast[inside])(queue))
  found: list[Marked] = []
  for parts in cut:
    ids: list[int] = []
    spans = []
    for length, end, inside, _ in parts:
      partly = 0 < end < length
      encoding = next(encodings[inside, partly])
      count = _before(encoding, end, length) if partly else len(encoding) * (end > 0)
      spans.append((len(ids), len(ids) + count))
      ids += encoding.ids  # a list of its own each time
    learned = np.zeros(len(ids), np.bool_)
    for start, stop in spans:
      learned[start:stop] = True
    found.append((np.array(ids, np.int32), learned))
  return found


def special_texts(tokenizer: tokenizers.Tokenizer) -> tuple[str, ...]:
  """The texts of the tokenizer's special tokens."""
  return _codec(tokenizer, tokenizer.get_vocab_size()).special


def _cut(codec: _Codec, text: str, spans: Sequence[Span]) -> list[tuple[int, int, bool, str]]:
  """Pieces as (length, how many of its characters are in a span, behind a border, piece)."""
  borders = {0, len(text)}
  for start, end in spans:
    borders.add(start)
    # A special token never joins what follows it, but may take in the white space there.
    if not text.endswith(codec.special, start, end):
      borders.add(end)
  ordered = sorted(borders)
  parts = []
  for start, stop in zip(ordered[:-1], ordered[1:], strict=True):
    end = next((e - start for s, e in spans if s <= start < e), 0)
    piece = text[start:stop]
    if codec.inside is codec.begins or start == 0:
      parts.append((len(piece), end, False, piece))
    elif codec.added is None:
      parts.append((len(piece), end, True, piece))
    else:
      # The space comes behind every added token, so only what is ahead of the next has none.
      found = codec.added.search(piece)
      head = found.start() if found else len(piece)
      if text.endswith(codec.special, 0, start):
        head = 0
      elif codec.greedy and text[:start].rstrip().endswith(codec.greedy):
        head = 0
      if head:
        parts.append((head, end, True, piece[:head]))
      if head < len(piece):
        parts.append((len(piece) - head, max(0, end - head), False, piece[head:]))
  return parts


def _before(encoding: tokenizers.Encoding, end: int, length: int) -> int:
  """How many tokens begin ahead of the character `end`."""
  for place in range(end, length):  # white space may be in no token
    token = encoding.char_to_token(place)
    if token is not None:
      begin, _ = encoding.token_to_chars(token) or (end, end)
      return token + (begin < end)
  return len(encoding)


@functools.lru_cache(maxsize=8)
def _codec(tokenizer: tokenizers.Tokenizer, size: int) -> _Codec:
  del size  # tokens that were added since make it another tokenizer
  state = json.loads(tokenizer.to_str())
  # Also where it adds nothing, a post-processor may trim offsets.
  state |= {'post_processor': None, 'truncation': None, 'padding': None}
  begins = tokenizers.Tokenizer.from_str(json.dumps(state))
  schemes: set[str] = set()
  inside_state = {
    **state,
    'normalizer': _without_space(state['normalizer'], schemes),
    'pre_tokenizer': _without_space(state['pre_tokenizer'], schemes),
  }
  inside = tokenizers.Tokenizer.from_str(json.dumps(inside_state)) if schemes else begins
  known = list(tokenizer.get_added_tokens_decoder().values())
  texts = sorted((token.content for token in known), key=len, reverse=True)
  added = re.compile('|'.join(map(re.escape, texts))) if 'always' in schemes and texts else None
  special = tuple(token.content for token in known if token.special)
  greedy = tuple(token.content for token in known if token.rstrip)
  fast = fold.encoder(begins), fold.encoder(inside)
  return _Codec(begins, inside, fast, added, special, greedy)


def _without_space(step: Any, schemes: set[str]) -> Any:
  """A step of a tokenizer without the space it puts ahead; `schemes` gets where it puts it."""
  if not isinstance(step, dict):
    return step
  kind = step.get('type')
  if kind == 'Sequence':
    name = 'normalizers' if 'normalizers' in step else 'pretokenizers'
    steps = [_without_space(part, schemes) for part in step[name]]
    return {**step, name: [part for part in steps if part is not None]}
  if kind == 'Prepend':
    schemes.add('always')
    return None
  if kind == 'Metaspace' and step.get('prepend_scheme') != 'never':
    schemes.add(step.get('prepend_scheme', 'always'))
    return {**step, 'prepend_scheme': 'never'}
  if kind == 'ByteLevel' and step.get('add_prefix_space'):
    schemes.add('always')
    return {**step, 'add_prefix_space': False}
  return step
