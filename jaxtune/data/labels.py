"""Records of a text and a target: a class, several classes, or a number."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxtune.data.column import column, number, strings
from jaxtune.data.encode import Encoded, special_count, tokenize
from jaxtune.data.row import RecordError, Row, place
from jaxtune.typing import InputError

Record = dict[str, Any]


def label_names(records: Sequence[Record], field: str) -> tuple[str, ...]:
  """The classes in `field`, as strings: by value when all are numbers, else by alphabet.

  Raises:
    InputError: the field is missing or a label is empty, or there is one class only.
  """
  values = enumerate(column(records, field))
  labels = [_name(value, place(records[row], row + 1), field) for row, value in values]
  names = _ordered(set(labels))
  if len(names) == 1:
    raise InputError(
      f'column {field!r} holds one class only, {names[0]!r}, in all {len(labels)} rows; there is '
      'nothing to tell apart: add rows of another class or choose another column'
    )
  return names


def encode_classification(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_length: int,
  text: str = 'text',
  label: str | None = 'label',
  names: Sequence[str] | None = None,
) -> Encoded:
  """Examples `{tokens int32 [n], label int32}`, the label being its place in `names`.

  Without `names` they are the labels of these very rows, `label_names(records, label)`. Texts
  longer than `max_length` tokens, special tokens included, are cut at the right and counted. Rows
  without text are counted and left out. With `label=None` (prediction) no label is read and every
  row is kept, so that examples and rows stay side by side.

  Raises:
    InputError: a column is missing, a label is not in `names`, all texts are empty, or max_length
      leaves no room beside the special tokens.
  """
  if names is None:
    names = label_names(records, label) if label else ()
  names = tuple(names)
  targets = None
  if label is not None:
    places = {name: i for i, name in enumerate(names)}
    targets = []
    for row, value in enumerate(column(records, label)):
      targets.append(np.int32(places[_known(records, row, text, label, value, names)]))
  return _encode(records, tokenizer, text, targets, max_length)._replace(names=names)


def class_names(records: Sequence[Record], field: str) -> tuple[str, ...]:
  """The classes in the lists in `field`, ordered as by `label_names`.

  Raises:
    InputError: the field is missing or holds no lists, a class is empty, or there is none.
  """
  lists = _lists(records, field)
  if not any(lists):
    raise InputError(f'column {field!r} names no class in any of {len(lists)} rows')
  return _ordered(
    {
      _name(label, place(records[row], row + 1), field)
      for row, labels in enumerate(lists)
      for label in labels
    }
  )


def encode_multi_label(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_length: int,
  text: str = 'text',
  label: str | None = 'label',
  names: Sequence[str] | None = None,
) -> Encoded:
  """Examples `{tokens int32 [n], label float32 [C]}`: 1 for each class that the row lists, else 0.

  A row may list none. Without `names` they are the classes of these very rows, `class_names`;
  otherwise as `encode_classification`.

  Raises:
    InputError: a column is missing, a label is no list or not in `names`, all texts are empty, or
      max_length leaves no room beside the special tokens.
  """
  if names is None:
    names = class_names(records, label) if label else ()
  names = tuple(names)
  targets: list[np.ndarray] | None = None
  if label is not None:
    targets = []
    for row, values in enumerate(_lists(records, label)):
      own = {_known(records, row, text, label, value, names) for value in values}
      targets.append(np.array([name in own for name in names], np.float32))
  return _encode(records, tokenizer, text, targets, max_length)._replace(names=names)


def encode_regression(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_length: int,
  text: str = 'text',
  label: str | None = 'label',
) -> Encoded:
  """Examples `{tokens int32 [n], label float32}`; otherwise as `encode_classification`.

  Raises:
    InputError: a column is missing, a target is not a finite number, all texts are empty, or
      max_length leaves no room beside the special tokens.
  """
  targets = None
  if label is not None:
    targets = []
    for row, value in enumerate(column(records, label)):
      target = number(value)
      if math.isnan(target):
        raise RecordError(
          f'{_place(records, row, text)}: column {label!r} is {value!r:.40}, which is not a finite '
          'number; correct or remove the row'
        )
      targets.append(np.float32(target))
  return _encode(records, tokenizer, text, targets, max_length)


def _encode(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  text: str,
  targets: Sequence[Any] | None,
  max_length: int,
) -> Encoded:
  texts = strings(records, text)
  tokens, truncated = tokenize(tokenizer, texts, max_length)
  special = special_count(tokenizer)
  full = [bool(t.strip()) and len(ids) > special for t, ids in zip(texts, tokens, strict=True)]
  if not any(full):
    raise InputError(f'column {text!r} is empty in all {len(texts)} rows; choose a column of text')
  examples = []
  for row, ids in enumerate(tokens):
    if targets is None and not ids:
      where = place(records[row], row + 1)
      raise RecordError(f'{where}: column {text!r} is empty; give it a text or remove the row')
    if targets is None:
      examples.append({'tokens': np.array(ids, np.int32)})
    elif full[row]:
      examples.append({'tokens': np.array(ids, np.int32), 'label': np.asarray(targets[row])})
  return Encoded(examples, truncated=truncated, empty=full.count(False))


def _known(
  records: Sequence[Record], row: int, text: str, field: str, value: Any, names: tuple[str, ...]
) -> str:
  """The name of a class.

  Raises:
    InputError: it is empty, or none of the names.
  """
  name = _name(value, _place(records, row, text), field)
  if name not in names:
    raise RecordError(
      f'{_place(records, row, text)}: column {field!r} is {name!r}, which is none of the known '
      f'classes ({_listed(names)}); correct the row or train with it'
    )
  return name


def _lists(records: Sequence[Record], field: str) -> list[list[Any]]:
  values = column(records, field)
  for row, value in enumerate(values):
    if not isinstance(value, list | tuple):
      raise RecordError(
        f'{place(records[row], row + 1)}: column {field!r} is {str(value)[:40]!r}, which is no '
        'list of classes; write ["one", "two"], or choose the task classification'
      )
  return [list(value) for value in values]


def _ordered(names: set[str]) -> tuple[str, ...]:
  numbers = {name: number(name) for name in names}
  if any(map(math.isnan, numbers.values())):
    return tuple(sorted(names))
  return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def _place(records: Sequence[Record], row: int, text: str) -> str:
  record = records[row]
  # Else rows may be counted after a shuffle, and the start of its text finds a row in its file.
  return (
    record.place if isinstance(record, Row) else f'row {row + 1} ({str(record.get(text))[:40]!r})'
  )


def _name(value: Any, place: str, field: str) -> str:
  name = '' if value is None else str(value).strip()
  if not name:
    raise RecordError(f'{place}: column {field!r} is empty; give the row a label or remove it')
  return name


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
