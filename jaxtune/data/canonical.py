"""One record of each kind, from the values of its fields to its canonical form."""

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.data import conversation
from jaxtune.data.column import number
from jaxtune.data.conversation import Message, short_of, text
from jaxtune.typing import InputError

Values = Mapping[str, Any]  # of fields; one that a row lacks is not in it
Said = str | list[Message]  # a text, or turns

# Of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca: the instruction with and without
# an input, exactly as the models of that family were trained on.
_ALPACA = (
  'Below is an instruction that describes a task{}. Write a response that appropriately completes '
  'the request.\n\n### Instruction:\n{}\n\n{}### Response:'
)
_TRUE, _FALSE = (True, 1, '1', 'true', 'True'), (False, 0, '0', 'false', 'False')


def plain(values: Values, where: str) -> dict[str, Any]:
  return {'text': text(values['text'], f'{where}: text')}


def labelled(values: Values, where: str) -> dict[str, Any]:
  """A text with a class, a number, or the list of its classes, which may be JSON text (tables)."""
  label = _unpacked(values['label'], lambda entry: isinstance(entry, str | int | float))
  for one in label if isinstance(label, list | tuple) else [label]:
    if not isinstance(one, str | int | float):
      raise InputError(f'{where}: label is {short_of(one)}; write a class or a number')
  return {**plain(values, where), 'label': label}


def completion(values: Values, where: str) -> dict[str, Any]:
  """What is asked and what should follow, as texts or as turns; an empty text may follow."""
  prompt, (answer,) = _continued(values, ('completion',), where)
  return {'prompt': prompt, 'completion': answer}


def messages(values: Values, where: str) -> dict[str, Any]:
  """A conversation that ends with the assistant, and the tools it may call."""
  if 'messages' in values:
    turns = conversation.turns_of(values['messages'], f'{where}: messages')
    turns = _after_system(values, turns, where)
    conversation.check_order(turns, f'{where}: messages')
  else:
    asked = _as_turns('user', _prompt(values, where, template=False), f'{where}: prompt')
    answer = values['output' if 'output' in values else 'completion']
    turns = asked + _as_turns('assistant', _said(answer, f'{where}: completion'), where)
    conversation.check_order(turns, where)
  if turns[-1]['role'] != 'assistant':
    raise InputError(
      f'{where}: messages: the last turn is by {turns[-1]["role"]}, so nothing is learned from it; '
      'end with the assistant, or take the records as prompts (kind prompt)'
    )
  made: dict[str, Any] = {'messages': turns}
  if values.get('tools') and (tools := conversation.tools(values['tools'], f'{where}: tools')):
    made['tools'] = tools
  return made


def preference(values: Values, where: str) -> dict[str, Any]:
  """What is asked, and the better and the worse of two answers.

  A prompt that is not given is what both begin with: of conversations the turns they share (as
  TRL's `extract_prompt`); of texts all up to the last 'Assistant:' that they share (as Anthropic's
  HH writes them), else all they share up to the border of a word, the space before which begins the
  answers. TRL cuts at the first other character, which may be inside a word.
  """
  if 'prompt' not in values or (
    isinstance(values['prompt'], str) and _starts_with_user(values['chosen'])
  ):
    values = {**values, **_implicit(values, where)}
  prompt, (chosen, rejected) = _continued(values, ('chosen', 'rejected'), where)
  if chosen == rejected:
    raise InputError(f'{where}: chosen and rejected are the same; remove the row')
  for name, answer in (('chosen', chosen), ('rejected', rejected)):
    _not_empty(answer, f'{where}: {name}')
  return {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}


def unpaired(values: Values, where: str) -> dict[str, Any]:
  """What is asked, one answer, and whether it is a good one."""
  label = values['label']
  if not isinstance(label, bool | int | float | str) or label not in (*_TRUE, *_FALSE):
    raise InputError(f'{where}: label is {short_of(label)}; write true or false, 1 or 0')
  made = completion(values, where)
  _not_empty(made['completion'], f'{where}: completion')
  return {**made, 'label': label in _TRUE}


