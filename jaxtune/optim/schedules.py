"""Shapes of the learning rate over a run: functions from the step to a multiplier in [0, 1]."""

import difflib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.typing import InputError

Shape = Callable[[jax.typing.ArrayLike], jax.Array]
NAMES = ('constant', 'cosine', 'linear', 'wsd')


def schedule(
  name: str, *, steps: int, warmup: int | float = 0, decay: int | float = 0.1, end: float = 0.0
) -> Shape:
  r"""A shape `step -> multiplier` in [0, 1], float32; the rate is `learning_rate * shape(step)`.

  With $w$ steps of warm-up, $n$ steps in all and steps counted from 0:

  - warm-up, $s < w$: $(s+1)/(w+1)$. Step 0 already learns, and step $w$ is the first at the full
    rate.
  - `constant`: 1.
  - `linear`: $1 - (1-e)\,x$ with $x = (s-w)/(n-w)$ and $e$ = `end`.
  - `cosine`: $e + (1-e)\,\tfrac12(1 + \cos \pi x)$ (Loshchilov and Hutter, arXiv 1608.03983).
  - `wsd`, warm-up, stable, decay: 1, then linear to $e$ over the last `decay` steps (Hu et al.,
    arXiv 2404.06395).

  The shape reaches `end` at step $n$, one after the last, so that the last step still learns, and
  stays there. With `end=0` it is the shape of HF's schedulers except for the shift of the warm-up
  by one step, which there spends step 0 at a rate of zero.

  Args:
    name: constant, cosine, linear or wsd.
    steps: optimizer steps of the whole run.
    warmup: steps (an int) or the fraction of `steps` (a float below 1).
    decay: of wsd only: its last steps, as a count or a fraction.
    end: the last multiplier, in [0, 1].

  Raises:
    InputError: an unknown name, or numbers that leave no step at the full rate.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.3)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise InputError(f'schedule {name!r} is unknown; {hint}choose one of {", ".join(NAMES)}')
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
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

  main = steps - warm
  body: Any
  if name == 'linear':
    body = optax.linear_schedule(1.0, end, main)
  elif name == 'cosine':
    body = optax.cosine_decay_schedule(1.0, main, alpha=end)
  elif name == 'wsd' and falling:
    body = optax.linear_schedule(1.0, end, falling, transition_begin=main - falling)
  else:
    body = optax.constant_schedule(1.0)
  if warm:
    rise = optax.linear_schedule(1.0 / (warm + 1), 1.0, warm)
    body = optax.join_schedules([rise, body], [warm])

  def shape(step):
    # Rounding may leave the interval by one unit in the last place.
    return jnp.clip(jnp.asarray(body(jnp.asarray(step)), jnp.float32), 0.0, 1.0)

  return shape


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
