"""The next token of each row, drawn from its logits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxtune.typing import InputError, Key

_LEAST, _MOST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


class Sampling(NamedTuple):
  """How tokens are drawn; the filters apply from the top to the bottom, as in `transformers`.

  Attributes:
    repetition_penalty: positive logits of tokens that the row already has are divided by it, others
      multiplied (Keskar et al. 2019, arXiv:1909.05858, section 4.1); 1 for none.
    temperature: divides the logits; 0 takes the most probable token, whatever the filters below.
    top_k: only the k most probable tokens are kept; 0 for all.
    top_p: only the most probable tokens are kept whose probabilities first sum to at least p
      (Holtzman et al. 2019, arXiv:1904.09751, section 3.1); 1 for all.
    min_p: only tokens are kept that are at least `min_p` times as probable as the most probable one
      (Nguyen et al. 2024, arXiv:2407.01082); 0 for all.
  """

  repetition_penalty: float = 1.0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0

  def check(self) -> None:
    """Raises InputError for a value outside its range."""
    ranges = {
      'repetition_penalty': (0 < self.repetition_penalty < np.inf, 'above 0'),
      'temperature': (0 <= self.temperature < np.inf, '0 or more'),
      'top_k': (0 <= self.top_k <= _MOST, '0 or more'),
      'top_p': (0 < self.top_p <= 1, 'above 0 and at most 1'),
      'min_p': (0 <= self.min_p <= 1, '0 to 1'),
    }
    for name, (fits, text) in ranges.items():
      if not fits:
        raise InputError(f'{name} is {getattr(self, name)}; it must be {text}')


GREEDY = Sampling()


def sample(
  keys: Key, logits: jax.Array, sampling: Sampling, seen: jax.Array | None = None
) -> jax.Array:
  """One token a row, int32 `[B]`.

  A row's token follows from its own logits and key alone. All numbers of `sampling` may be traced,
  so that other values compile nothing new.

  Args:
    keys: one a row, `[B]`.
    logits: `[B, V]`.
    sampling: how.
    seen: bool `[B, V]`, the tokens that each row already has; None to penalize none.
  """
  logits = logits.astype(jnp.float32)
  if seen is not None:
    logits = penalize_repetition(logits, seen, sampling.repetition_penalty)

  def draw(logits: jax.Array) -> jax.Array:
    kept = filtered(logits / sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

  def largest(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

  return lax.cond(sampling.temperature > 0, draw, largest, logits)


def penalize_repetition(logits: jax.Array, seen: jax.Array, penalty: ArrayLike) -> jax.Array:
  """`[..., V]` logits with those of seen tokens made smaller, see `Sampling`."""
  return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered(
  logits: jax.Array,
  top_k: ArrayLike = 0,
  top_p: ArrayLike = 1.0,
  min_p: ArrayLike = 0.0,
) -> jax.Array:
  """`[..., V]` logits with -inf for tokens that top-k, then top-p, then min-p leaves out.

  Each keeps what lies at or above a threshold, so that tokens of one probability stay or go
  together; the most probable token always stays. top-p sums the probabilities of what top-k left.
  """
  order = _order(logits)
  everything = jnp.full((*order.shape[:-1], 1), _LEAST, jnp.int32)

  def top(k: ArrayLike) -> jax.Array:
    return _threshold(order, lambda kept: jnp.sum(kept, axis=-1) >= k)

  # Each search passes over all logits 32 times, which is as long as a small model takes.
  kth = lax.cond(jnp.asarray(top_k) > 0, top, lambda _: everything, top_k)
  logits = jnp.where(order >= kth, logits, -jnp.inf)
  probabilities = jax.nn.softmax(logits, axis=-1)

  def mass(p: ArrayLike) -> jax.Array:
    return _threshold(
      order, lambda kept: jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1) >= p
    )

  # All probabilities may sum to a little less than 1, and a part of them to 1.
  end = lax.cond(jnp.asarray(top_p) < 1.0, mass, lambda _: everything, top_p)
  least = min_p * jnp.max(probabilities, axis=-1, keepdims=True)
  return jnp.where((order >= end) & (probabilities >= least), logits, -jnp.inf)


def _order(x: jax.Array) -> jax.Array:
  """float32 as int32 of the same order."""
  bits = lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ _MOST, bits)


def _threshold(order: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """The largest number such that the entries at or above it are enough, `[..., 1]`.

  Halving the 32-bit range takes 32 passes and is exact; sorting takes thirty times as long on CPU.
  """

  def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = ends
    middle = (low & high) + ((low ^ high) >> 1)  # rounded down, without overflow
    fits = enough(order >= middle)[..., None]
    return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

  ends = (jnp.full((*order.shape[:-1], 1), end, jnp.int32) for end in (_LEAST, _MOST))
  return lax.fori_loop(0, 32, halve, tuple(ends))[0]