def pair(values: Values, where: str) -> dict[str, Any]:
  """Texts that belong together, and those that do not."""
  made = {
    name: text(values[name], f'{where}: {name}')
    for name in ('anchor', 'positive', 'negative')
    if name in values
  }
  for name, value in made.items():
    _not_empty(value, f'{where}: {name}')
  if made.get('negative') == made['positive']:
    raise InputError(f'{where}: positive and negative are the same; remove the row')
  return made


def scored_pair(values: Values, where: str) -> dict[str, Any]:
  """Two texts and how alike they are."""
  label = number(values['label'])
  if not math.isfinite(label):
    raise InputError(
      f'{where}: label is {short_of(values["label"])}, which is not a finite number; write how '
      'alike the two texts are, as from 0 to 1'
    )
  return {**pair(values, where), 'label': label}


def tags(values: Values, where: str) -> dict[str, Any]:
  """Words with one tag each."""
  words = conversation.listed(values['tokens'], f'{where}: tokens', 'words')
  marks = conversation.listed(values['tags'], f'{where}: tags', 'tags')
  if len(words) != len(marks):
    raise InputError(f'{where}: {len(words)} tokens, but {len(marks)} tags; give each token one')
  if not words:
    raise InputError(f'{where}: no tokens; remove the row')
  for n, mark in enumerate(marks):
    if not isinstance(mark, str | int) or isinstance(mark, bool):
      raise InputError(f'{where}: tags[{n}] is {short_of(mark)}; write a name or a number')
  words = [text(word, f'{where}: tokens[{n}]') for n, word in enumerate(words)]
  for n, word in enumerate(words):
    _not_empty(word, f'{where}: tokens[{n}]')
  return {'tokens': words, 'tags': list(marks)}


def prompt(values: Values, where: str) -> dict[str, Any]:
  """What is asked; a conversation ends with the user, or with what a tool found."""
  asked = _prompt(values, where)
  _not_empty(asked, f'{where}: prompt')
  if not isinstance(asked, str):
    conversation.check_order(asked, f'{where}: prompt')
    if asked[-1]['role'] not in ('user', 'tool'):
      raise InputError(
        f'{where}: prompt: the last turn is by {asked[-1]["role"]}; end with the user, for the '
        'model is to answer'
      )
  return {'prompt': asked}


CANONICAL: dict[str, Callable[[Values, str], dict[str, Any]]] = {
  'text': plain,
  'labelled': labelled,
  'completion': completion,
  'messages': messages,
  'preference': preference,
  'unpaired': unpaired,
  'pair': pair,
  'triplet': pair,
  'scored_pair': scored_pair,
  'tags': tags,
  'prompt': prompt,
}


def _continued(values: Values, names: tuple[str, ...], where: str) -> tuple[Said, list[Said]]:
  """A prompt and its answers: all texts, or all turns when one of them is."""
  asked = _prompt(values, where)
  answers = [
    _said(values['output' if 'output' in values else name], f'{where}: {name}') for name in names
  ]
  if isinstance(asked, str) and all(isinstance(answer, str) for answer in answers):
    return asked, answers
  turns = _as_turns('user', asked, f'{where}: prompt')
  made: list[Said] = []
  for name, answer in zip(names, answers, strict=True):
    own = _as_turns('assistant', answer, f'{where}: {name}')
    if own[: len(turns)] == turns:  # the whole conversation, prompt included
      own = own[len(turns) :]
    conversation.check_order([*turns, *own], f'{where}: prompt and {name}')
    if not own or own[-1]['role'] != 'assistant':
      last = f'ends with {own[-1]["role"]}' if own else 'adds nothing to the prompt'
      raise InputError(f'{where}: {name} {last}; end it with the assistant')
    made.append(own)
  return turns, made


