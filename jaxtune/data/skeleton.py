"""Where the turns of a conversation are in its text: found by putting other words in place."""

import collections
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.data import chat, words
from jaxtune.data.tokenizer import SpecialTokens
from jaxtune.data.words import Values
from jaxtune.typing import InputError

Span = tuple[int, int]

_ROLE = 'assistant'


class Shape(NamedTuple):
  """What a template writes around a turn.

  opens: what it writes for the assistant to go on.
  closes: the special token behind what the assistant said; '' if there is none.
  tokens: all special tokens of the model.
  """

  opens: str
  closes: str
  tokens: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def _shaped(template: str, texts: tuple[tuple[str, str], ...], tokens: tuple[str, ...]) -> Shape:
  special = SpecialTokens(chat_template=template, texts=dict(texts))
  other, mark = words.unused(template)
  for form in (str, lambda text: [{'type': 'text', 'text': text}]):
    said = [('user', other), (_ROLE, mark)]
    values = chat.as_values([{'role': role, 'content': form(text)} for role, text in said])
    try:
      asked = chat.write(special, until(values, 1), False)
      prompt = chat.write(special, until(values, 1), True)
      behind = chat.write(special, values, False).rpartition(mark)[2]
    except InputError:  # it may want parts, tools, or other words
      continue
    opens = prompt[words.common(asked, prompt) :]
    known = [token for token in {*tokens, *special.texts.values()} if token and token in behind]
    closes = min(known, key=lambda token: (behind.find(token), -len(token)), default='')
    return Shape(opens if opens.strip() else '', closes, tokens)
  return Shape('', '', tokens)


def shape(special: SpecialTokens, tokens: tuple[str, ...]) -> Shape:
  """What the template writes around a turn, seen in a conversation of two messages."""
  return _shaped(special.chat_template or '', tuple(sorted(special.texts.items())), tokens)


class Piece(NamedTuple):
  """Of a conversation's text: what the template writes ahead of the words of a message, and these.

  The last piece is of no message and has no words.
  """

  ahead: str
  message: int
  words: str


def skeleton(special: SpecialTokens, values: Values, text: str) -> list[Piece] | None:
  """The text in pieces, found by other words in every message; None if that changes more.

  Exact whatever the messages hold, for the pieces must make up the text.
  """
  messages = values['messages']
  mark, _ = words.unused(text)
  own = {i: _only(m['content']) for i, m in enumerate(messages) if m.get('content')}
  said = [
    {**m, 'content': _another(m['content'], f'{mark}{i}{mark}')} if i in own else m
    for i, m in enumerate(messages)
  ]
  try:
    parts = re.split(
      f'{mark}([0-9]+){mark}', chat.write(special, {**values, 'messages': said}, False)
    )
  except InputError:
    return None
  order = [int(part) for part in parts[1::2]]
  roles = sorted({messages[i]['role'] for i in order})
  # A template treats the words of a role in one way. Mostly all ways give the same.
  ways = [
    list(
      dict.fromkeys(
        tuple(way(own[i]) for i in order if messages[i]['role'] == role) for way in _WAYS
      )
    )
    for role in roles
  ]
  for shown in itertools.islice(itertools.product(*ways), 100):
    queues = dict(zip(roles, map(iter, shown), strict=True))
    texts = [next(queues[messages[i]['role']]) for i in order]
    if parts[0] + ''.join(w + p for w, p in zip(texts, parts[2::2], strict=True)) == text:
      return [*map(Piece, parts[::2], order, texts), Piece(parts[-1], -1, '')]
  return None


def _only(content: Any) -> str:
  """The words of a message, which are one text in most; '' where they are not."""
  if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
    content = content[0].get('text')
  return content if isinstance(content, str) else ''


def _another(content: Any, mark: str) -> Any:
  """Other words in the form of these."""
  if isinstance(content, list):
    return [{**part, 'text': mark} if 'text' in part else part for part in content[:1]]
  return mark


def _escaped(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)[1:-1]


_WAYS = (str, str.strip, _escaped)


def simple(values: Values, skeleton: Sequence[Piece], shape: Shape) -> dict[int, Span]:
  """The spans of the turns that are nothing but words."""
  spans: dict[int, Span] = {}
  once = collections.Counter(piece.message for piece in skeleton)
  place = 0
  for piece, after in zip(skeleton, skeleton[1:], strict=False):
    place += len(piece.ahead)
    message = values['messages'][piece.message]
    speaks = message['role'] == _ROLE and not message.get('tool_calls')
    if speaks and shape.opens and once[piece.message] == 1:
      start = _opened(piece.ahead, shape.opens)
      end = _closed(after.ahead, 0, shape)
      if start is not None:
        begin = place - len(piece.ahead) + start
        spans[piece.message] = begin, place + len(piece.words) + end
    place += len(piece.words)
  return spans


