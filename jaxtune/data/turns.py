"""A conversation as text, with where the assistant speaks in it."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.data import chat, pieces
from jaxtune.data.tokenizer import SpecialTokens, Tokenizer
from jaxtune.typing import InputError

Span = tuple[int, int]
Values = dict[str, Any]

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
  values = _values(messages, tools)
  special = tok.special
  if supervise == 'all':
    text = chat.write(special, values, False)
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
  shape = _shape(special, pieces.special_texts(tok.encoder))
  found = _by_substitution(special, values, text, shape, learned)
  if found is None:
    found = [_by_comparison(special, values, text, shape, turn) for turn in learned]
  _prove(values, text, learned, found)
  if len(found) == 1 and _left_out(values, text, learned[0]):
    ((start, end),) = found
    prompt = chat.write(special, _until(values, learned[0]), True)
    text, found = prompt + text[start:], [(len(prompt), len(prompt) + end - start)]
  if lost := _left_out(values, text, len(values['messages'])):
    raise InputError(
      f'the chat template leaves out {lost}; learn one turn only with '
      "supervise='last', or put it where the template has a place for it"
    )
  return text, found


def _generated(special: SpecialTokens, values: Values, learned: Sequence[int]) -> tuple:
  """By the template's own blocks."""
  marks = _unused(str(values))
  pieces_ = _split(chat.write(special, values, False, marks), marks)
  text = ''.join(pieces_)
  ends = [len(''.join(pieces_[: i + 1])) for i in range(len(pieces_))]
  spans = [(start, end) for start, end in zip(ends[:-1:2], ends[1::2], strict=True) if start < end]
  turns = [i for i, m in enumerate(values['messages']) if m['role'] == _ROLE]
  if learned[0] != turns[0]:
    ahead = chat.write(special, _until(values, learned[0]), True, marks)
    spans = spans[sum(1 for _ in _split(ahead, marks)[1::2] if _) :]
  whole = ''.join(text[start:end] for start, end in spans)
  for turn in learned:
    _refuse(values, turn, whole)
  return text, spans


def _split(text: str, marks: tuple[str, str]) -> list[str]:
  """Texts outside, inside, outside, ... of the marks."""
  return text.replace(marks[1], marks[0]).split(marks[0])


class _Shape(NamedTuple):
  """What a template writes around a turn: `opens` it, and the special token that `closes` it."""

  opens: str
  closes: str


@functools.lru_cache(maxsize=64)
def _shaped(template: str, texts: tuple[tuple[str, str], ...], tokens: tuple[str, ...]) -> _Shape:
  special = SpecialTokens(chat_template=template, texts=dict(texts))
  mark, other = _unused(template)
  values = chat.as_values(
    [{'role': 'user', 'content': other}, {'role': _ROLE, 'content': mark}], None
  )
  try:
    asked = chat.write(special, _until(values, 1), False)
    prompt = chat.write(special, _until(values, 1), True)
    behind = chat.write(special, values, False).rpartition(mark)[2]
  except InputError:  # it may want tools, or other words; its own conversations will tell
    return _Shape('', '')
  opens = prompt[_common(asked, prompt) :]
  known = [t for t in {*tokens, *special.texts.values()} if t and t in behind]
  closes = min(known, key=lambda token: (behind.find(token), -len(token)), default='')
  return _Shape(opens if opens.strip() else '', closes)


def _shape(special: SpecialTokens, tokens: tuple[str, ...]) -> _Shape:
  return _shaped(special.chat_template or '', tuple(sorted(special.texts.items())), tokens)


