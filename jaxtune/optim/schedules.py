"""Shapes of the learning rate over a run: functions from the step to a multiplier in [0, 1]."""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.typing import InputError

MOST = 2**31 - 1  # an int32
NAMES = ('constant', 'cosine', 'cyclic', 'linear', 'rsqrt', 'wsd')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A shape of the learning rate, `(step, warmup) -> multiplier` in [0, 1], float32.

  `create` keeps the warm-up beside the learning rate in the rule's state: lanes of a sweep, or one
  that goes on, may have others.

  Attributes:
    body: `(steps behind the warm-up, steps from there to the end) -> multiplier`.
    steps: of the whole run.
    warmup: its first steps, while the rate rises.
  """

  body: Callable[[Any, Any], Any]
  steps: int
  warmup: int

  def __call__(self, step: jax.typing.ArrayLike, warmup: Any = None) -> jax.Array:
    step = jnp.asarray(step)
    first = jnp.asarray(self.warmup if warmup is None else warmup).astype(jnp.int32)
    rise = (step + 1) / (first + 1)
    body = self.body(step - first, self.steps - first)
    # Rounding may leave the interval by one unit in the last place.
    return jnp.clip(jnp.asarray(jnp.where(step < first, rise, body), jnp.float32), 0.0, 1.0)


def schedule(
  name: str,
  *,
  steps: int,
  warmup: int | float = 0,
  decay: int | float = 0.1,
  end: float = 0.0,
  timescale: int | None = None,
  cycles: int = 2,
) -> Schedule:
  r"""A shape `step -> multiplier` in [0, 1], float32; the rate is `learning_rate * shape(step)`.

  With $w$ steps of warm-up, $n$ steps in all and steps counted from 0:

  - warm-up, $s < w$: $(s+1)/(w+1)$. Step 0 already learns, and step $w$ is the first at the full
    rate.
  - `constant`: 1.
  - `linear`: $1 - (1-e)\,x$ with $x = (s-w)/(n-w)$ and $e$ = `end`.
  - `cosine`: $e + (1-e)\,\tfrac12(1 + \cos \pi x)$ (Loshchilov and Hutter, arXiv 1608.03983).
  - `wsd`, warm-up, stable, decay: 1, then linear to $e$ over the last `decay` steps (Hu et al.,
    arXiv 2404.06395).
  - `cyclic`: the cosine from 1 to $e$, `cycles` times; every cycle starts anew at 1 (Loshchilov and
    Hutter, the restarts, with cycles of one length).
  - `rsqrt`: $\sqrt{\tau / (\tau + s - w)}$ with $\tau$ = `timescale` (Zhai et al., arXiv
    2106.04560); $\tau = w$ makes it $\sqrt{w/s}$ (Vaswani et al., arXiv 1706.03762). It does not
    depend on $n$, so a run may go on; $e$ is a floor that it need not reach.

  The other falling shapes reach `end` at step $n$, one after the last, so that the last step still
  learns, and stay there. With `end=0` they are the shapes of HF's schedulers except for the shift
  of the warm-up by one step, which there spends step 0 at a rate of zero.

  Args:
    name: constant, cosine, cyclic, linear, rsqrt or wsd.
    steps: optimizer steps of the whole run.
    warmup: steps (an int) or the fraction of `steps` (a float below 1).
    decay: of wsd only: its last steps, as a count or a fraction.
    end: the last multiplier, in [0, 1].
    timescale: of rsqrt only: steps after the warm-up until the square of the rate has halved, at
      least 1. None is the steps of the warm-up, or 1.
    cycles: of cyclic only: how many, from 1 to one a step.

  Raises:
    InputError: an unknown name, or numbers that leave no step at the full rate.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.3)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise InputError(f'schedule {name!r} is unknown; {hint}choose one of {", ".join(NAMES)}')
  if not _is_whole(steps, 1, math.inf):
    raise InputError(
      f'schedule steps is {steps!r}; give the number of steps of the run, at least 1'
    )
  if not _is_number(end) or not 0 <= end <= 1:
    raise InputError(f'schedule end is {end!r}; give the last multiplier, in [0, 1]')
  warm = _count('warmup', warmup, steps)
  falling = _count('decay', decay, steps) if name == 'wsd' else 0
  if warm >= steps or warm + falling > steps:
    raise InputError(
      f'schedule {name}: warmup of {warm} and decay of {falling} do not fit in {steps} steps with '
      'one at the full rate; shorten them'
    )
  if timescale is not None and not _is_whole(timescale, 1, math.inf):
    raise InputError(f'schedule timescale is {timescale!r}; give a whole number of steps, or None')

  main = steps - warm
  most = min(main, MOST // main) if name == 'cyclic' else math.inf
  if not _is_whole(cycles, 1, most):
    raise InputError(f'schedule cycles is {cycles!r}; give a whole number from 1 to {most}')
  rest: Any = {
    'linear': lambda x, n: optax.linear_schedule(1.0, end, 1)(x / n),
    'cosine': lambda x, n: optax.cosine_decay_schedule(1.0, 1, alpha=end)(x / n),
    'wsd': lambda x, n: optax.linear_schedule(1.0, end, 1)((x - n + falling) / falling),
    'cyclic': lambda x, n: _restarts(x, n, cycles, end),
    'rsqrt': lambda x, n: _inverse_root(x, timescale or jnp.maximum(steps - n, 1), end),
    'constant': lambda x, n: 1.0,
  }
  return Schedule(rest['constant' if name == 'wsd' and not falling else name], steps, warm)


def _restarts(x: Any, steps: Any, cycles: int, end: float) -> jax.Array:
  # In integers, so that a cycle starts at exactly 1 whatever its length is.
  part = jnp.where(x < steps, x * cycles % steps / steps, 1.0)
  return end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * part))


def _inverse_root(x: Any, timescale: Any, end: float) -> jax.Array:
  return jnp.maximum(end, jnp.sqrt(timescale / (timescale + jnp.maximum(x, 0.0))))


def _is_whole(x: Any, low: int, high: float) -> bool:
  return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def _is_number(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _count(field: str, value: Any, steps: int) -> int:
  """Steps from a count (int) or a fraction of all steps (float below 1, rounded)."""
  if _is_number(value) and value >= 0:
    if isinstance(value, int) and value <= steps:
      return value
    if isinstance(value, float) and value < 1:
      return min(round(value * steps), steps - 1)
  raise InputError(
    f'schedule {field} is {value!r}; give a count of at most {steps} steps (an int) or a fraction '
    'of them (a float, at least 0 and below 1)'
  )
