"""How long records are, what is learned of them, and what a length cuts, pads and packs."""

from typing import NamedTuple

import numpy as np

from experiments.inspection.records import RENDERED, Inspected
from jaxtune.data import pack
from jaxtune.typing import InputError


class Sizes(NamedTuple):
  """Of all records; a record of several parts counts each of them.

  Attributes:
    lengths: tokens of each part, int [N].
    learned: learned tokens of each part, int [N].
    ends: one more than the place of the last learned token, 0 for none, int [N].
  """

  lengths: np.ndarray
  learned: np.ndarray
  ends: np.ndarray

  @property
  def share(self) -> float:
    """Of learned tokens, in [0, 1]."""
    return float(self.learned.sum() / max(1, self.lengths.sum()))


class AtLength(NamedTuple):
  """What becomes of the records at a `max_length`; shares in [0, 1].

  Attributes:
    length: that one.
    cut: parts that are longer.
    unfinished: parts that lose the end of what is learned.
    lost: parts that lose all of it.
    padded: share of real tokens with a part a row.
    packed: the same by strategy of packing; empty where parts cannot share a row.
  """

  length: int
  cut: int
  unfinished: int
  lost: int
  padded: float
  packed: dict[str, float]


def measure(found: Inspected) -> Sizes:
  """The sizes of every part of every record."""
  parts = [part for row in found.parts for part in row]
  ends = [int(np.flatnonzero(p.learned)[-1]) + 1 if p.learned.any() else 0 for p in parts]
  lengths = [len(part.tokens) for part in parts]
  learned = [int(part.learned.sum()) for part in parts]
  return Sizes(np.array(lengths), np.array(learned), np.array(ends))


def at_lengths(found: Inspected, sizes: Sizes, max_length: int | None) -> list[AtLength]:
  """At powers of two up to one that cuts nothing, and at `max_length`."""
  longest = int(sizes.lengths.max())
  top = max(6, (longest - 1).bit_length())
  lengths = {2**k for k in range(max(5, top - 5), top + 1)} | (
    {max_length} if max_length else set()
  )
  return [at_length(found, sizes, length) for length in sorted(lengths)]


def at_length(found: Inspected, sizes: Sizes, length: int) -> AtLength:
  """At one length.

  Raises:
    InputError: it is under 2.
  """
  if length < 2:
    raise InputError(f'--max_length is {length}; it must be at least 2')
  kept = np.minimum(sizes.lengths, length)
  cut = sizes.lengths > length
  if found.kind == 'text':  # a document goes on in the next row
    kept = np.array([n for size in sizes.lengths for n in blocks(int(size), length)])
    cut = np.zeros(0, np.bool_)
  lost = (sizes.learned > 0) & (first(found) >= length)
  kept = kept[kept > 0]
  packed = {}
  if found.kind in ('text', 'completion', 'messages') and len(kept):
    for name in pack.STRATEGIES:
      rows = pack.count_rows(kept.tolist(), name, length)
      packed[name] = float(kept.sum() / (rows * length))
  return AtLength(
    length,
    int(cut.sum()),
    int((sizes.ends > length).sum()) - int(lost.sum()) if found.kind != 'text' else 0,
    int(lost.sum()) if found.kind != 'text' else 0,
    float(kept.sum() / max(1, len(kept) * length)),
    packed,
  )


def first(found: Inspected) -> np.ndarray:
  """The place of the first learned token of each part; 0 where there is none."""
  return np.array(
    [int(p.learned.argmax()) if len(p.learned) else 0 for r in found.parts for p in r]
  )


def blocks(size: int, length: int) -> list[int]:
  """The tokens in each of the rows that a document takes."""
  return [min(length, size - start) for start in range(0, max(1, size - 1), length - 1)]


def quantiles(values: np.ndarray) -> dict[str, int]:
  """The values that a share of the records stays under."""
  names = {'shortest': 0.0, 'median': 0.5, '90%': 0.9, '99%': 0.99, 'longest': 1.0}
  found = np.quantile(values, list(names.values()), method='higher')
  return dict(zip(names, map(int, found), strict=True))


def histogram(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
  """Counts, and the edges of their bins, of equal width in the logarithm where lengths differ."""
  low, high = max(1, int(values.min())), int(values.max()) + 1
  bins = min(bins, max(1, high - low))
  edges = np.geomspace(low, high, bins + 1) if high > 20 * low else np.linspace(low, high, bins + 1)
  counts, edges = np.histogram(np.maximum(values, low), edges)
  return counts, edges


def sentences(found: Inspected, sizes: Sizes, max_length: int | None) -> list[str]:
  """What a user must know."""
  if found.kind not in RENDERED:
    return []
  lines = []
  of = f'{len(sizes.lengths):,}'
  if none := int((sizes.learned == 0).sum()):
    lines.append(f'{none:,} of {of} have nothing to learn')
  at = at_length(found, sizes, max_length) if max_length else None
  if at and at.cut:
    lines.append(
      f'at {at.length:,} tokens {at.cut:,} of {of} are cut: {at.unfinished:,} answers lose their '
      f'end, so the model is not taught to stop there, and {at.lost:,} are lost whole'
    )
  return lines
