"""Records in the terminal: coloured tokens, or marked runs of them where there is no colour."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import rich.box
import rich.columns
import rich.console
import rich.table
from rich.text import Text

from experiments.inspection.records import BORDER, CUT, LEARNED, PADDING, SEEN, Token
from experiments.inspection.sizes import AtLength, Sizes, histogram, quantiles

# Neighbouring tokens of a kind differ, so that one sees where each ends.
STYLES = {
  LEARNED: ('bold black on green3', 'bold black on pale_green3'),
  SEEN: ('default', 'default on grey27'),
  CUT: ('strike red', 'strike bright_red'),
  PADDING: ('dim italic', 'dim italic'),
  BORDER: ('bold cyan', 'bold cyan'),
}
MEANING = {
  LEARNED: 'the loss has it as a target',
  SEEN: 'context only',
  CUT: 'behind max_length',
  PADDING: 'nothing sees it',
  BORDER: 'nothing sees across it',
}
_WIDTH = 2000  # characters of one text; the middle of a longer one is left out


def legend(kinds: Iterable[str] = MEANING) -> Text:
  """What the colours say."""
  line = Text()
  for kind in kinds:
    line.append(f' {kind} ', STYLES[kind][0]).append(f' {MEANING[kind]}  ')
  return line


def coloured(tokens: Sequence[Token], colour: bool) -> Text:
  """Tokens one after the other; without colours a line a run, with its kind ahead of it."""
  tokens = shortened(tokens)
  text = Text()
  if not colour:
    for kind, run in itertools.groupby(tokens, lambda token: token.kind):
      shown = ''.join(token.text for token in run)
      text.append(
        f'{shown}\n'
        if kind == BORDER
        else f'{kind:8} {shown if kind == PADDING else repr(shown)}\n'
      )
    text.rstrip()
    return text
  for place, token in enumerate(tokens):
    if token.kind == BORDER:
      text.append(('\n' if place else '') + f'── {token.text} ──\n', STYLES[BORDER][0])
    elif token.kind == PADDING:
      text.append(f'\n{token.text}', STYLES[PADDING][0])
    else:
      text.append(visible(token.text), STYLES[token.kind][place % 2])
  return text


def visible(text: str) -> str:
  """Line breaks can be seen and break the line; what would move the cursor cannot."""
  shown = text.replace('\n', '↵\n').replace('\t', '→')
  return ''.join(c if c.isprintable() or c == '\n' else '·' for c in shown)


def shortened(tokens: Sequence[Token]) -> list[Token]:
  """The beginning and the end of a long text, for the end is where an answer is."""
  total = sum(len(token.text) for token in tokens)
  if total <= _WIDTH:
    return list(tokens)
  head, tail, count = [], [], 0
  for token in tokens:
    count += len(token.text)
    if count <= _WIDTH // 2:
      head.append(token)
    elif total - count < _WIDTH // 2:
      tail.append(token)
  left = len(tokens) - len(head) - len(tail)
  return [*head, Token(PADDING, f'... {left:,} tokens ...'), *tail]


def record(
  console: rich.console.Console, title: str, parts: Sequence[tuple[str, Sequence[Token]]]
) -> None:
  """One record, its parts beside each other."""
  colour = console.color_system is not None
  console.print(Text(f'\n{title}', 'bold'), soft_wrap=True)
  texts = [coloured(tokens, colour) for _, tokens in parts]
  if len(parts) == 1:
    console.print(texts[0], soft_wrap=not colour)
    return
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD if colour else rich.box.ASCII2, expand=True)
  for name, _ in parts:
    table.add_column(name, ratio=1, overflow='fold')
  table.add_row(*texts)
  console.print(table)


def lengths(console: rich.console.Console, sizes: Sizes, unit: str) -> None:
  """The lengths: a line of quantiles, and a histogram."""
  found = quantiles(sizes.lengths)
  console.print(
    f'\n{len(sizes.lengths):,} {unit}, {int(sizes.lengths.sum()):,} tokens, '
    f'{100 * sizes.share:.1f}% of them learned',
    soft_wrap=True,
  )
  console.print('tokens: ' + ', '.join(f'{k} {v:,}' for k, v in found.items()), soft_wrap=True)
  counts, edges = histogram(sizes.lengths, 12)
  for count, low, high in zip(counts, edges, edges[1:], strict=False):
    bar = '█' * max(int(40 * count / counts.max()), int(count > 0))
    console.print(f'{int(low):>8,} to {int(high):<8,} {count:>8,} {bar}', soft_wrap=True)


def at_lengths(
  console: rich.console.Console, at: Sequence[AtLength], total: int, max_length: int | None
) -> None:
  """What each length cuts and fills."""
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  for name in columns(at):
    table.add_column(name, justify='right')
  for one in at:
    style = 'bold' if one.length == max_length else ''
    table.add_row(*cells(one, total), style=style)
  console.print(table)


def columns(at: Sequence[AtLength]) -> list[str]:
  """The names of the columns of a table of lengths."""
  packed = [f'packed, {name.replace("_", " ")}' for name in at[0].packed]
  return ['max_length', 'cut', 'answers without end', 'answers lost', 'fill, padded', *packed]


def cells(one: AtLength, total: int) -> list[str]:
  """One row of it."""
  counts: list[Any] = [one.cut, one.unfinished, one.lost]
  shares = [one.padded, *one.packed.values()]
  return [
    f'{one.length:,}',
    *(f'{n:,} ({100 * n / max(1, total):.1f}%)' if n else '0' for n in counts),
    *(f'{100 * share:.1f}%' for share in shares),
  ]
