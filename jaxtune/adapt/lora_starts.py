"""Where the factors of LoRA start: at random, or with the best part of the weight itself."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtune import ops
from jaxtune.adapt.quantize import Kind, Quantized, quantize_matrix
from jaxtune.optim.in_turn import after
from jaxtune.typing import InputError, Key, is_weight

STARTS = 'kaiming, gaussian, pissa, pissa_niter_4 (or another number), olora, loftq, loftq_int8'
_OVERSAMPLED = 10  # columns of a random sketch beyond the rank (Halko et al., section 4.2)
_LOFTQ_STEPS = 5  # of the paper; PEFT takes one, which is nearly as good


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Residual:
  """What is left of a weight after `scale * A0 B0` went into the adapter around it.

  It multiplies as `base` alone does. The factors stay with it because whoever loads the adapter
  has the weight as it was, to which the adapter adds `scale * (A B - A0 B0)`.

  Attributes:
    base: `[..., in, out]`, `W - scale * A0 B0`, an array or quantized.
    a0: `[..., in, R]`.
    b0: `[..., R, out]`.
  """

  base: Any
  a0: jax.Array
  b0: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    return ops.materialize(self.base)

  def dot(self, x: jax.Array) -> jax.Array:
    return ops.dot(x, self.base)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    return ops.dot_transposed(x, self.base)

  def take(self, ids: jax.Array) -> jax.Array:
    return ops.take(self.base, ids)

  def axes(self, names: tuple[str | None, ...]) -> 'Residual':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    a0, b0 = (*lead, inside, None), (*lead, None, outside)
    return Residual(ops.axes(self.base, names), a0, b0)  # type: ignore[arg-type]


def since_start(leaf: Any) -> tuple[np.ndarray, np.ndarray]:
  """Factors `[in, r]`, `[r, out]` of what an adapter adds to the weight as it was: `r = 2 R` where
  its start took something out of that, and B zero where nothing has been trained since."""
  a, b = np.asarray(leaf.a), np.asarray(leaf.b)
  if not isinstance(leaf.base, Residual):
    return a, b
  a0, b0 = np.asarray(leaf.base.a0), np.asarray(leaf.base.b0)
  if np.array_equal(a, a0) and np.array_equal(b, b0):
    return a, np.zeros_like(b)
  return np.concatenate([a, a0], -1), np.concatenate([b, -b0], -2)


class Start(NamedTuple):
  """The base and the two factors of a fresh adapter."""

  base: Any
  a: jax.Array
  b: jax.Array


def check_start(start: str, path: str, weight: Any) -> None:
  """Refuses a start that is none, or that cannot be on this weight."""
  if start == 'eva':
    raise InputError(
      "lora: start 'eva' needs data; call params = adapt.eva(key, params, objective, batches) on "
      'what lora returns'
    )
  if not re.fullmatch(
    r'kaiming|gaussian|pissa(_niter_\d+)?|olora|loftq(_(nf4|int4|int8))?', str(start)
  ):
    raise InputError(f'lora: start is {start!r}; known: {STARTS}')
  if start not in ('kaiming', 'gaussian') and is_weight(weight):
    raise InputError(
      f'lora: start {start!r} changes the weight, and {path!r} is a {type(weight).__name__}; give '
      "the plain weight (adapt.merge makes it, adapt.quantize comes after), or take start 'kaiming'"
    )


def uniform(key: Key, shape: Sequence[int], fan_in: int) -> jax.Array:
  """Uniform within `1 / sqrt(fan_in)`, torch's own start of a linear layer."""
  bound = fan_in**-0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def begin(start: str, key: Key, weight: Any, rank: int, scale: float, done: Any) -> Start:
  """The base and factors of a start; they multiply to the weight as it was.

  Args:
    start: see `lora`.
    key: of this weight.
    weight: `[..., in, out]`.
    rank: R.
    scale: of the product.
    done: the start of the weight before, or None: two decompositions must not run at once.
  """
  *lead, inputs, outputs = weight.shape
  shape = (*lead, inputs, rank)
  if start in ('kaiming', 'gaussian'):
    if start == 'kaiming':
      a = uniform(key, shape, inputs)  # PEFT's start: Kaiming uniform with a = sqrt(5)
    else:
      a = jax.random.normal(key, shape) / rank
    return Start(weight, a, jnp.zeros((*lead, rank, outputs)))
  before = jnp.zeros(()) if done is None else done.b[(0,) * done.b.ndim]
  with jax.default_matmul_precision('highest'):
    base, a, b = _taken_out(key, weight, scale, before, start=start, rank=rank)
  return Start(Residual(base, a, b), a, b)


