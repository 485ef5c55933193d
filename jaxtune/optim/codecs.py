"""Codecs of optimizer state: what a moment is stored as between updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.optim.stochastic_rounding import stochastic_round
from jaxtune.typing import InputError


class Codec(NamedTuple):
  """How an array is stored: as an array, or a tuple of them, of its shape or its leading axes.

  encode: `(array, key) -> stored`.
  decode: `stored -> float32 array`, the inverse up to an error that the codec states.
  """

  encode: Callable[[jax.Array, jax.Array], Any]
  decode: Callable[[Any], jax.Array]


class Blocks(NamedTuple):
  """codes: uint8, of the array's shape. scales: float32 `[..., blocks]`, the absolute maxima."""

  codes: jax.Array
  scales: jax.Array


def dynamic_8bit(signed: bool = True, block: int = 256) -> Codec:
  r"""Block-wise dynamic 8-bit quantization: the nearest of 256 numbers times the block's maximum.

  A block is `block` neighbours along the last axis (or all of it, or what is left of it), and
  $x \approx s \cdot \mathrm{book}[c]$ with $s = \max |x|$ over the block. The book holds zero, one,
  and in each decade $[10^{e-1}, 10^e)$, $e = -6 .. 0$, the centres of equal intervals: $2^{e+6}$ of
  them with either sign, or $2^{e+7}$ without (Dettmers et al., arXiv 2110.02861, section 2;
  `create_dynamic_map` of bitsandbytes). Minus one is not in it.

  So large numbers keep two digits, and small ones about their size over seven decades:
  $|x - \mathrm{decode}(\mathrm{encode}(x))|$ is at most $0.00704\, s$ signed and $0.00352\, s$
  unsigned. A block of zeros stays zero, and one that holds an infinity or a NaN decodes to NaN
  throughout. Bytes: 1 + 4 / block an element.

  Args:
    signed: whether numbers may be negative; without a sign the resolution is twice as fine.
    block: elements that share a scale.
  """
  if isinstance(block, bool) or not isinstance(block, int) or block < 1:
    raise InputError(f'block of the 8-bit codec is {block!r}; give a whole number of at least 1')

  def encode(x: jax.Array, key: jax.Array) -> Blocks:
    del key
    size, n = min(block, x.shape[-1]), x.shape[-1]
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -n % size)]
    blocks = jnp.pad(x.astype(jnp.float32), padding).reshape(*x.shape[:-1], -1, size)
    scales = jnp.max(jnp.abs(blocks), -1)
    codes = _codes(blocks / jnp.where(scales == 0, 1, scales)[..., None], signed)
    return Blocks(codes.reshape(*x.shape[:-1], -1)[..., :n], scales)

  def decode(stored: Blocks) -> jax.Array:
    codes, scales = stored
    size, n = min(block, codes.shape[-1]), codes.shape[-1]
    spread = jnp.broadcast_to(scales[..., None], (*scales.shape, size))
    spread = spread.reshape(*codes.shape[:-1], -1)[..., :n]
    return _values(codes, signed) * spread

  return Codec(encode, decode)


def bfloat16() -> Codec:
  r"""Bfloat16, rounded stochastically: 2 bytes an element, off by less than $2^{-7} |x|$.

  Rounded to nearest, a second moment with $b_2 = 0.999$ would stand still, because $0.001\, g^2$ is
  less than half a unit in the last place of $\nu$; see `stochastic_round`.
  """
  return Codec(stochastic_round, lambda stored: stored.astype(jnp.float32))


# Both directions in closed form: within a decade numbers and codes lie at equal distances. A search
# among the 255 midpoints takes 70 times longer on a CPU, and a look-up in the book is not fused.
# The `place` of the j-th of the n numbers of a decade is n + j: the decade before has half as many.


def _decades(signed: bool) -> list[tuple[int, np.float32, float]]:
  """How many numbers a decade has, from which |x| on they are the nearest, and their distance."""
  decades = []
  for e in range(7):
    n, low = (1 if signed else 2) * 2**e, 10.0 ** (e - 7)
    # Midway to the last number of the decade below; of the first decade, to zero.
    start = low * (1 + 1.8 / n) if e else low * (1 + 4.5 / n) / 2
    decades.append((n, np.float32(start), 9 * low / n))
  return decades


def _codes(x: jax.Array, signed: bool) -> jax.Array:
  """The codes of numbers in [-1, 1]; that of zero for NaN."""
  y = jnp.abs(x)
  n, slope = jnp.zeros_like(y), jnp.zeros_like(y)
  for size, start, step in _decades(signed):
    n = jnp.where(y >= start, size, n)
    slope = jnp.where(y >= start, np.float32(1 / step), slope)
  place = n + jnp.clip(jnp.floor(y * slope - n / 9), 0, n - 1)
  place = jnp.where(x >= np.float32(1 - 0.225 / size), 2 * size, place)  # one
  if signed:
    return (127 + jnp.where(n > 0, jnp.sign(x) * place, 0)).astype(jnp.uint8)
  return jnp.where(n > 0, place - 1, 0).astype(jnp.uint8)


def _values(codes: jax.Array, signed: bool) -> jax.Array:
  """The numbers in [-1, 1] that codes stand for."""
  rank = codes.astype(jnp.float32) - (127 if signed else -1)
  place = jnp.abs(rank)
  shift, distance = jnp.zeros_like(place), jnp.zeros_like(place)
  for n, _, step in _decades(signed):
    shift = jnp.where(place >= n, np.float32(0.5 - 8 * n / 9), shift)
    distance = jnp.where(place >= n, np.float32(step), distance)
  return jnp.sign(rank) * jnp.minimum((place + shift) * distance, 1.0)