def _opened(text: str, opens: str) -> int | None:
  """Where the last opening of a turn ends, or as much of one as a template repeats."""
  for length in range(len(opens), len(opens.rstrip()) // 2, -1):
    place = text.rfind(opens[:length])
    if place >= 0:
      return place + length
  return None


def _closed(text: str, place: int, shape: Shape) -> int:
  """Behind the token that closes a turn whose words end at `place`."""
  if not shape.closes:
    return place
  found = text.find(shape.closes, place)
  if found >= 0 and not text[place:found].strip():
    return found + len(shape.closes)
  # Another may close a turn that is not the last.
  return place + max(
    (len(token) for token in shape.tokens if text.startswith(token, place)), default=0
  )


def compared(special: SpecialTokens, values: Values, text: str, shape: Shape, turn: int) -> Span:
  """One turn, from the prompt for it to what follows it whatever it says."""
  mark, _ = words.unused(text)
  messages = values['messages']
  message = messages[turn]
  calls = message.get('tool_calls') or []
  other: dict[str, Any] = {'role': _ROLE}
  if message.get('content') or not calls:
    other['content'] = _another(message.get('content'), mark)
  elif 'content' in message:  # some templates ask for one, and others whether there is one
    other['content'] = message['content']
  if calls:
    other['tool_calls'] = [_renamed(call, mark) for call in calls]
  varied = chat.write(special, _with(values, turn, other), False)
  first = words.common(text, varied)
  last = len(text) - words.common(text[first:][::-1], varied[first:][::-1])
  start = _begun(special, values, text, shape, turn, first)
  if not calls:
    return start, _closed(text, last, shape)
  # What is common to calls may be in the answer too. The turn ends ahead of the next message.
  alone = chat.write(special, until(values, turn + 1), False)
  if text.startswith(alone) and len(alone) > first:
    limit = len(alone.rstrip())
  elif turn + 1 < len(messages):
    reply = {**messages[turn + 1], 'content': mark}
    limit = words.common(text, chat.write(special, _with(values, turn + 1, reply), False))
  else:
    limit = len(text.rstrip())
  last = min(last, limit)
  found = text.find(shape.closes, last, limit) if shape.closes else -1
  return start, found + len(shape.closes) if found >= 0 else limit


def _begun(
  special: SpecialTokens, values: Values, text: str, shape: Shape, turn: int, first: int
) -> int:
  """Where the turn begins whose own words begin at `first` at the earliest."""
  try:
    prompt = chat.write(special, until(values, turn), True)
  except InputError:  # some refuse to begin with an answer
    prompt = ''
  same = min(words.common(text, prompt), first)
  if prompt and same >= len(prompt) - len(shape.opens):
    return same
  # It writes earlier turns otherwise: look for the end of the prompt, back from the words.
  for tail in [shape.opens] * bool(shape.opens) + [prompt[-n:] for n in (64, 32, 16, 8) if prompt]:
    place = text.rfind(tail, 0, first)
    between = text[place + len(tail) : first]
    if place >= 0 and not any(part.strip() in between for part in _around(values, turn)):
      return place + len(tail)
  raise InputError(
    f'cannot tell where in the chat template message {turn + 1} ({_ROLE}) begins; learn everything '
    "with supervise='all', or give the template {% generation %} blocks"
  )


def _around(values: Values, turn: int) -> Iterator[str]:
  """The words ahead of a turn."""
  for message in values['messages'][:turn]:
    yield from (part for part in words.parts(message) if part.strip())


def _renamed(call: dict[str, Any], mark: str) -> dict[str, Any]:
  """A call of another function."""
  if 'function' in call:
    return {**call, 'function': _renamed(call['function'], mark)}
  return {**call, 'name': mark, 'arguments': {}}


def until(values: Values, turn: int) -> Values:
  """The conversation ahead of a turn."""
  return {**values, 'messages': values['messages'][:turn]}


def _with(values: Values, turn: int, message: Mapping[str, Any]) -> Values:
  messages = values['messages']
  return {**values, 'messages': [*messages[:turn], message, *messages[turn + 1 :]]}
