"""Several sources of records as one endless stream, each with its share."""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
from grain import experimental

from jaxtune.data.pack import READ, shuffled
from jaxtune.typing import InputError


def shares(weights: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
  """The share of each source, `p_i = w_i^(1/T) / sum_j w_j^(1/T)`.

  With the sizes of the sources as weights this is the sampling of multilingual models (Arivazhagan
  et al. 2019, arXiv:1907.05019, section 4.2; the temperature-scaled mixing of T5, arXiv:1910.10683,
  section 3.5.2): T = 1 takes each in proportion, a larger T takes more of the small ones, in the
  limit the same of all.

  Raises:
    InputError: a weight or the temperature that is no number above zero.
  """
  if not _positive(temperature):
    raise InputError(f'mix: the temperature is {temperature!r}; it must be a number above 0')
  for name, weight in weights.items():
    if not _positive(weight) or math.isinf(weight):
      raise InputError(
        f'mix: the weight of {name!r} is {weight!r}; give it a number above 0, or leave the source '
        'out'
      )
  if not weights:
    raise InputError('mix: no weights; give each source one')
  # Against overflow the largest counts as one.
  most = max(weights.values())
  scaled = {name: (weight / most) ** (1 / temperature) for name, weight in weights.items()}
  total = sum(scaled.values())
  return {name: value / total for name, value in scaled.items()}


def mix(
  sources: Mapping[str, Sequence[Any] | grain.IterDataset],
  weights: Mapping[str, float] | None = None,
  *,
  temperature: float = 1.0,
  seed: int = 0,
) -> grain.IterDataset:
  """All sources as one stream without end, in which each has its share at every length.

  Sources are interleaved as evenly as their shares allow (Grain's `mix`; a share is exact to 1%),
  so nothing is drawn and any place can be saved. A source begins again when it ends: a list in
  another order each time, a stream in its own.

  Args:
    sources: lists of records or of examples, or streams, by name.
    weights: one each; without them sources count by their size, which a stream does not know.
    temperature: evens out the weights, see `shares`.
    seed: of the orders of lists.

  Raises:
    InputError: no sources, an empty one, weights for others than these, or as `shares` does.
  """
  if not sources:
    raise InputError('mix: no sources; give at least one')
  for name, source in sources.items():
    if not isinstance(source, grain.IterDataset) and not source:
      raise InputError(f'mix: {name!r} is empty; leave it out')
  if weights is None:
    for name, source in sources.items():
      if isinstance(source, grain.IterDataset):
        raise InputError(f'mix: {name!r} is a stream of unknown size; give weights')
    weights = {name: len(source) for name, source in sources.items()}
  if set(weights) != set(sources):
    raise InputError(
      f'mix: weights are for {", ".join(map(repr, weights))}, the sources are '
      f'{", ".join(map(repr, sources))}; give each source one'
    )
  share = shares({name: weights[name] for name in sources}, temperature)
  # Sources of one size would else come in one order, side by side.
  endless = {
    name: _endless(source, seed + zlib.crc32(name.encode())) for name, source in sources.items()
  }
  return _Mixture(grain.IterDataset.mix(endless, share), share)


def _endless(source: Sequence[Any] | grain.IterDataset, seed: int) -> grain.IterDataset:
  if isinstance(source, grain.IterDataset):
    return experimental.RepeatIterDataset(source)

  @functools.lru_cache(maxsize=1)
  def epoch(number: int) -> list[Any]:
    return shuffled(source, seed, number)

  def pick(index: int) -> Any:
    number, place = divmod(index, len(source))
    return epoch(number)[place]

  return grain.MapDataset.range(2**62).map(pick).to_iter_dataset(READ)


class _Mixture(grain.IterDataset):
  """A mixture whose saved place holds its shares: Grain would go on with others in silence."""

  def __init__(self, mixed: grain.IterDataset, share: Mapping[str, float]):
    super().__init__(mixed)
    self._share = dict(share)

  def __iter__(self) -> '_MixtureIterator':
    return _MixtureIterator(iter(self._parents[0]), self._share)


class _MixtureIterator(grain.DatasetIterator):
  def __init__(self, mixed: grain.DatasetIterator, share: Mapping[str, float]):
    super().__init__(mixed)
    self._mixed = mixed
    self._share = dict(share)

  def __next__(self) -> Any:
    return next(self._mixed)

  def get_state(self) -> dict[str, Any]:
    return {'place': self._mixed.get_state(), 'shares': dict(self._share)}

  def set_state(self, state: dict[str, Any]) -> None:
    if state['shares'] != self._share:
      raise InputError(
        f'the saved place is one in a mixture of {state["shares"]}, this run has {self._share}; '
        'continue with the same sources and weights, or start a new run'
      )
    self._mixed.set_state(state['place'])


def _positive(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
