"""Records of a text and a target: a class or a number."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxtune.data.column import column, strings
from jaxtune.data.encode import Encoded, special_count, tokenize
from jaxtune.typing import InputError

Record = dict[str, Any]


def label_names(records: Sequence[Record], field: str) -> tuple[str, ...]:
  """The classes in `field`, as strings: by value when all are numbers, else by alphabet.

  Raises:
    InputError: the field is missing or a label is empty, or there is one class only.
  """
  values = column(records, field)
  labels = [_name(value, f'row {row}', field) for row, value in enumerate(values, 1)]
  names = sorted(set(labels))
  numbers = [_number(name) for name in names]
  if not any(map(math.isnan, numbers)):
    names = sorted(names, key=lambda name: (_number(name), name))
  if len(names) == 1:
    raise InputError(
      f'column {field!r} holds one class only, {names[0]!r}, in all {len(labels)} rows; there is '
      'nothing to tell apart: add rows of another class or choose another column'
    )
  return tuple(names)


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
    number = {name: i for i, name in enumerate(names)}
    targets = []
    for row, value in enumerate(column(records, label)):
      name = _name(value, _place(records, row, text), label)
      if name not in number:
        raise InputError(
          f'{_place(records, row, text)}: column {label!r} is {name!r}, which is none of the known '
          f'classes ({_listed(names)}); correct the row or train with it'
        )
      targets.append(np.int32(number[name]))
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
      if not abs(_number(value)) <= float(np.finfo(np.float32).max):  # NaN is not
        raise InputError(
          f'{_place(records, row, text)}: column {label!r} is {value!r}, which is not a finite '
          'number; correct or remove the row'
        )
      targets.append(np.float32(value))
  return _encode(records, tokenizer, text, targets, max_length)


def _encode(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  text: str,
  targets: Sequence[np.generic] | None,
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
      raise InputError(f'row {row + 1}: column {text!r} is empty; give it a text or remove the row')
    if targets is None:
      examples.append({'tokens': np.array(ids, np.int32)})
    elif full[row]:
      examples.append({'tokens': np.array(ids, np.int32), 'label': np.asarray(targets[row])})
  return Encoded(examples, truncated=truncated, empty=full.count(False))


def _place(records: Sequence[Record], row: int, text: str) -> str:
  # Rows are counted after a shuffle: the start of its text is what finds a row in its file.
  return f'row {row + 1} ({str(records[row].get(text))[:40]!r})'


def _name(value: Any, place: str, field: str) -> str:
  name = '' if value is None else str(value).strip()
  if not name:
    raise InputError(f'{place}: column {field!r} is empty; give the row a label or remove it')
  return name


def _number(value: Any) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
