"""A batch as text: what the loss learns, what it only sees, and what is padding."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

_WIDTH = 300  # characters of one run of tokens; the middle of a longer one is left out


def preview(
  batch: Mapping[str, Any],
  tokenizer: tokenizers.Tokenizer,
  rows: int = 2,
  names: Sequence[str] | None = None,
) -> str:
  """The first rows of a batch as plain text, one line a run of tokens of the same kind.

  A run is `learned` (the loss has these tokens as targets), `seen` (they are context only) or
  `padding` (nothing sees them); where several documents share a row, each begins a line `document`.
  Parts of a row, as `chosen` and `rejected`, follow each other. A line `label` shows a class by its
  name when `names` is given, or the number.

  Args:
    batch: as `batches` or `eval_batches` gives; NumPy or JAX arrays.
    tokenizer: what made the tokens.
    rows: how many rows to show.
    names: the classes in order, as `Encoded.names`.
  """
  weight = np.asarray(batch['weight'])[:rows]
  parts = [('', batch)] if 'tokens' in batch else []
  parts += [(f', {name}', part) for name, part in batch.items() if isinstance(part, Mapping)]
  lines: list[str] = []
  for index, real in enumerate(weight):
    for name, part in parts:
      row = {k: np.asarray(v[index]) for k, v in part.items() if not isinstance(v, Mapping)}
      lines += _row(f'row {index}{name}', row, bool(real), tokenizer, names)
    if 'label' in batch and 'tokens' not in batch:
      lines.append(f'  label    {_label(np.asarray(batch["label"][index]), names)}')
  return '\n'.join(lines)


def _row(
  title: str,
  row: Mapping[str, np.ndarray],
  real: bool,
  tokenizer: tokenizers.Tokenizer,
  names: Sequence[str] | None,
) -> list[str]:
  mask = row['mask']
  learned = row.get('supervised', np.zeros_like(mask)) & mask
  if 'tags' in row:
    learned = (row['tags'] >= 0) & mask
  segments = row.get('segments', mask.astype(np.int32))
  kinds = np.where(learned, 'learned', np.where(mask, 'seen', 'padding'))
  counts = ', '.join(f'{np.sum(kinds == kind)} {kind}' for kind in ('learned', 'seen', 'padding'))
  filler = '' if real else '; weight 0: it only fills the batch'
  lines = [f'{title}: {len(mask)} tokens ({counts}){filler}']
  if 'label' in row:
    lines.append(f'  label    {_label(row["label"], names)}')
  document = 0
  for (segment, kind), run in itertools.groupby(
    range(len(mask)), lambda i: (int(segments[i]), str(kinds[i]))
  ):
    tokens = row['tokens'][list(run)]
    if 'segments' in row and segment not in (0, document):
      document = segment
      lines.append(f'  document {document}')
    shown = f'{len(tokens)} tokens' if kind == 'padding' else _text(tokens, tokenizer)
    lines.append(f'  {kind:8} {shown}')
  return lines


def _label(label: np.ndarray, names: Sequence[str] | None) -> str:
  if names and label.ndim:  # one of several classes each
    return ', '.join(name for name, has in zip(names, label, strict=True) if has > 0) or 'none'
  return names[int(label)] if names else str(label)


def _text(tokens: np.ndarray, tokenizer: tokenizers.Tokenizer) -> str:
  text = repr(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))
  return text if len(text) <= _WIDTH else f'{text[: _WIDTH // 2]} ... {text[-_WIDTH // 2 :]}'
