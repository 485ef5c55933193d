"""A conversation as text, with where the assistant speaks in it."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data import chat, pieces, skeleton, words
from jaxtune.data.tokenizer import SpecialTokens, Tokenizer
from jaxtune.data.words import Values
from jaxtune.typing import InputError

Span = tuple[int, int]

_ROLE = 'assistant'


def written(
  tok: Tokenizer,
  messages: Sequence[Mapping[str, Any]],
  tools: Any = None,
  *,
  supervise: str = 'assistant',
  since: int = 0,
) -> tuple[str, list[Span]]:
  """The conversation in the model's template, and `[start, end)` of each turn that is learned.

  A learned turn begins where the prompt for it ends (what `add_generation_prompt` writes is given)
  and ends with the token that closes it; white space behind that is given again.

  With `{% generation %}` blocks in the template the turns are these blocks. Without, the whole
  conversation is rendered twice, with what the assistant said and with other words in their place:
  where the texts differ, it speaks. Templates that treat a turn by what it holds (calls of tools,
  thoughts, which many leave out of earlier turns) are compared turn by turn. In the end everything
  said must be found in its turn.

  A template may write a prompt otherwise when it is answered (Mistral's puts the system's words
  ahead of the last question only if nothing follows). When one turn is learned, the text ahead of
  it is what the template writes as a prompt, as at inference; when several are, what it leaves out
  is an error.

  Args:
    tok: of the model, with its template.
    messages: of `{role, content}`, and `tool_calls` and what else the template knows.
    tools: JSON schemas, or their JSON.
    supervise: 'assistant' for all turns of the assistant, 'last' or 'completion' for its last,
      'all' for the whole text.
    since: learned turns are messages from this one on.

  Raises:
    InputError: the template refuses the conversation or leaves out what is said in it, or there is
      no turn to learn.
  """
  values = words.values(messages, tools)
  special = tok.special
  if supervise == 'all':
    text = chat.write(special, values, False)
    _refuse_rest(values, text)
    for turn, message in enumerate(values['messages']):
      if message['role'] == _ROLE:
        _refuse(values, turn, text)
    return text, [(0, len(text))]
  said = [i for i, m in enumerate(values['messages']) if m['role'] == _ROLE and i >= since]
  if not said:
    raise InputError(
      f'no supervised token: no turn of the {len(messages)} messages is of the role {_ROLE!r}; '
      "give the conversation an answer, or learn everything with supervise='all'"
    )
  learned = said if supervise == 'assistant' else said[-1:]
  if chat.generates(special.chat_template or ''):
    return _generated(special, values, learned)
  text = chat.write(special, values, False)
  shape = skeleton.shape(special, pieces.special_texts(tok.encoder))
  found_pieces = skeleton.skeleton(special, values, text)
  spans = skeleton.simple(values, found_pieces, shape) if found_pieces else {}
  found = [
    spans[turn] if turn in spans else skeleton.compared(special, values, text, shape, turn)
    for turn in learned
  ]
  _prove(values, text, learned, found)
  lost = _left_out(values, text, found_pieces)
  if lost and len(found) == 1:
    ((start, end),) = found
    prompt = chat.write(special, skeleton.until(values, learned[0]), True)
    text, found = prompt + text[start:], [(len(prompt), len(prompt) + end - start)]
    found_pieces = None
  if lost:
    _refuse_rest(values, text, found_pieces)
  return text, found


def _generated(
  special: SpecialTokens, values: Values, learned: Sequence[int]
) -> tuple[str, list[Span]]:
  """By the template's own blocks."""
  marks = words.unused(json.dumps(values, ensure_ascii=False))
  parts = _split(chat.write(special, values, False, marks), marks)
  text = ''.join(parts)
  ends = list(itertools.accumulate(map(len, parts)))
  spans = [(start, end) for start, end in zip(ends[:-1:2], ends[1::2], strict=True) if start < end]
  turns = [i for i, m in enumerate(values['messages']) if m['role'] == _ROLE]
  if learned[0] != turns[0]:
    ahead = chat.write(special, skeleton.until(values, learned[0]), True, marks)
    spans = spans[sum(1 for _ in _split(ahead, marks)[1::2] if _) :]
  whole = ''.join(text[start:end] for start, end in spans)
  for turn in learned:
    _refuse(values, turn, whole)
  _refuse_rest(values, text)
  return text, spans


def _split(text: str, marks: tuple[str, str]) -> list[str]:
  """Texts outside, inside, outside, ... of the marks."""
  return text.replace(marks[1], marks[0]).split(marks[0])


def _prove(values: Values, text: str, learned: Sequence[int], found: Sequence[Span]) -> None:
  before = 0
  for turn, (start, end) in zip(learned, found, strict=True):
    if not before <= start < end <= len(text):
      raise InputError(
        f'the chat template writes nothing of message {turn + 1} ({_ROLE}), or writes the turns in '
        'another order; leave the message out'
      )
    before = end
    _refuse(values, turn, text[start:end])


def _refuse(values: Values, turn: int, text: str) -> None:
  """Raises where a turn's text lacks something that was said in it."""
  lost = words.missing(values['messages'][turn], text)
  if not lost:
    return
  last = all(m['role'] != _ROLE for m in values['messages'][turn + 1 :])
  remedy = 'leave it out of the data' if last else "learn the last turn only (supervise='last')"
  raise InputError(
    f'the chat template leaves out {words.short(lost[0])} of message {turn + 1} ({_ROLE}), so it '
    f'cannot be learned; {remedy}, or give the model another chat template'
  )


def _refuse_rest(values: Values, text: str, found: Sequence[skeleton.Piece] | None = None) -> None:
  """Raises where a text lacks something that others than the assistant said."""
  if lost := _left_out(values, text, found):
    raise InputError(
      f"the chat template leaves out {lost}; learn one turn only with supervise='last', put it "
      'where the template has a place for it, or leave it out of the data'
    )


def _left_out(values: Values, text: str, found: Sequence[skeleton.Piece] | None = None) -> str:
  """What the text lacks of tools and of the words of others than the assistant; '' for nothing."""
  written = {piece.message for piece in found or ()}
  for name in words.tool_names(values):
    if name not in text:
      return f'the tool {words.short(name)}'
  for index, message in enumerate(values['messages']):
    if message['role'] == _ROLE or index in written:
      continue
    lost = words.missing(message, text) if found is None else list(words.parts(message))
    if lost and lost[0].strip():
      return f'{words.short(lost[0])} of message {index + 1} ({message["role"]})'
  return ''
