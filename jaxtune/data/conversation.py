"""Conversations in the dialects people write them in, checked and brought into one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.lines import loads
from jaxtune.data.row import check_characters
from jaxtune.typing import InputError

Message = dict[str, Any]

# ShareGPT's names and those of its descendants; OpenAI's `developer` is what others call system.
_ROLES = {
  **{role: role for role in ('system', 'user', 'assistant', 'tool')},
  'developer': 'system',
  **dict.fromkeys(('human', 'prompter'), 'user'),
  **dict.fromkeys(('gpt', 'chatgpt', 'bing', 'bard', 'bot', 'model'), 'assistant'),
  'function_call': 'assistant',
  **dict.fromkeys(('function', 'function_response', 'observation', 'tool_response'), 'tool'),
}
_KEYS = (('role', 'from'), ('content', 'value'), ('tool_calls',))


def turns_of(value: Any, place: str) -> list[Message]:
  """Turns of `{role, content}` from turns of role and content or ShareGPT's from and value.

  Roles become system, user, assistant and tool; ShareGPT's `function_call`, whose value is JSON
  `{name, arguments}`, becomes a call of the assistant, `tool_calls`, and the arguments of calls
  become objects where they are JSON text. Content in text parts is joined. Other keys of a turn
  stay (`reasoning_content`, `name`, `tool_call_id`), without those that are null. A list may be
  written as JSON text, for tables.

  Raises:
    InputError: no turns, a turn that is none, an unknown role, content that is no text, or an empty
      turn (a tool may answer nothing). Their order is not looked at: they may go on from others.
  """
  turns = [_message(turn, f'{place}[{n}]') for n, turn in enumerate(listed(value, place, 'turns'))]
  if not turns:
    raise InputError(f'{place} has no turns; give it some or remove the row')
  return turns


def check_order(turns: Sequence[Message], place: str) -> None:
  """Refuses an order of roles that no conversation has.

  Raises:
    InputError: a system message after the first turn, an assistant before any user, or a tool's
      answer without a call.
  """
  before: Message = {'role': ''}
  for number, turn in enumerate(turns):
    role, where = turn['role'], f'{place}[{number}]'
    if role == 'system' and number:
      second = 'a second' if turns[0]['role'] == 'system' else 'a'
      raise InputError(
        f'{where}: {second} system message after the first turn; join it with the first or remove '
        'it'
      )
    if role == 'assistant' and before['role'] in ('', 'system'):
      raise InputError(
        f'{where}: the assistant speaks before any user; begin with the user, or put what it says '
        'into the system message'
      )
    if role == 'tool' and before['role'] != 'tool' and not before.get('tool_calls'):
      raise InputError(
        f"{where}: a tool answers, but the turn before it calls none; add the assistant's "
        'tool_calls or remove the answer'
      )
    before = turn


def tools(value: Any, place: str) -> list[dict[str, Any]]:
  """JSON schemas of functions as chat templates take them, `{type: function, function: {...}}`.

  They may be JSON text, as a list or one by one, and lack the wrapping. Keys that are null are left
  out, in arguments of calls too: tables of typed columns fill them in where a row has none.
  """
  found = []
  for number, tool in enumerate(listed(value, place, 'tools')):
    where = f'{place}[{number}]'
    tool = loads(where, tool) if isinstance(tool, str) else tool
    if isinstance(tool, Mapping) and isinstance(tool.get('name'), str):
      tool = {'type': 'function', 'function': tool}
    function = tool.get('function') if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
      raise InputError(
        f'{where}: {short_of(tool)} is no function; write '
        '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
      )
    found.append(_filled(tool))
  return found


def text(value: Any, place: str) -> str:
  """A string that UTF-8 can hold; also text in parts, `[{type: text, text: ...}]`, joined."""
  if isinstance(value, list | tuple):
    value = ''.join(_part(part, f'{place}[{n}]') for n, part in enumerate(value))
  if not isinstance(value, str):
    raise InputError(f'{place} is {short_of(value)}, which is not a text; write a string')
  check_characters(value, place)
  return value


def listed(value: Any, place: str, what: str) -> Sequence[Any]:
  """A list, which may be written as JSON text."""
  if isinstance(value, str) and value.lstrip()[:1] == '[':
    value = loads(place, value)
  if not isinstance(value, list | tuple):
    raise InputError(f'{place} is {short_of(value)}, which is no list of {what}; write one')
  return value


def _message(turn: Any, place: str) -> Message:
  if not isinstance(turn, Mapping):
    raise InputError(
      f'{place} is {short_of(turn)}, which is no turn; write {{"role": ..., "content": ...}}'
    )
  role, content, calls = (_first(turn, *names) for names in _KEYS)
  if role is None:
    raise InputError(f'{place}: a turn without role (or from); it has {", ".join(turn) or "none"}')
  if not isinstance(role, str) or role not in _ROLES:
    raise InputError(
      f'{place}: the role {short_of(role)} is unknown; use system, user, assistant or tool, or '
      "ShareGPT's human, gpt, function_call, observation"
    )
  message: Message = {'role': _ROLES[role], 'content': ''}
  if len(turn) > 2:
    known = {name for names in _KEYS for name in names}
    message |= {key: value for key, value in turn.items() if key not in known and value is not None}
  if role == 'function_call':
    content = text(content, f'{place}: the content')
    calls, content = loads(f'{place}: the function call', content), None
    calls = calls if isinstance(calls, list) else [calls]
  if calls:
    message['tool_calls'] = [
      _call(call, f'{place}: tool_calls') for call in listed(calls, f'{place}: tool_calls', 'calls')
    ]
  if content is not None or not calls:
    message['content'] = text(content, f'{place}: the content')
  if not message['content'].strip() and not calls and message['role'] != 'tool':
    raise InputError(
      f'{place}: the turn of the {message["role"]} is empty; give it a text or remove it'
    )
  return message


def _first(turn: Mapping[str, Any], *names: str) -> Any:
  return next((turn[name] for name in names if turn.get(name) is not None), None)


def _call(call: Any, place: str) -> dict[str, Any]:
  if isinstance(call, Mapping) and isinstance(call.get('name'), str):
    call = {'type': 'function', 'function': call}
  function = call.get('function') if isinstance(call, Mapping) else None
  if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
    raise InputError(
      f'{place}: {short_of(call)} calls no function; write {{"function": {{"name": ..., '
      '"arguments": {...}}}'
    )
  arguments = function.get('arguments')
  if isinstance(arguments, str):
    arguments = loads(f'{place}: the arguments of {function["name"]}', arguments or '{}')
  if not isinstance(arguments, Mapping | None):
    raise InputError(
      f'{place}: the arguments of {function["name"]} are {short_of(arguments)}; write an object, '
      '{"name": value, ...}'
    )
  return _filled({**call, 'function': {**function, 'arguments': arguments or {}}})


def _part(part: Any, place: str) -> str:
  kind = part.get('type', 'text') if isinstance(part, Mapping) else None
  if kind == 'text' and isinstance(part.get('text'), str):
    return part['text']
  if isinstance(kind, str) and kind != 'text':
    raise InputError(f'{place} is of type {kind!r}; only text can be learned from: remove the part')
  raise InputError(f'{place} is {short_of(part)}, no part of text; write a string')


def _filled(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _filled(item) for key, item in value.items() if item is not None}
  if isinstance(value, list | tuple):
    return [_filled(item) for item in value]
  return value


def short_of(value: Any) -> str:
  """A value as an error shows it."""
  try:
    shown = json.dumps(value, ensure_ascii=True)
  except (TypeError, ValueError):
    shown = ascii(value)
  return shown if len(shown) <= 60 else shown[:57] + '...'