def _by_substitution(
  special: SpecialTokens, values: Values, text: str, shape: _Shape, learned: Sequence[int]
) -> list[Span] | None:
  """All turns at once, where the template writes what is said as it is, or stripped."""
  messages = values['messages']
  turns = [i for i, m in enumerate(messages) if m['role'] == _ROLE]
  if any(not m.get('content') or len(m) > 2 for m in (messages[i] for i in turns)):
    return None
  if not all(isinstance(messages[i]['content'], str) for i in turns):
    return None
  mark, _ = _unused(text)
  others = {i: f'{mark}{i}{mark}' for i in turns}
  try:
    parts = [chat.write(special, _with(values, others), False)]
  except InputError:
    return None
  for other in others.values():
    if parts[-1].count(other) != 1:
      return None
    parts += parts.pop().split(other)
  for form in (str, str.strip):
    contents = [form(messages[i]['content']) for i in turns]
    if parts[0] + ''.join(c + p for c, p in zip(contents, parts[1:], strict=True)) != text:
      continue
    found, place = [], 0
    for turn, before, content, _ in zip(turns, parts, contents, parts[1:], strict=False):
      place += len(before)
      if turn in learned:
        # What stands ahead of the first words is the end of the prompt.
        lead = before.rfind(shape.opens) + len(shape.opens) if shape.opens in before else -1
        if not shape.opens or lead < 0:
          prompt = chat.write(special, _until(values, turn), True)
          if not text.startswith(prompt) or len(prompt) > place:
            return None
          start = len(prompt)
        else:
          start = place - len(before) + lead
        found.append((start, _closed(text, place + len(content), shape)))
      place += len(content)
    return found
  return None


def _by_comparison(
  special: SpecialTokens, values: Values, text: str, shape: _Shape, turn: int
) -> Span:
  """One turn, from the prompt for it to what follows it whatever it says."""
  mark, _ = _unused(text)
  message = values['messages'][turn]
  other: dict[str, Any] = {'role': _ROLE}
  if message.get('content') or not message.get('tool_calls'):
    other['content'] = mark
  if message.get('tool_calls'):
    other['tool_calls'] = [_another(call, mark) for call in message['tool_calls']]
  said = [*values['messages']]
  said[turn] = other
  varied = chat.write(special, {**values, 'messages': said}, False)
  first = _common(text, varied)
  last = len(text) - _common(text[first:][::-1], varied[first:][::-1])
  try:
    prompt = chat.write(special, _until(values, turn), True)
  except InputError:  # some refuse to begin with an answer
    prompt = ''
  if prompt and len(prompt) <= first and text.startswith(prompt):
    start = len(prompt)
  else:
    start = _aligned(text, first, prompt, shape)
  return start, _closed(text, last, shape, anywhere=bool(message.get('tool_calls')))


def _aligned(text: str, first: int, prompt: str, shape: _Shape) -> int:
  """Where the prompt ends in a text that has another beginning, looking back from `first`."""
  if shape.opens:
    place = text.rfind(shape.opens, 0, first)
    if place >= 0:
      return place + len(shape.opens)
  for length in (64, 32, 16, 8):
    tail = prompt[-length:]
    place = text.rfind(tail, 0, first) if tail else -1
    if place >= 0 and not text[place + len(tail) : first].strip():
      return place + len(tail)
  raise InputError(
    'cannot tell where in the chat template an answer of the assistant begins; learn everything '
    "with supervise='all', or give the template {% generation %} blocks"
  )


def _closed(text: str, place: int, shape: _Shape, anywhere: bool = False) -> int:
  """Behind the token that closes a turn whose words end at `place`."""
  if not shape.closes:
    return place
  found = text.find(shape.closes, place)
  if found < 0 or (text[place:found].strip() and not anywhere):
    return place
  return found + len(shape.closes)


def _another(call: Any, mark: str) -> Any:
  """A call of another function."""
  if not isinstance(call, dict):
    return mark
  if isinstance(call.get('function'), dict):
    return {**call, 'function': _another(call['function'], mark)}
  return {**call, 'name': mark, 'arguments': {}}


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
  lost = _missing(values['messages'][turn], text)
  if not lost:
    return
  last = all(m['role'] != _ROLE for m in values['messages'][turn + 1 :])
  remedy = 'leave it out of the data' if last else "learn the last turn only (supervise='last')"
  raise InputError(
    f'the chat template leaves out {_short(lost[0])} of message {turn + 1} ({_ROLE}), so it cannot '
    f'be learned; {remedy}, or give the model another chat template'
  )


