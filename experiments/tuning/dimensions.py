"""What can be tuned, and which values are tried around the present one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Tunable(NamedTuple):
  """A key of the configuration.

  Attributes:
    name: for people.
    values: tried beside the present one.
    factors: that the present value is multiplied with.
    finer: likewise, when the key comes a second time; none for keys that come only once.
    low, high: the least and the largest value that a factor may lead to.
    log: whether a picture has a logarithmic axis.
    whole: whether values are whole numbers.
  """

  name: str
  values: tuple[float, ...] = ()
  factors: tuple[float, ...] = ()
  finer: tuple[float, ...] = ()
  low: float = 0.0
  high: float = math.inf
  log: bool = False
  whole: bool = False


TUNABLE = {
  'optim.lr': Tunable(
    'learning rate', factors=(1 / 9, 1 / 3, 3, 9), finer=(3**-0.5, 3**0.5), log=True
  ),
  'method.rank': Tunable('rank', factors=(1 / 4, 2), low=1, high=256, log=True, whole=True),
  'optim.warmup': Tunable('warm-up', values=(0.0, 0.06, 0.2)),
  'optim.weight_decay': Tunable('weight decay', values=(0.0, 0.01, 0.1)),
  'method.options.dropout': Tunable('dropout', values=(0.0, 0.05, 0.1)),
}


def around(key: str, present: Any, *, finer: bool = False) -> tuple[Any, ...]:
  """The values of a round: the present one, and others on both sides, in their order."""
  tunable = TUNABLE[key]
  return _values(key, present, tunable.finer if finer else tunable.factors)


def beyond(key: str, tried: Sequence[Any], best: Any) -> tuple[Any, ...]:
  """The values of a further round where the best of one lies at its edge; else none."""
  factors = TUNABLE[key].factors
  if best == max(tried):
    steps = [factor for factor in factors if factor > 1]
    steps = steps if len(steps) > 1 else [steps[0], steps[0] ** 2] if steps else []
  elif best == min(tried):
    steps = [factor for factor in factors if factor < 1]
  else:
    return ()
  found = _values(key, best, steps) if steps else ()
  return found if len(found) > 1 else ()


def _values(key: str, present: Any, factors: Sequence[float]) -> tuple[Any, ...]:
  """The present value as it is, and the others as people would write them."""
  tunable = TUNABLE[key]
  found = {present}
  for factor in factors:
    value = present * factor
    if tunable.low <= value <= tunable.high:
      found.add(round(value) if tunable.whole else float(f'{value:.2e}'))
  return tuple(sorted(found | set(tunable.values)))
