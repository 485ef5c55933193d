"""Records of words that each have a tag."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxtune.data.column import column
from jaxtune.data.encode import Encoded, Example
from jaxtune.data.encodings import encodings, spaced
from jaxtune.data.row import RecordError, check_characters, place
from jaxtune.typing import InputError

Record = dict[str, Any]

IGNORED = -100  # the tag of a token that has none, as everywhere in the field


def tag_names(records: Sequence[Record], field: str = 'tags') -> tuple[str, ...]:
  """The tags in `field`, as strings: by value when all are numbers, else by alphabet.

  Raises:
    InputError: the field is missing or holds something else than lists of tags, or one tag only.
  """
  rows = _lists(records, field)
  found = {tag for tags in rows for tag in tags}
  if all(isinstance(tag, int) for tag in found):
    names = tuple(str(tag) for tag in sorted(found))
  else:
    names = tuple(sorted({str(tag) for tag in found}))
  if len(names) < 2:
    raise InputError(
      f'column {field!r} holds {len(names)} different tags in {len(rows)} rows; there is nothing '
      'to tell apart: choose another column'
    )
  return names


def encode_tags(
  records: Sequence[Record],
  tokenizer: tokenizers.Tokenizer,
  *,
  max_length: int,
  names: Sequence[str] | None = None,
  tokens: str = 'tokens',
  tags: str | None = 'tags',
  all_subwords: bool = False,
) -> Encoded:
  """Examples `{tokens int32 [n], tags int32 [n]}`, a tag being its place in `names`.

  The first token of a word has the word's tag; its other tokens, and special tokens, have -100,
  which is not learned. Devlin et al. 2018, arXiv:1810.04805, section 5.3. What exceeds `max_length`
  is cut at the right and counted; rows without words, and rows of which no tag is left, are counted
  and left out. With `tags=None` (prediction) every tag is -100 but that of a word's first token,
  which is 0, and every row is kept.

  Args:
    records: rows with words and as many tags.
    tokenizer: what cuts words into tokens.
    max_length: tokens of an example, special ones included.
    names: of the tags, by default those of these very rows (`tag_names`). A tag that is a number
      is then a place in them, as in data sets that name their classes apart.
    tokens: the column of words.
    tags: the column of tags, or None.
    all_subwords: whether a word's later tokens have its tag, too: `I-x` for `B-x` where there is
      one, else each would begin another entity.

  Raises:
    InputError: a column is missing or holds no lists, words and tags differ in number, a tag is not
      in `names`, no row has words, or max_length leaves no room beside the special tokens.
  """
  rows = _lists(records, tokens, strings=True)
  numbers, names = _numbers(records, rows, tags, names, tokens)
  inside = {names.index(n): names.index(f'I-{n[2:]}') for n in names
            if n.startswith('B-') and f'I-{n[2:]}' in names}  # fmt: skip
  words = [spaced(tokenizer, row) for row in rows]
  if not any(words):
    raise InputError(f'column {tokens!r} is empty in all {len(rows)} rows; choose one of words')
  examples: list[Example] = []
  truncated = empty = unlearned = 0
  found = encodings(tokenizer, words, max_length)
  for encoding, own in zip(found, numbers, strict=True):
    truncated += bool(encoding.overflowing)
    aligned = np.full(len(encoding.ids), IGNORED, np.int32)
    before = None
    for n, word in enumerate(encoding.word_ids):
      if word is not None and word != before:
        aligned[n] = own[word]
      elif word is not None and all_subwords:
        aligned[n] = inside.get(own[word], own[word])
      before = word
    if tags is not None and not own:
      empty += 1
    elif tags is not None and not (aligned != IGNORED).any():
      unlearned += 1
    else:
      examples.append({'tokens': np.array(encoding.ids, np.int32), 'tags': aligned})
  if not examples:
    raise InputError(f'no tag is left to learn from: all {unlearned} rows have words of no token')
  return Encoded(examples, truncated, empty, unlearned, names)


def _numbers(
  records: Sequence[Record],
  rows: Sequence[list[str]],
  field: str | None,
  names: Sequence[str] | None,
  tokens: str,
) -> tuple[list[list[int]], tuple[str, ...]]:
  """The tags of each row as places in the names, and those."""
  if field is None:
    return [[0] * len(row) for row in rows], tuple(names or ())
  given = _lists(records, field)
  places = {name: number for number, name in enumerate(names or tag_names(records, field))}
  numbers = []
  for row, (words, tags) in enumerate(zip(rows, given, strict=True)):
    where = place(records[row], row + 1)
    if len(words) != len(tags):
      raise RecordError(
        f'{where}: {len(words)} {tokens} but {len(tags)} {field}; every word needs one tag'
      )
    own = []
    for tag in tags:
      is_place = names is not None and isinstance(tag, int) and 0 <= tag < len(places)
      number = tag if is_place else places.get(str(tag))
      if number is None:
        raise RecordError(
          f'{where}: the tag {tag!r} is none of {", ".join(list(places)[:20])}; correct the row '
          'or name all tags'
        )
      own.append(number)
    numbers.append(own)
  return numbers, tuple(places)


def _lists(records: Sequence[Record], field: str, strings: bool = False) -> list[list[Any]]:
  """The values of a field, all of them lists of strings, or of strings and numbers."""
  values = column(records, field)
  kinds, wanted = (str, 'words') if strings else ((str, int), 'tags')
  for row, value in enumerate(values):
    where = place(records[row], row + 1)
    if not isinstance(value, list | tuple):
      raise RecordError(
        f'{where}: {field!r} is {str(value)[:40]!r}, which is no list; give one of {wanted}'
      )
    for entry in value:
      if not isinstance(entry, kinds) or isinstance(entry, bool):  # type: ignore[arg-type]
        raise RecordError(
          f'{where}: {field!r} holds {str(entry)[:40]!r} ({type(entry).__name__}); give a list '
          f'of {wanted}'
        )
      if entry == '':
        raise RecordError(f'{where}: {field!r} holds an empty one; correct or remove the row')
      if isinstance(entry, str):
        check_characters(entry, f'{where}: {field!r}')
  return [list(value) for value in values]