def _prompt(values: Values, where: str, template: bool = True) -> Said:
  if 'instruction' in values:
    instruction = text(values['instruction'], f'{where}: instruction')
    given = text(values.get('input', ''), f'{where}: input')
    if not template:
      return f'{instruction}\n\n{given}' if given else instruction
    more = ', paired with an input that provides further context' if given else ''
    return _ALPACA.format(more, instruction, f'### Input:\n{given}\n\n' if given else '')
  asked = _said(values['prompt'], f'{where}: prompt')
  if 'context' in values and isinstance(asked, str):
    given = text(values['context'], f'{where}: context')
    asked = f'{asked}\n\n{given}' if given else asked
  if values.get('system'):
    asked = _after_system(values, _as_turns('user', asked, f'{where}: prompt'), where)
  return asked


def _said(value: Any, where: str) -> Said:
  """A text, or turns; a text that is nothing but the JSON of turns, as in tables, is these."""
  value = _unpacked(value, _is_turn) or value  # '[]' is a text
  if not isinstance(value, str | list | tuple):
    raise InputError(
      f'{where} is {short_of(value)}, which is neither a text nor a list of turns; write one'
    )
  return text(value, where) if isinstance(value, str) else conversation.turns_of(value, where)


def _unpacked(value: Any, is_entry: Callable[[Any], bool]) -> Any:
  """The list whose JSON the value is, if its entries are such; else the value as it is."""
  if not isinstance(value, str) or value.lstrip()[:1] != '[':
    return value
  try:
    found = json.loads(value)
  except (ValueError, RecursionError):
    return value
  return found if isinstance(found, list) and all(map(is_entry, found)) else value


def _is_turn(entry: Any) -> bool:
  names = {*entry} if isinstance(entry, Mapping) else set()
  return {'role', 'content'} <= names or {'from', 'value'} <= names


def _as_turns(role: str, said: Said, where: str) -> list[Message]:
  if not isinstance(said, str):
    return said
  _not_empty(said, where)
  return [{'role': role, 'content': said}]


def _after_system(values: Values, turns: list[Message], where: str) -> list[Message]:
  system = text(values.get('system', ''), f'{where}: system')
  if not system.strip() or turns[0]['role'] == 'system':
    return turns
  return [{'role': 'system', 'content': system}, *turns]


def _starts_with_user(value: Any) -> bool:
  first = value[0] if isinstance(value, list | tuple) and value else None
  role = first.get('role', first.get('from')) if isinstance(first, Mapping) else None
  return role in ('system', 'user', 'human')


def _implicit(values: Values, where: str) -> dict[str, Any]:
  chosen, rejected = (_said(values[n], f'{where}: {n}') for n in ('chosen', 'rejected'))
  if isinstance(chosen, str) != isinstance(rejected, str):
    raise InputError(f'{where}: one of chosen and rejected is a text, the other turns; write alike')
  if chosen == rejected:
    raise InputError(f'{where}: chosen and rejected are the same; remove the row')
  shared: int
  if isinstance(chosen, str) and isinstance(rejected, str):
    common = os.path.commonprefix([chosen, rejected])
    spoken = common.rfind('Assistant:')
    # The character that differs may stand inside a word: go back to where the word begins.
    shared = spoken + len('Assistant:') if spoken >= 0 else max(common.rfind(s) for s in ' \n\t')
  else:
    pairs = list(zip(chosen, rejected, strict=False))
    shared = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
  if shared < 1:
    raise InputError(
      f'{where}: chosen and rejected begin with nothing in common that could be the prompt; name '
      "its column, as columns={'prompt': ...}"
    )
  for name, answer in (('chosen', chosen), ('rejected', rejected)):
    _not_empty(answer[shared:], f'{where}: {name}, after what both begin with,')
  return {'prompt': chosen[:shared], 'chosen': chosen[shared:], 'rejected': rejected[shared:]}


def _not_empty(said: Said, where: str) -> None:
  if not (said.strip() if isinstance(said, str) else said):
    raise InputError(f'{where} is empty; give it a text or remove the row')
