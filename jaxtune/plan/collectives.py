"""What devices send each other in a step, read from the compiled module."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

_BITS = {'pred': 8, 'bf16': 16}
_ARRAY = re.compile(r'\b(pred|bf16|[suf]\d+\w*)\[([\d,]*)\]')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z\-]+)\(')
_CALLED = re.compile(
  r'(?:calls|body|condition|to_apply|branch_computations|(?:true|false)_computation)='
  r'\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_CHANNEL = re.compile(r'channel_id=(\d+)')


class Collective(NamedTuple):
  """One operation of a compiled module.

  Attributes:
    kind: one of `KINDS`.
    bytes: of the whole array on one device: what an all-gather puts together, an all-reduce sums,
      a reduce-scatter or an all-to-all cuts.
    times: how often a step runs it; of a loop, as often as the compiler knows that it turns.
  """

  kind: str
  bytes: int
  times: int


def collectives(compiled: Any) -> list[Collective]:
  """The collective operations of a compiled step, those inside loops and fusions too.

  Args:
    compiled: a `jax.stages.Compiled`, or the text of an optimized module.
  """
  text = compiled if isinstance(compiled, str) else compiled.as_text()
  computations, entry = _computations(text)
  times: dict[str, int] = collections.Counter()

  def visit(name: str, count: int) -> None:
    times[name] += count
    for line in computations.get(name, ()):
      trips = _trips(line, computations)
      for called in _CALLED.findall(line):
        for part in re.split(r', ?', called):
          visit(part.removeprefix('%'), count * trips)

  visit(entry, 1)
  found: dict[Any, Collective] = {}
  for name, lines in computations.items():
    for place, line in enumerate(lines):
      for kind, size in _operations(line):
        channel = _CHANNEL.search(line)
        # A TPU's compiler spreads one gather over several fusions that name the same channel. What
        # `shard.locally` sends all has channel 1.
        shared = kind == 'all-gather' and channel and channel[1] != '1'
        key = (kind, size, channel[1]) if shared and channel else (name, place)
        if times[name]:
          found.setdefault(key, Collective(kind, size, times[name]))
  return list(found.values())


def total_bytes(found: list[Collective]) -> dict[str, int]:
  """Bytes a step of each kind, largest first."""
  sums = collections.Counter[str]()
  for one in found:
    sums[one.kind] += one.bytes * one.times
  return dict(sums.most_common())


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  computations: dict[str, list[str]] = {}
  entry, current = '', ''
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = header[2]
      computations[current] = []
      entry = current if header[1] else entry
    elif current:
      computations[current].append(line)
  return computations, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
  """How often what a line calls is run: of a loop, as its line says, or as its condition compares
  with (a TPU's compiler says nothing)."""
  known = _TRIPS.search(line)
  condition = _CONDITION.search(line)
  if known or not condition:
    return int(known[1]) if known else 1
  bounds = re.findall(r's32\[\]\S* constant\((\d+)\)', '\n'.join(computations[condition[1]]))
  return int(bounds[0]) if len(bounds) == 1 else 1


def _operations(line: str) -> Iterator[tuple[str, int]]:
  match = _LINE.match(line)
  if not match:
    return
  kind = match[2].removesuffix('-start')
  if kind not in KINDS:
    return
  arrays = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(match[1])]
  if match[2] != kind:  # the start of a pair has its inputs beside its outputs
    arrays = arrays[len(arrays) // 2 :]
  size = sum(arrays)
  if kind == 'reduce-scatter':  # its output is one part
    groups = re.search(r'replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])', line)
    size *= len(groups[1].split(',')) if groups and groups[1] else int(groups[3]) if groups else 1
  yield kind, size


def _size(dtype: str, dims: str) -> int:
  bits = _BITS.get(dtype) or int(re.sub(r'\D.*', '', dtype[1:]) or 8)
  return math.prod(int(n) for n in dims.split(',') if n) * bits // 8