@functools.partial(jax.jit, static_argnames=('start', 'rank'))
def _taken_out(
  key: Key, weight: jax.Array, scale: jax.Array, before: jax.Array, *, start: str, rank: int
) -> tuple[Any, jax.Array, jax.Array]:
  """What is left of a weight, and the factors taken out of it."""
  w = after(weight.astype(jnp.float32), before)
  if start.startswith('loftq'):
    kind: Any = start.removeprefix('loftq').lstrip('_') or 'nf4'
    quantized, a, b = loftq(key, w, rank, scale, kind)
    return dataclasses.replace(quantized, dtype=weight.dtype), a, b
  if start == 'olora':
    a, b = olora(w, rank)
  else:
    iterations = re.sub(r'\D', '', start)
    a, b = pissa(key, w, rank, scale, int(iterations) if iterations else None)
  return (w - scale * (a @ b)).astype(weight.dtype), a, b


def pissa(
  key: Key, w: jax.Array, rank: int, scale: Any, iterations: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """`U S^(1/2)`, `S^(1/2) V^T` over `scale^(1/2)` each, of the R largest singular values of `w`.

  Meng et al. 2024, arXiv:2404.02948, equations 2 and 3.

  Args:
    key: of the sketch.
    w: `[..., in, out]` float32.
    rank: R.
    scale: of the product.
    iterations: None for an exact decomposition, else those of `sketched`.
  """
  u, s, v = (
    jnp.linalg.svd(w, full_matrices=False)
    if iterations is None
    else sketched(key, w, rank, iterations)
  )
  root = jnp.sqrt(s[..., :rank] / scale)
  return u[..., :rank] * root[..., None, :], root[..., :, None] * v[..., :rank, :]


def sketched(
  key: Key, w: jax.Array, rank: int, iterations: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The largest singular values from a random sketch, in a time that grows with the rank.

  Halko et al. 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
  """
  *lead, inputs, outputs = w.shape
  columns = min(rank + _OVERSAMPLED, inputs, outputs)
  q = jnp.linalg.qr(w @ jax.random.normal(key, (*lead, outputs, columns)))[0]
  for _ in range(iterations):
    q = jnp.linalg.qr(w @ jnp.linalg.qr(w.mT @ q)[0])[0]
  u, s, v = jnp.linalg.svd(q.mT @ w, full_matrices=False)
  return q @ u, s, v


def olora(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """The first R rows and columns of `W^T = Q R`: A is those of R, B of Q, orthonormal.

  Büyükakyüz 2024, arXiv:2406.01775, algorithm 1.
  """
  q, r = jnp.linalg.qr(w.mT)
  return r[..., :rank, :].mT, q[..., :, :rank].mT


def loftq(
  key: Key, w: jax.Array, rank: int, scale: Any, kind: Kind
) -> tuple[Quantized, jax.Array, jax.Array]:
  """A quantized base and the factors that come nearest to what it misses of `w`.

  `Q = quantized(W - scale A B)` and `scale A B = ` the R largest singular values of `W - Q` take
  turns (Li et al. 2023, arXiv:2310.08659, algorithm 1), here found from a sketch. The paper and
  PEFT leave the scale of the product out; with it `Q + scale A B` is near `W` for any alpha.
  """

  def step(product: jax.Array) -> tuple[Quantized, jax.Array, jax.Array]:
    quantized = quantize_matrix(w - product, kind)
    return quantized, *pissa(key, w - quantized.materialize(), rank, scale, 4)

  def product(_: Any, before: jax.Array) -> jax.Array:
    _, a, b = step(before)
    return scale * (a @ b)

  return step(lax.fori_loop(1, _LOFTQ_STEPS, product, jnp.zeros_like(w)))
