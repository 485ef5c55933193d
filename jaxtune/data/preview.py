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
  A line `label` shows a class by its name when `names` is given, or the number.

  Args:
    batch: as `batches` or `eval_batches` gives; NumPy or JAX arrays.
    tokenizer: what made the tokens.
    rows: how many rows to show.
    names: the classes in order, as `Encoded.names`.
  """
  host = {key: np.asarray(value)[:rows] for key, value in batch.items()}
  return '\n'.join(
    line
    for index in range(len(host['tokens']))
    for line in _row(index, {k: v[index] for k, v in host.items()}, tokenizer, names)
  )


def _row(
  index: int,
  row: Mapping[str, np.ndarray],
  tokenizer: tokenizers.Tokenizer,
  names: Sequence[str] | None,
) -> list[str]:
  mask = row['mask']
  learned = row.get('supervised', np.zeros_like(mask)) & mask
  segments = row.get('segments', mask.astype(np.int32))
  kinds = np.where(learned, 'learned', np.where(mask, 'seen', 'padding'))
  counts = ', '.join(f'{np.sum(kinds == kind)} {kind}' for kind in ('learned', 'seen', 'padding'))
  filler = '' if row['weight'] else '; weight 0: it only fills the batch'
  lines = [f'row {index}: {len(mask)} tokens ({counts}){filler}']
  if 'label' in row:
    label = row['label']
    lines.append(f'  label    {names[int(label)] if names else label}')
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


def _text(tokens: np.ndarray, tokenizer: tokenizers.Tokenizer) -> str:
  text = repr(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))
  return text if len(text) <= _WIDTH else f'{text[: _WIDTH // 2]} ... {text[-_WIDTH // 2 :]}'
