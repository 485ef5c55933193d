"""Shampoo: gradients whitened from both sides by inverse roots of their second moments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.in_turn import in_turn
from jaxtune.optim.kronecker import (
  Sides,
  each_side,
  grams,
  identity,
  matmul,
  multiply,
  where_seen,
)
from jaxtune.optim.matrices import MATRICES, Matrix, matrix_chain
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import at_least
from jaxtune.optim.tables import DECAYED
from jaxtune.typing import InputError


class ShampooState(NamedTuple):
  """State of Shampoo.

  step: int32, updates made so far.
  mu: average of the gradients.
  factors: averages or sums of G G^T `[..., rows, rows]` and G^T G `[..., columns, columns]`,
    `Sides` under the path of each matrix; None where a side is longer than `max_size`.
  roots: the factors' inverse roots at the latest refresh, in the same places.
  """

  step: jax.Array
  mu: Any
  factors: Any
  roots: Any


def scale_by_shampoo(
  b1: float = 0.9,
  b2: float = 0.999,
  *,
  eps: float = 1e-6,
  every: int = 10,
  max_size: int = 8192,
  average: bool = True,
) -> optax.GradientTransformationExtraArgs:
  r"""$L^{-1/4} M R^{-1/4}$ with $L$, $R$ the second moments of gradients and $M$ their average.

  $M$, $L = \langle G G^\top \rangle$ and $R = \langle G^\top G \rangle$ are exponential averages
  by $b_1$ and $b_2$, corrected for their start (Gupta et al., arXiv 1802.09568; Shi et al., arXiv
  2309.06497, algorithm 2). The roots come from an eigendecomposition, at the first step and every
  `every` steps after it, the present gradient included. The size of the result is that of
  $G^0$, but stale roots make it uneven: see `graft`. Rows and columns that never had a gradient get
  no update.

  Args:
    b1: weight of the past in $M$, in [0, 1).
    b2: weight of the past in $L$ and $R$, in [0, 1).
    eps: eigenvalues of $L$ and of $R$ below this share of the largest one are raised to it.
    every: steps between computations of the roots, at least 1.
    max_size: a side with more rows (columns) than this is left out; the other side's exponent is
      then -1/2.
    average: False sums $L$ and $R$ over all steps as the first Shampoo does, without `b2`.

  Raises:
    InputError: at `init`, a leaf with fewer than two axes; `every` below 1.
  """
  if every < 1:
    raise InputError(
      f'every is {every!r}; give the steps between computations of roots, at least 1'
    )

  def init(params):
    params = at_least(params)
    roots = each_side(lambda x, n: identity(x, n) if n <= max_size else None, params)
    factors = jax.tree.map(jnp.zeros_like, roots)
    return ShampooState(
      jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), factors, roots
    )

  def update(updates, state, params=None, **extra):
    del params, extra
    updates = at_least(updates)
    count = optax.safe_increment(state.step)
    kept, added, total = (b2, 1 - b2, 1 - b2**count) if average else (1, 1, 1)
    factors = jax.tree.map(
      lambda f, x: (kept * f + added * x).astype(f.dtype),
      state.factors,
      jax.tree.map(grams, updates, state.factors),
    )

    def refresh():
      return in_turn(
        lambda f: _inverse_roots(f, total, eps), factors, is_leaf=lambda x: isinstance(x, Sides)
      )

    roots = jax.lax.cond(state.step % every == 0, refresh, lambda: state.roots)
    mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates)
    direction = jax.tree.map(
      lambda m, r: multiply((m / (1 - b1**count)).astype(m.dtype), r), mu, roots
    )
    direction = jax.tree.map(where_seen, direction, factors)
    return direction, ShampooState(count, mu, factors, roots)

  return optax.GradientTransformationExtraArgs(init, update)


def _inverse_roots(factors: Sides, total: Any, eps: Any) -> Sides:
  """Inverse fourth roots of both factors; inverse square root of a single one."""
  sides = len(jax.tree.leaves(factors))

  def root(factor):
    values, vectors = jnp.linalg.eigh((factor / total).astype(factor.dtype))
    values = jnp.maximum(values, eps * values[..., -1:]) + jnp.finfo(factor.dtype).tiny
    scaled = vectors * (values ** (-0.5 / sides)).astype(factor.dtype)[..., None, :]
    return matmul(scaled, vectors.mT)

  return in_turn(root, factors)


class GraftState(NamedTuple):
  """direction, magnitude: the states of the two rules."""

  direction: Any
  magnitude: Any


def graft(
  direction: optax.GradientTransformation, magnitude: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  r"""The direction of one rule with the size of another: $d\, \lVert a \rVert / \lVert d \rVert$.

  Frobenius norms of each matrix `[..., rows, columns]` by itself, zero where $d$ is zero (Agarwal
  et al., arXiv 2002.11803). A step of Shampoo, whatever the state of its roots, is thus as long as
  Adam's would be, and Adam's learning rate can be taken over.
  """
  direction = optax.with_extra_args_support(direction)
  magnitude = optax.with_extra_args_support(magnitude)

  def init(params):
    return GraftState(direction.init(params), magnitude.init(params))

  def update(updates, state, params=None, **extra):
    d, direction_state = direction.update(updates, state.direction, params, **extra)
    a, magnitude_state = magnitude.update(updates, state.magnitude, params, **extra)
    return jax.tree.map(_sized, d, a), GraftState(direction_state, magnitude_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _sized(d: jax.Array, a: jax.Array) -> jax.Array:
  norm = jnp.linalg.norm(d, axis=(-2, -1), keepdims=True)
  wanted = jnp.linalg.norm(a, axis=(-2, -1), keepdims=True).astype(d.dtype)
  return d * jnp.where(norm > 0, wanted / jnp.where(norm > 0, norm, 1), 0)


def shampoo(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  *,
  eps: float = 1e-6,
  every: int = 10,
  max_size: int = 8192,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Average gradients whitened by fourth roots of row and column moments, with Adam's step length.

  $U = L^{-1/4} M R^{-1/4}$ and $W \leftarrow W - \alpha\,(\lVert A \rVert U / \lVert U \rVert +
  \lambda W)$ with $A$ = Adam's direction for $W$ by itself (Gupta et al., arXiv 1802.09568;
  grafted as in Shi et al., arXiv 2309.06497, algorithm 2); see `scale_by_shampoo` and `graft`.

  Differs from Shi et al.: $\epsilon$ is a floor, relative to the largest eigenvalue; matrices are
  not cut into blocks (give `Matrix(cut=...)` in `matrices`); no start with the grafted rule alone.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number; about Adam's.
    b1: weight of the past in $M$ and in Adam's first moment, in [0, 1).
    b2: weight of the past in $L$, $R$ and in Adam's second moment, in [0, 1).
    eps: eigenvalues of $L$ and of $R$ below this share of the largest one are raised to it.
    every: steps between computations of the roots.
    max_size: a side longer than this is left out.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay; see `DECAY`.
    rest: the direction of everything that is no matrix; None is Adam with `b1`, `b2`.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  core = scale_by_shampoo(b1, b2, eps=eps, every=every, max_size=max_size)
  return matrix_chain(
    bucket_by_shape(graft(core, optax.scale_by_adam(b1, b2))),
    learning_rate,
    weight_decay=weight_decay,
    mask=mask,
    rest=optax.scale_by_adam(b1, b2) if rest is None else rest,
    matrices=matrices,
    axes=axes,
  )
