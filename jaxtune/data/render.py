"""Records to tokens, each with whether it is learned: the one door from texts and conversations."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers

from jaxtune.data import pieces, turns
from jaxtune.data.encode import Encoded, Example
from jaxtune.data.row import RecordError, check_characters, place
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.typing import InputError

Supervise = Literal['assistant', 'last', 'completion', 'all']
Rendered = tuple[np.ndarray, np.ndarray]  # tokens int32 [T], learned bool [T]

_SUPERVISE = ('assistant', 'last', 'completion', 'all')
_BLOCK = 4096  # records tokenized at a time: offsets of more would fill the memory


class Written(NamedTuple):
  """A record as text, with the `[start, end)` of what is learned, and its special tokens."""

  text: str
  spans: Sequence[tuple[int, int]]
  first: Sequence[int] = ()
  last: Sequence[int] = ()


def render(
  tok: Tokenizer, record: Mapping[str, Any], supervise: Supervise = 'assistant'
) -> Rendered:
  """The tokens of a record, int32 `[T]`, and which of them are learned, bool `[T]`.

  - `{text}`: `[bos] + text + [eos]`; everything is learned.
  - `{prompt, completion}` of texts: `[bos] + prompt + completion + [eos]`, joined as they are; the
    completion and eos are learned.
  - `{messages, tools?}`, or `{prompt, completion}` of messages (one of them may be a text): the
    model's own chat template, which brings its special tokens itself. What the assistant said and
    called is learned, with the token that ends its turn; of a completion only the assistant's
    turns. What the template writes in `{% generation %}` blocks is learned where it has them;
    without them the borders are found, and proved, as `turns.written` says.

  `supervise` is 'assistant' for all of its turns, 'last' or 'completion' for the last only (the
  text ahead of it is then exactly what the model is given at inference), 'all' for every token. The
  first token is never learned: nothing predicts it.

  A prompt has the tokens it has alone, as at inference: no token crosses from it into what is
  learned. bos and eos are written once, bos if the tokenizer of the model begins its texts with it.

  Raises:
    InputError: a record of another form, a text that is not UTF-8, a conversation that the template
      refuses or writes only parts of, or nothing is learned.
  """
  _check(supervise)
  ((tokens, learned),) = tokenized(tok.encoder, [_write(tok, record, supervise)])
  if not learned.any():
    raise InputError(
      f'no supervised token: {_shown(record)} has nothing to learn after its first token; '
      'give it an answer'
    )
  return tokens, learned


def render_many(
  tok: Tokenizer,
  records: Iterable[Mapping[str, Any]],
  supervise: Supervise = 'assistant',
  max_length: int | None = None,
  source: str = 'the data',
) -> Any:
  """`render` of many records at once, which is faster.

  Without `max_length` a list with a `(tokens, learned)` for each record, in order; one with nothing
  learned is in it. With it an `Encoded` of examples `{tokens, supervised}`: what exceeds it is cut
  at the right and counted (`truncated`, and `unfinished` where the end of an answer is lost); rows
  that have nothing (left) to learn are counted (`empty`, `unlearned`) and left out. Rows of `text`
  are not cut but go on in the next example, which begins with the last token of the one before it,
  so that every token but the first is learned once.

  `source` is what errors call the records that do not know their place themselves.

  Raises:
    InputError: as `render`, with the row; or no record has anything to learn.
  """
  _check(supervise)
  if max_length is None:
    return [pair for _, pair in _rendered(tok, records, supervise, source)]
  return collect(_rendered(tok, records, supervise, source), max_length, source)


def collect(
  rendered: Iterable[tuple[Mapping[str, Any], Rendered]], max_length: int, source: str = 'the data'
) -> Encoded:
  """Records with their tokens as examples of at most `max_length` tokens, and what was lost.

  Raises:
    InputError: nothing is left to learn.
  """
  examples: list[Example] = []
  rows = documents = truncated = empty = unlearned = unfinished = 0
  for record, (tokens, learned) in rendered:
    rows += 1
    whole = _form(record) is _text
    documents += whole
    if _is_empty(record):
      empty += 1
      continue
    blocks = (
      _blocks(tokens, learned, max_length)
      if whole and max_length > 1
      else [(tokens[: max(max_length, 0)], learned[: max(max_length, 0)])]
    )
    kept = [{'tokens': t, 'supervised': s} for t, s in blocks if s.any()]
    if not whole:
      truncated += len(tokens) > max_length
      unfinished += bool(kept) and bool(learned[max_length:].any())
    unlearned += not kept
    examples += kept
  if examples:
    return Encoded(examples, truncated, empty, unlearned, unfinished=unfinished)
  if not rows:
    raise InputError(f'{source}: no records; at least one is needed')
  if empty == rows:
    raise InputError(f'{source}: the text is empty in all {rows} rows; choose a column of text')
  if documents == rows:
    raise InputError(
      f'{source}: no document has the 2 tokens that it takes to learn one, '
      f'or max_length, {max_length}, has no room for them'
    )
  raise InputError(
    f'{source}: no supervised token: of {rows} rows {empty} have an empty completion, and '
    f'{unlearned} lose all of it to max_length {max_length}; raise it or shorten the prompts'
  )


def _blocks(tokens: np.ndarray, learned: np.ndarray, max_length: int) -> list[Rendered]:
  starts = range(0, len(tokens) - 1, max_length - 1)
  blocks = [(tokens[i : i + max_length], learned[i : i + max_length].copy()) for i in starts]
  for _, part in blocks:
    part[0] = False  # learned as the last of the block before
  return blocks


def _is_empty(record: Mapping[str, Any]) -> bool:
  return record.get('text' if _form(record) is _text else 'completion') == ''


def _rendered(
  tok: Tokenizer, records: Iterable[Mapping[str, Any]], supervise: Supervise, source: str
) -> Iterable[tuple[Mapping[str, Any], Rendered]]:
  block: list[tuple[Mapping[str, Any], Written]] = []

  def done() -> list[tuple[Mapping[str, Any], Rendered]]:
    tokens = tokenized(tok.encoder, [written for _, written in block])
    return [(record, pair) for (record, _), pair in zip(block, tokens, strict=True)]

  for row, record in enumerate(records, 1):
    try:
      block.append((record, _write(tok, record, supervise)))
    except InputError as error:
      raise RecordError(f'{place(record, row, source)}: {error}') from None
    if len(block) == _BLOCK:
      yield from done()
      block.clear()
  yield from done()


def tokenized(encoder: tokenizers.Tokenizer, written: Sequence[Written]) -> list[Rendered]:
  """The tokens of each text between its special tokens, which are not doubled."""
  found = []
  encoded = pieces.encode(encoder, [(w.text, w.spans) for w in written])
  for w, (ids, learned) in zip(written, encoded, strict=True):
    first = [] if [*ids[:1]] == [*w.first] else w.first
    last = [] if [*ids[-1:]] == [*w.last] else w.last
    start, stop = len(first), len(first) + len(ids)
    tokens = np.empty(stop + len(last), np.int32)
    tokens[:start], tokens[start:stop], tokens[stop:] = first, ids, last
    mask = np.ones(len(tokens), np.bool_)
    mask[start:stop] = learned
    mask[: max(start, 1)] = False
    found.append((tokens, mask))
  return found


def _write(tok: Tokenizer, record: Mapping[str, Any], supervise: Supervise) -> Written:
  if not isinstance(record, Mapping):
    raise InputError(f'{record!r:.40} is not a record; give a dict')
  written = _form(record)(tok, record, supervise)
  check_characters(written.text, 'it')
  return written


def _form(record: Mapping[str, Any]) -> Callable[[Tokenizer, Mapping, Supervise], Written]:
  if 'messages' in record:
    return _conversation
  if 'completion' in record and 'prompt' in record:
    plain = isinstance(record['prompt'], str) and isinstance(record['completion'], str)
    return _completion if plain else _answer
  if 'text' in record:
    return _text
  raise InputError(
    f'a record of {", ".join(map(str, record)) or "nothing"} cannot be rendered; it takes text, '
    'prompt and completion, or messages'
  )


def _text(tok: Tokenizer, record: Mapping[str, Any], supervise: Supervise) -> Written:
  text = _string(record, 'text')
  return Written(text, [(0, len(text))], *_ends(tok))


def _completion(tok: Tokenizer, record: Mapping[str, Any], supervise: Supervise) -> Written:
  prompt, completion = _string(record, 'prompt'), _string(record, 'completion')
  text = prompt + completion
  start = 0 if supervise == 'all' else len(prompt)
  return Written(text, [(start, len(text))], *_ends(tok))


def _conversation(tok: Tokenizer, record: Mapping[str, Any], supervise: Supervise) -> Written:
  messages = _messages(record, 'messages', 'user')
  text, spans = turns.written(tok, messages, record.get('tools'), supervise=supervise)
  return Written(text, spans)


def _answer(tok: Tokenizer, record: Mapping[str, Any], supervise: Supervise) -> Written:
  prompt = _messages(record, 'prompt', 'user')
  messages = [*prompt, *_messages(record, 'completion', 'assistant')]
  text, spans = turns.written(
    tok, messages, record.get('tools'), supervise=supervise, since=len(prompt)
  )
  return Written(text, spans)


def _messages(record: Mapping[str, Any], field: str, role: str) -> list[Any]:
  value = record[field]
  if isinstance(value, str):
    return [{'role': role, 'content': value}]
  if isinstance(value, Mapping):
    return [value]
  if not isinstance(value, (list, tuple, np.ndarray)) or not len(value):
    raise InputError(f'{field!r} is {value!r}, which is no list of messages; give at least one')
  return list(value)


def _ends(tok: Tokenizer) -> tuple[list[int], list[int]]:
  """What the model's tokenizer begins a text with, and what ends one."""
  bos, eos = tok.special.bos, tok.special.eos
  begins = bos is not None and _begins_with(tok.encoder, tok.encoder.get_vocab_size()) == bos
  return [bos] if bos is not None and begins else [], [] if eos is None else [eos]


@functools.lru_cache(maxsize=8)
def _begins_with(encoder: tokenizers.Tokenizer, size: int) -> int | None:
  del size  # with tokens added since it is another tokenizer
  return next(iter(encoder.encode('').ids), None)


def _string(record: Mapping[str, Any], field: str) -> str:
  value = record[field]
  if not isinstance(value, str):
    raise InputError(f'{field!r} is {value!r}, which is not a string; choose a column of text')
  return value


def _check(supervise: str) -> None:
  if supervise not in _SUPERVISE:
    raise InputError(f'supervise is {supervise!r}; it is one of {", ".join(_SUPERVISE)}')


def _shown(record: Mapping[str, Any]) -> str:
  text = repr(dict(record))
  return text if len(text) <= 80 else f'{text[:77]}...'
