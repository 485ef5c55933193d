"""Records to prompts that ask a language model for a label, with answered examples ahead of them.

Brown et al. 2020, arXiv:2005.14165, section 2.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxtune.data.column import column, strings
from jaxtune.data.encode import Example
from jaxtune.data.row import place
from jaxtune.typing import InputError

Record = dict[str, Any]
Message = dict[str, str]


class Prompts(NamedTuple):
  """Token ids of what a model is asked.

  Attributes:
    prefix: what all prompts begin with; a model reads it once.
    rows: `{tokens int32 [n]}` for each row: the rest of its prompt, at least one token.
    words: the tokens of each label's word.
    truncated: how many texts lost tokens to max_length.
  """

  prefix: np.ndarray
  rows: list[Example]
  words: list[list[int]]
  truncated: int


def label_places(
  records: Sequence[Record], field: str, names: Sequence[str], source: str = 'the data'
) -> np.ndarray:
  """The place in `names` of each record's label, int64 `[N]`.

  Raises:
    InputError: the field is missing, or a label is none of `names`.
  """
  places = {name: i for i, name in enumerate(names)}
  values = [str(value).strip() for value in column(records, field, source)]
  for number, (record, value) in enumerate(zip(records, values, strict=True), 1):
    if value not in places:
      raise InputError(
        f'{place(record, number, source)}: column {field!r} is {value!r}, which is none of the '
        f'labels {", ".join(names)}; correct the row, or give the label a word'
      )
  return np.array([places[value] for value in values])


def draw_examples(
  labels: Sequence[int] | np.ndarray, names: Sequence[str], shots: int, seed: int
) -> list[int]:
  """Places of `shots` examples, as many of each label as of any other or one more, in random order.

  Args:
    labels: the place in `names` of each candidate's label.
    names: of the labels.
    shots: how many examples in all.
    seed: the same seed gives the same examples on every machine and release.

  Raises:
    InputError: there are fewer candidates of a label than this takes.
  """
  draw = random.Random(seed)  # random() itself is promised to stay the same in later Pythons
  order = sorted(range(len(labels)), key=lambda _: draw.random())
  turns = sorted(range(len(names)), key=lambda _: draw.random())  # who has one more
  chosen: list[int] = []
  for turn, label in enumerate(turns):
    wanted = shots // len(names) + (turn < shots % len(names))
    own = [i for i in order if labels[i] == label][:wanted]
    if len(own) < wanted:
      raise InputError(
        f'{shots} examples take {wanted} rows labelled {names[label]!r}, but there are {len(own)} '
        'to draw from; ask for fewer shots or hold out fewer rows'
      )
    chosen += own
  return sorted(chosen, key=lambda _: draw.random())


def prompts(
  records: Sequence[Record],
  examples: Sequence[tuple[Record, str]],
  tokenizer: tokenizers.Tokenizer,
  words: Mapping[str, str],
  *,
  template: str,
  instruction: str = '',
  text: str = 'text',
  max_length: int | None = None,
  chat: Callable[[list[Message]], str] | None = None,
  positions: int | None = None,
) -> Prompts:
  """The prompts of `records`: the instruction, each example with its word, and the row itself.

  With `chat` an example is a question of the user and an answer of the assistant, and the word is
  what the assistant says next. Without it they are paragraphs, and a word stands behind a space
  unless the template ends in white space.

  Args:
    records: the rows to ask about.
    examples: rows and their labels, in the order in which they are shown.
    tokenizer: of the model.
    words: label -> the word that stands for it.
    template: of a question, over the columns of a row: 'Review: {text}'.
    instruction: said once, ahead of everything.
    text: the column that `max_length` cuts.
    max_length: tokens of it that are kept; None for all.
    chat: turns messages `{role, content}` into the text that an assistant goes on with.
    positions: tokens that the model can read, for prompt and word together; None for any number.

  Raises:
    InputError: an empty text, a column that the template asks for and a row lacks, words of the
      same tokens, or a prompt that the model cannot read whole.
  """
  kept, truncated = _cut(records, text, tokenizer, max_length)
  shown = _cut([row for row, _ in examples], text, tokenizer, max_length)[0] if examples else []
  gap = '' if chat or template[-1:].isspace() else ' '
  said = [
    (fill(template, row), gap + words[label])
    for row, (_, label) in zip(shown, examples, strict=True)
  ]
  texts = [_ask(instruction, said, fill(template, row), chat) for row in kept]
  # A chat template writes the special tokens itself.
  ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=chat is None)]
  answers = word_tokens(tokenizer, {label: gap + word for label, word in words.items()})
  longest = max(map(len, answers))
  for number, (row, tokens) in enumerate(zip(records, ids, strict=True), 1):
    if positions is not None and len(tokens) + longest > positions:
      raise InputError(
        f'{place(row, number)} ({str(row[text])[:40]!r}): its prompt and a word are '
        f'{len(tokens) + longest:,} tokens, but the model has {positions:,} positions; show fewer '
        'examples or cut the texts at fewer tokens'
      )
  same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
  shared = [column[0] for column in same][: min(map(len, ids)) - 1]
  rows = [{'tokens': np.array(tokens[len(shared) :], np.int32)} for tokens in ids]
  return Prompts(np.array(shared, np.int32), rows, answers, truncated)


def word_tokens(tokenizer: tokenizers.Tokenizer, words: Mapping[str, str]) -> list[list[int]]:
  """The tokens of each label's word.

  Raises:
    InputError: a word has none, or two words have the same.
  """
  found: dict[tuple[int, ...], str] = {}
  for label, word in words.items():
    tokens = tuple(tokenizer.encode(word, add_special_tokens=False).ids)
    if not tokens:
      raise InputError(
        f'the word of label {label!r} is {word!r}, which has no tokens; give another'
      )
    if tokens in found:
      raise InputError(
        f'the words of labels {found[tokens]!r} and {label!r}, {words[found[tokens]]!r} and '
        f'{word!r}, are the same tokens {list(tokens)}; give one of them another word'
      )
    found[tokens] = label
  return [list(tokens) for tokens in found]


def fill(template: str, row: Record) -> str:
  """The template with the columns of a row in place of `{column}`.

  Raises:
    InputError: a column that the row lacks, or braces that make no template.
  """
  try:
    return template.format_map(row)
  except KeyError as error:
    raise InputError(
      f'the prompt asks for the column {error.args[0]!r}; the columns are {", ".join(row)}'
    ) from None
  except (ValueError, IndexError) as error:
    raise InputError(f'the prompt is not a template like "{{column}}": {error}') from None


def _ask(
  instruction: str,
  said: Sequence[tuple[str, str]],
  question: str,
  chat: Callable[[list[Message]], str] | None,
) -> str:
  turns = [turn for pair in said for turn in pair] + [question]
  if chat is None:
    shown = [asked + answered for asked, answered in said]
    return '\n\n'.join([*([instruction] if instruction else []), *shown, question])
  if instruction:
    turns[0] = f'{instruction}\n\n{turns[0]}'
  roles = ('user', 'assistant')
  return chat([{'role': roles[i % 2], 'content': turn} for i, turn in enumerate(turns)])


def _cut(
  records: Sequence[Record], text: str, tokenizer: tokenizers.Tokenizer, max_length: int | None
) -> tuple[list[Record], int]:
  """The records with texts of at most `max_length` tokens, and how many were longer."""
  texts = strings(records, text)
  for number, (record, value) in enumerate(zip(records, texts, strict=True), 1):
    if not value.strip():
      where = place(record, number)
      raise InputError(f'{where}: column {text!r} is empty; give it a text or remove the row')
  if max_length is None:
    return list(records), 0
  kept, truncated = [], 0
  encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
  for row, value, encoding in zip(records, texts, encodings, strict=True):
    if len(encoding.ids) > max_length:
      truncated += 1
      row = {**row, text: value[: encoding.offsets[max_length - 1][1]]}
    kept.append(row)
  return kept, truncated
