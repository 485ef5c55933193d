"""A conversation as the text that a model was trained on, by the model's own template."""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from jaxtune.data.tokenizer import SpecialTokens
from jaxtune.typing import InputError

_MARKS = ('generation_begins_', 'generation_ends_')


def render_chat(
  special: SpecialTokens,
  messages: Sequence[Mapping[str, Any]],
  add_generation_prompt: bool = True,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
  """The messages in the model's chat template, as `transformers` renders them.

  The text has its special tokens already; encode it with `add_special_tokens=False`. A template is
  a program in other people's files: it runs in Jinja's sandbox and sees nothing but its arguments.

  Args:
    special: of the model, with the template.
    messages: of `{'role': 'system' | 'user' | 'assistant', 'content': text}`, the latest last.
    add_generation_prompt: whether an answer of the assistant is to follow.
    tools: JSON schemas of functions, for models that call them.

  Raises:
    InputError: the model has no template, the template is broken, or it refuses these messages.
  """
  return write(special, as_values(messages, tools), add_generation_prompt)


def as_values(
  messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
  """What a template sees of a conversation: plain values, and copies.

  Raises:
    InputError: the messages are no dicts, or they or the tools no JSON values.
  """
  try:
    # What has no value is left out, as by `transformers`.
    said = [{k: v for k, v in message.items() if v is not None} for message in messages]
    return json.loads(json.dumps({'messages': said, 'tools': tools}))
  except (AttributeError, TypeError, ValueError) as error:
    raise InputError(
      f'messages must be dicts of role and content, and they and tools JSON values: {error}'
    ) from None


def write(
  special: SpecialTokens,
  values: Mapping[str, Any],
  add_generation_prompt: bool,
  marks: tuple[str, str] = ('', ''),
) -> str:
  """The text of a conversation given as `as_values`, with `marks` around what it generates.

  Raises:
    InputError: the model has no template, the template is broken, or it refuses these messages.
  """
  if special.chat_template is None:
    raise InputError(
      'the model has no chat template, so it was made to go on with plain text; give it a prompt '
      'without roles, or take the instruct version of the model'
    )
  try:
    return _compiled(special.chat_template).render(
      **special.texts,
      **values,
      documents=None,
      add_generation_prompt=add_generation_prompt,
      **dict(zip(_MARKS, marks, strict=True)),
    )
  except jinja2.TemplateSyntaxError as error:
    raise InputError(
      f'the chat template is broken in line {error.lineno}: {error.message}; take the tokenizer '
      'files from the model again'
    ) from None
  except Exception as error:  # a program of other people, and messages that it may not be made for
    text = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(f'the chat template refuses these messages: {text}') from None


@functools.lru_cache
def generates(template: str) -> bool:
  """Whether the template marks what the assistant said with `{% generation %}`."""
  return re.search(r'{%[-+]?\s*generation\b', template) is not None


class _Generation(ext.Extension):
  """`{% generation %}` encloses what an assistant said; it is written with the marks around it."""

  tags = {'generation'}

  def parse(self, parser: parser.Parser) -> list[nodes.Node]:
    next(parser.stream)
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    begin, end = (nodes.Output([nodes.Name(name, 'load')]) for name in _MARKS)
    return [begin, *body, end]


@functools.lru_cache
def _compiled(template: str) -> jinja2.Template:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _raise
  environment.globals['strftime_now'] = _now
  return environment.from_string(template)


def _to_json(
  x: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """JSON without the escapes of Jinja's own filter, which are for HTML."""
  return json.dumps(
    x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)
