"""Rotary position embedding and its extensions to longer texts, in the two-halves layout.

Su et al. 2021, arXiv:2104.09864. Pair i of the K rotated entries of a head at position t turns by

  t * w_i,   w_i = base^(-2i/K)     (eq. 15), in radians,

and every extension of a model to longer texts is another choice of the frequencies w_i.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCALINGS = ('default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope')


@dataclasses.dataclass(frozen=True)
class Rope:
  r"""How queries and keys are rotated.

  Scalings, with s = `factor`, L = `original`, and n the largest position of the call plus one:

  - 'default': $w_i$ as they are.
  - 'linear': $w_i / s$ (Chen et al. 2023, arXiv:2306.15595).
  - 'dynamic': the base becomes $base (s \max(n, L) / L - (s - 1))^{K / (K - 2)}$, so that texts up
    to L are untouched ("NTK-aware", Peng et al. 2023, arXiv:2309.00071, section 3.3 and 3.4).
  - 'llama3': $w_i / s$ where a turn takes more than L / `low` positions, $w_i$ where it takes fewer
    than L / `high`, and between them a mixture that is linear in the turns per L positions
    (Grattafiori et al. 2024, arXiv:2407.21783, and the code released with Llama 3.1).
  - 'yarn': $w_i / s$ below `slow` turns in L positions, $w_i$ above `fast`, mixed linearly in i
    between (arXiv:2309.00071, section 3.2); queries and keys grow by `attention_factor`, for which
    the paper has $0.1 \ln s + 1$ (eq. 22).
  - 'longrope': $w_i / d_i$ with found divisors d, `short` while n <= L, else `long` (Ding et al.
    2024, arXiv:2402.13753); queries and keys grow by `attention_factor`, by default
    $\sqrt{1 + \ln s / \ln L}$.

  Attributes:
    base: called theta elsewhere.
    width: K, how many entries of each head are rotated, the first ones; 0 for all.
    scaling: one of `SCALINGS`.
    factor: s.
    original: L, in positions; the context length of the model before it was extended.
    low, high: of 'llama3', in turns per L positions.
    slow, fast: of 'yarn', in turns per L positions.
    truncate: whether the ends of yarn's mixture are rounded outwards to whole pairs.
    attention_factor: of 'yarn' and 'longrope'; 0 for the papers' own.
    short, long: K/2 divisors each, of 'longrope'.
  """

  base: float = 10000.0
  width: int = 0
  scaling: str = 'default'
  factor: float = 1.0
  original: int = 0
  low: float = 1.0
  high: float = 4.0
  slow: float = 1.0
  fast: float = 32.0
  truncate: bool = True
  attention_factor: float = 0.0
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()


class Table(NamedTuple):
  """Cosines and sines of the angles of each token, `[B, T, K/2]` float32."""

  cos: jax.Array
  sin: jax.Array


def rope_table(positions: jax.Array, head_width: int, rope: Rope) -> Table:
  """What `rotate` needs, once for all layers: `[B, T] -> [B, T, K/2]`.

  Frequencies are computed in float64 and rounded once. 'dynamic' and 'longrope' go by the largest
  position of the whole batch, as the models were released with.

  Args:
    positions: of the tokens, int32.
    head_width: of a head, of which `rope.width` entries are rotated.
    rope: the rotation.

  Raises:
    ValueError: an unknown scaling.
  """
  frequency = _float(frequencies(rope, head_width))
  length = jnp.max(positions) + 1
  if rope.scaling == 'dynamic':
    width = rope.width or head_width
    excess = jnp.maximum(length / rope.original - 1.0, 0.0)
    growth = (1.0 + rope.factor * excess)[None]
    frequency = frequency * growth ** _float(-np.arange(0, width, 2) / max(width - 2, 1))
  if rope.scaling == 'longrope':
    long = dataclasses.replace(rope, short=rope.long)
    frequency = jnp.where(length > rope.original, _float(frequencies(long, head_width)), frequency)
  angles = positions.astype(jnp.float32)[..., None] * frequency[None, None, :]
  amplitude = _amplitude(rope)
  return Table(jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude)


def frequencies(rope: Rope, head_width: int) -> np.ndarray:
  """Radians per position of each pair in texts of up to `original` tokens, float64 `[K/2]`.

  Raises:
    ValueError: an unknown scaling.
  """
  if rope.scaling not in SCALINGS:
    raise ValueError(f'rope scaling is {rope.scaling!r}; known: {", ".join(SCALINGS)}')
  width = rope.width or head_width
  plain = rope.base ** (-np.arange(0, width, 2) / width)
  if rope.scaling == 'linear':
    return plain / rope.factor
  if rope.scaling == 'longrope':
    return plain / np.array(rope.short)
  if rope.scaling == 'llama3':
    turns = rope.original * plain / (2 * math.pi)
    kept = np.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
  elif rope.scaling == 'yarn':
    kept = 1.0 - _yarn_ramp(rope, width)
  else:
    return plain
  return plain * (kept + (1 - kept) / rope.factor)


def rotate(x: jax.Array, table: Table) -> jax.Array:
  """Turns each pair `(x_i, x_{i+K/2})` of the first K entries by its angle; the rest stay.

  The paper pairs neighbours `(x_{2i}, x_{2i+1})`; the weights of Llama-type models as Hugging Face
  stores them pair the halves.

  Args:
    x: `[B, T, H, entries]`.
    table: `[B, T, K/2]`.
  """
  half = table.cos.shape[-1]
  cos = table.cos[:, :, None, :].astype(x.dtype)
  sin = table.sin[:, :, None, :].astype(x.dtype)
  first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate([*turned, rest], axis=-1)


def _float(x: np.ndarray) -> jax.Array:
  return jnp.asarray(x, jnp.float32)


def _yarn_ramp(rope: Rope, width: int) -> np.ndarray:
  """0 for pairs that are left alone, 1 for those divided by the factor (eq. 18, 19, 23)."""

  def pair_with(turns: float) -> float:
    return width * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

  low, high = pair_with(rope.fast), pair_with(rope.slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  return np.clip((np.arange(width // 2) - low) / (high - low or 0.001), 0.0, 1.0)


def _amplitude(rope: Rope) -> float:
  if rope.scaling not in ('yarn', 'longrope') or rope.factor <= 1 and not rope.attention_factor:
    return 1.0
  if rope.attention_factor:
    return rope.attention_factor
  if rope.scaling == 'yarn':
    return 0.1 * math.log(rope.factor) + 1.0
  return math.sqrt(1.0 + math.log(rope.factor) / math.log(rope.original))
