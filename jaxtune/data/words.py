"""What is said in a conversation, and whether a text has it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtune.data import chat
from jaxtune.typing import InputError

Values = dict[str, Any]  # as `chat.as_values`


def values(messages: Sequence[Mapping[str, Any]], tools: Any) -> Values:
  """What a template sees of a conversation, checked; JSON in text, as of arguments, is read.

  Raises:
    InputError: no messages, one without a role, or a call or tools that are not what they must be.
  """
  if isinstance(tools, str):
    tools = _loads(tools, 'tools')
  found = chat.as_values(messages, tools or None)  # no tools are none: templates ask for None
  if not found['messages']:
    raise InputError('the conversation has no messages; give at least one')
  for index, message in enumerate(found['messages'], 1):
    if not isinstance(message.get('role'), str):
      raise InputError(f'message {index} has no role; write {{"role": ..., "content": ...}}')
    for call in message.get('tool_calls') or ():
      function = call.get('function', call) if isinstance(call, dict) else None
      if not isinstance(function, dict):
        raise InputError(f'message {index}: the tool call {short(str(call))} is no function')
      if isinstance(function.get('arguments'), str):  # as OpenAI's files have them
        function['arguments'] = _loads(function['arguments'], f'message {index}: arguments')
  return found


def _loads(text: str, name: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise InputError(f'{name}: {short(text)} is not JSON ({error.msg}); mend it') from None


def parts(message: Mapping[str, Any]) -> Iterator[str]:
  """The texts of a message: its content, thoughts, and the functions and arguments of its calls."""
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
    function = call.get('function', call)
    yield from _leaves([function.get('name'), function.get('arguments')])


def tool_names(values: Values) -> Iterator[str]:
  """The functions that the assistant may call."""
  tools = values['tools']
  for tool in tools if isinstance(tools, list) else ():
    function = tool.get('function', tool) if isinstance(tool, dict) else None
    if isinstance(function, dict) and isinstance(function.get('name'), str):
      yield function['name']


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


def missing(message: Mapping[str, Any], text: str) -> list[str]:
  """What of the message is not in the text; white space and JSON's escapes may differ."""
  squeezed = None
  lost = []
  for part in parts(message):
    if part.strip() in text:
      continue
    squeezed = squeezed or _squeezed(text)
    forms = [part, *(json.dumps(part, ensure_ascii=ascii)[1:-1] for ascii in (False, True))]
    if not any(_squeezed(form) in squeezed for form in forms):
      lost.append(part)
  return lost


def _squeezed(text: str) -> str:
  return ''.join(text.split())


def short(text: str) -> str:
  """A text as an error shows it."""
  return repr(text if len(text) <= 40 else f'{text[:37]}...')


def unused(text: str) -> tuple[str, str]:
  """Two characters for private use that the text has not."""
  free = (c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text)
  return next(free), next(free)


def common(a: str, b: str) -> int:
  """The length of the longest common beginning."""
  low, high = 0, min(len(a), len(b))
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
  return low
