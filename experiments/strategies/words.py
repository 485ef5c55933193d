"""What the tables and sentences of a comparison of strategies say."""

from collections.abc import Mapping, Sequence

from experiments.strategies.contest import Entry
from experiments.strategies.verdict import Difference, accuracy
from jaxtune import report

COLUMNS = ('strategy', 'accuracy', 'interval', 'trained', 'rate', 'seconds', 'step memory')


def rows(entries: Mapping[str, Entry], confidence: float) -> list[tuple[str, ...]]:
  """One row a strategy, the best first."""
  shown: list[tuple[str, ...]] = []
  for label, entry in ranked(entries).items():
    found = accuracy(entry.correct, confidence)
    shown.append(
      (
        label,
        f'{found.value:.3f}',
        f'{found.low:.3f} to {found.high:.3f}',
        f'{entry.cost.trained:,}' if entry.cost else 'none',
        f'{entry.rate:g}{" (edge)" if entry.at_edge else ""}' if entry.rate else '',
        f'{entry.seconds:.1f}',
        f'{entry.cost.bytes / 2**20:.0f} MiB' if entry.cost else '',
      )
    )
  return shown


def ranked(entries: Mapping[str, Entry]) -> dict[str, Entry]:
  """From the highest mean accuracy on."""
  order = sorted(entries, key=lambda label: -float(entries[label].correct.mean()))
  return {label: entries[label] for label in order}


def headline(entries: Mapping[str, Entry], skipped: Mapping[str, str]) -> str:
  """One sentence: who came first."""
  order = list(ranked(entries).items())
  (best, entry), (last, other) = order[0], order[-1]
  text = (
    f'{best} is first of {len(order)} strategies with an accuracy of {entry.correct.mean():.3f}, '
    f'{last} last with {other.correct.mean():.3f}'
  )
  return text + (f'; {", ".join(skipped)} cannot be used here.' if skipped else '.')


def tie(differences: Sequence[Difference], margin: float, reference: str) -> str:
  """Whether tuned variants end within a margin of each other."""
  if not differences:
    return f'No variants were compared with {reference}.'
  names = ', '.join(d.first for d in differences)
  outside = [d for d in differences if not -margin < d.interval.low <= d.interval.high < margin]
  apart = [d for d in differences if d.interval.low > 0 or d.interval.high < 0]
  points = f'{100 * margin:g} points'
  if not outside:
    return f'Tuned variants of LoRA tie: {names} end within {points} of {reference}.'
  if not apart:
    return (
      f'No difference is shown between {reference} and {names}, and none of them is shown to be '
      f'within {points} for certain: {"; ".join(map(by, outside))}.'
    )
  return f'Not all variants of LoRA tie: {"; ".join(map(by, apart))}.'


def by(d: Difference) -> str:
  """A difference in points of accuracy."""
  i: report.Interval = d.interval
  return (
    f'{d.first} {100 * i.value:+.1f} points against {d.second} '
    f'({100 * i.low:+.1f} to {100 * i.high:+.1f})'
  )