def _missing(message: Mapping[str, Any], text: str) -> list[str]:
  """What of the message is not in the text; white space and JSON's escapes may differ."""
  squeezed = None
  lost = []
  for part in _parts(message):
    if part.strip() in text:
      continue
    squeezed = squeezed or _squeezed(text)
    forms = [part, *(json.dumps(part, ensure_ascii=ascii)[1:-1] for ascii in (False, True))]
    if not any(_squeezed(form) in squeezed for form in forms):
      lost.append(part)
  return lost


def _parts(message: Mapping[str, Any]) -> Iterator[str]:
  content = message.get('content')
  if isinstance(content, str):
    yield content
  elif isinstance(content, list):
    for part in content:
      if isinstance(part, dict) and isinstance(part.get('text'), str):
        yield part['text']
  for name in ('reasoning_content', 'reasoning', 'thinking'):
    if isinstance(message.get(name), str):
      yield message[name]
  for call in message.get('tool_calls') or ():
    call = call.get('function', call) if isinstance(call, dict) else call
    yield from _leaves(
      [call.get('name'), call.get('arguments')] if isinstance(call, dict) else call
    )


def _leaves(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):
    for entry in value:
      yield from _leaves(entry)
  elif isinstance(value, dict):
    for key, entry in value.items():
      yield key
      yield from _leaves(entry)


def _left_out(values: Values, text: str, until: int) -> str:
  """What the text lacks of the words of system and users, with its message; '' for nothing."""
  for index, message in enumerate(values['messages'][:until]):
    if message['role'] in ('system', 'developer', 'user') and (lost := _missing(message, text)):
      return f'{_short(lost[0])} of message {index + 1} ({message["role"]})'
  return ''


def _until(values: Values, turn: int) -> Values:
  return {**values, 'messages': values['messages'][:turn]}


def _with(values: Values, contents: Mapping[int, str]) -> Values:
  said = [
    {**m, 'content': contents[i]} if i in contents else m for i, m in enumerate(values['messages'])
  ]
  return {**values, 'messages': said}


def _unused(text: str) -> tuple[str, str]:
  """Two characters for private use that the text has not."""
  free = (c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text)
  return next(free), next(free)


def _common(a: str, b: str) -> int:
  """The length of the longest common beginning."""
  low, high = 0, min(len(a), len(b))
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
  return low


def _squeezed(text: str) -> str:
  return ''.join(text.split())


def _short(text: str) -> str:
  return repr(text if len(text) <= 40 else f'{text[:37]}...')


def _values(messages: Sequence[Mapping[str, Any]], tools: Any) -> Values:
  if isinstance(tools, str):
    tools = _loads(tools, 'tools')
  values = chat.as_values(messages, tools or None)  # no tools are none: templates ask for None
  if not values['messages']:
    raise InputError('the conversation has no messages; give at least one')
  for index, message in enumerate(values['messages'], 1):
    if not isinstance(message.get('role'), str):
      raise InputError(f'message {index} has no role; write {{"role": ..., "content": ...}}')
    for call in message.get('tool_calls') or ():
      function = call.get('function', call) if isinstance(call, dict) else None
      if not isinstance(function, dict):
        raise InputError(f'message {index}: the tool call {_short(str(call))} is no function')
      if isinstance(function.get('arguments'), str):  # as OpenAI's files have them
        function['arguments'] = _loads(function['arguments'], f'message {index}: arguments')
  return values


def _loads(text: str, name: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise InputError(f'{name}: {_short(text)} is not JSON ({error.msg}); mend it') from None
