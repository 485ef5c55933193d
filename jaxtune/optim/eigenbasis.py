"""Any elementwise rule, run in the eigenbasis of the gradients' second moments: SOAP's idea."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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
from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError

LINEAR = ('mu', 'trace', 'ema', 'm', 'm1', 'm2')
"""Fields of Optax's states that are sums of gradients, as a first moment is."""


class EigenbasisState(NamedTuple):
  """State of a rule that runs in an eigenbasis.

  step: int32, updates made so far.
  factors: averages of G G^T `[..., rows, rows]` and G^T G `[..., columns, columns]`, `Sides` under
    the path of each matrix; None where a side is longer than `max_size`.
  bases: the orthonormal eigenvectors of the factors, as columns, in the same places.
  scales: estimates of the factors' eigenvalues in these bases `[..., n]`, or None (without `kl`).
  inner: state of the inner rule, in the present bases.
  """

  step: jax.Array
  factors: Any
  bases: Any
  scales: Any
  inner: Any


def in_eigenbasis(
  inner: optax.GradientTransformation,
  *,
  every: int = 10,
  beta: float = 0.95,
  max_size: int = 10_000,
  skip_first: bool = False,
  kl: bool = False,
  linear: Sequence[str] = LINEAR,
) -> optax.GradientTransformationExtraArgs:
  r"""Runs an elementwise rule on gradients turned into the eigenbasis of their second moments.

  $u = Q_L\, f(Q_L^\top G Q_R)\, Q_R^\top$ with $f$ = `inner`, where $Q_L$, $Q_R$ are the
  eigenvectors of $L \leftarrow \beta L + (1-\beta) G G^\top$ and $R \leftarrow \beta R + (1-\beta)
  G^\top G$ (Vyas et al., arXiv 2409.11321, algorithm 3). With Adam as $f$ this is SOAP. Leaves are
  `[..., rows, columns]`, the leading axes a batch. State per matrix: $2 (rows^2 + columns^2)$
  numbers and the state of $f$.

  The bases start at the eigenvectors of the first factors, and are turned every `every` steps by
  one power iteration and a QR decomposition, after the update, so that a gradient never chooses
  its own basis. First moments inside $f$ then turn along; second moments stay with their column.
  (The reference sorts the columns by eigenvalue and the second moments with them. Here every column
  keeps its place: the same update, whatever $f$ keeps.) Directions that have had no gradient get a
  fixed basis, not the arbitrary one of a decomposition, so that runs are reproducible at low rank.

  Rows and columns that never had a gradient (the padding of a LoRA rank) get no update.

  Under `jax.vmap` over runs the decompositions are computed at every step.

  Args:
    inner: a rule that treats every element by itself; parameters that it sees are turned as well.
    every: steps between changes of the bases, at least 1.
    beta: weight of the past in the factors, in [0, 1).
    max_size: a side with more rows (columns) than this keeps the identity as its basis.
    skip_first: the first update is zero and leaves no trace in `inner`, as in the reference. By
      default the first step is that of `inner` in the original basis, and the moments start with
      the first gradient as seen in the first eigenbasis.
    kl: fit the factors by KL divergence: $L$ averages $G R^{-1} G^\top / columns$ and $R$ averages
      $G^\top L^{-1} G / rows$ (Lin et al., arXiv 2509.03378). The inverses come from running
      estimates of the eigenvalues in the present bases, which start at 0.1 after the first step and
      stay above $\max(10, \min(n, 4000))^{-2}$, as in the authors' code.
    linear: fields of the state of `inner` that are linear in the gradients and turn with the basis;
      all others stay as they are. See `LINEAR`.

  Raises:
    InputError: at `init`, a leaf with fewer than two axes; `every` below 1.
  """
  if every < 1:
    raise InputError(f'every is {every!r}; give the steps between changes of basis, at least 1')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    params = at_least(params)

    def start(x, n):
      return identity(x, n) if n <= max_size else None

    bases = each_side(start, params)
    factors = jax.tree.map(jnp.zeros_like, bases)
    scales = jax.tree.map(lambda q: jnp.ones_like(q[..., 0]), bases) if kl else None
    return EigenbasisState(jnp.zeros((), jnp.int32), factors, bases, scales, inner.init(params))

  def update(updates, state, params=None, **extra):
    updates, params = at_least(updates), at_least(params)
    first = state.step == 0

    def run(bases):
      turned = jax.tree.map(_into, updates, bases)
      seen = None if params is None else jax.tree.map(_into, params, bases)
      return turned, *inner.update(turned, state.inner, seen, **extra)

    turned, direction, inner_state = run(state.bases)
    scales = state.scales
    if kl:
      present = jax.tree.map(_whitened_grams, updates, state.bases, scales)
      scales = _averaged(beta, scales, jax.tree.map(_whitened_squares, turned, scales))
      scales = jax.tree.map(lambda s: jnp.maximum(s, _floor(s)), scales)
    else:
      present = jax.tree.map(grams, updates, state.bases)
    factors = _averaged(beta, state.factors, present)
    direction = jax.tree.map(multiply, direction, state.bases)
    direction = jax.tree.map(where_seen, direction, factors)
    if skip_first:
      direction = jax.tree.map(lambda u: jnp.where(first, 0, u), direction)

    def keep():
      return state.bases, scales, inner_state

    def begin():
      bases = in_turn(_eigenvectors, factors)
      tenths = jax.tree.map(lambda s: jnp.full_like(s, 0.1), scales)
      return bases, tenths, state.inner if skip_first else run(bases)[2]

    def turn():
      bases = in_turn(_power_iteration, factors, state.bases)
      change = jax.tree.map(lambda old, new: matmul(new.mT, old), state.bases, bases)
      return bases, scales, _carry(inner_state, change, linear)

    branch = jnp.where(first, 1, jnp.where(state.step % every == 0, 2, 0))
    bases, scales, inner_state = jax.lax.switch(branch, (keep, begin, turn))
    count = optax.safe_increment(state.step)
    return direction, EigenbasisState(count, factors, bases, scales, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _into(x: jax.Array, bases: Sides) -> jax.Array:
  return multiply(x, jax.tree.map(lambda q: q.mT, bases))


def _averaged(beta: Any, old: Any, new: Any) -> Any:
  return jax.tree.map(lambda x, y: (beta * x + (1 - beta) * y).astype(x.dtype), old, new)


def _eigenvectors(factor: jax.Array) -> jax.Array:
  """Eigenvectors of a factor; neither signs nor those of eigenvalue zero hang on rounding."""
  n = factor.shape[-1]
  values, vectors = jnp.linalg.eigh(factor)
  null = (values <= _noise(values))[..., None, :]
  seen = jnp.where(null, 0, vectors)
  unit = identity(factor, n)
  rest = unit - matmul(seen, seen.mT)
  # Numbers that are distinct, and so are their means, tell the unseen directions apart.
  distinct = jnp.diag(jnp.sqrt(jnp.arange(1, n + 1, dtype=factor.dtype)))
  apart = matmul(rest, matmul(distinct, rest)) + 2 * n * (unit - rest)
  vectors = jnp.where(null, jnp.linalg.eigh(apart)[1], vectors)
  return jnp.where(jnp.sum(vectors, -2, keepdims=True) < 0, -vectors, vectors)


def _power_iteration(factor: jax.Array, basis: jax.Array) -> jax.Array:
  """QR of factor times basis, columns in the order of their eigenvalues and each in its place."""
  product = matmul(factor, basis)
  values = jnp.sum(basis * product, -2, keepdims=True)
  # Without the noise, columns of eigenvalue zero would be replaced by rounding errors.
  order = jnp.argsort(-values, axis=-1)
  q, _ = jnp.linalg.qr(jnp.take_along_axis(product + _noise(values) * basis, order, -1))
  return jnp.take_along_axis(q, jnp.argsort(order, axis=-1), -1)


def _noise(values: jax.Array) -> jax.Array:
  """The size below which an eigenvalue may be a rounding error (measured: 4 eps of the largest)."""
  return 32 * jnp.finfo(values.dtype).eps * jnp.max(values, -1, keepdims=True)


def _whitened_grams(g: jax.Array, bases: Sides, scales: Sides) -> Sides:
  r"""$G R^{-1} G^\top / columns$ and $G^\top L^{-1} G / rows$."""
  by_rows, by_columns = g, g.mT
  if bases.columns is not None:
    by_rows = matmul(g, bases.columns) * jax.lax.rsqrt(scales.columns)[..., None, :]
  if bases.rows is not None:
    by_columns = matmul(by_columns, bases.rows) * jax.lax.rsqrt(scales.rows)[..., None, :]
  rows, columns = grams(by_rows, bases).rows, grams(by_columns.mT, bases).columns
  return Sides(
    None if rows is None else rows / g.shape[-1],
    None if columns is None else columns / g.shape[-2],
  )


def _whitened_squares(turned: jax.Array, scales: Sides) -> Sides:
  """The diagonals of `_whitened_grams` in the present bases."""
  rows = 1.0 if scales.rows is None else scales.rows[..., :, None]
  columns = 1.0 if scales.columns is None else scales.columns[..., None, :]
  squares = turned * turned
  return Sides(
    None if scales.rows is None else jnp.mean(squares / columns, -1),
    None if scales.columns is None else jnp.mean(squares / rows, -2),
  )


def _floor(scale: jax.Array) -> float:
  return max(10, min(scale.shape[-1], 4000)) ** -2.0


def _carry(state: Any, change: Any, linear: Sequence[str]) -> Any:
  """The state with its linear fields in the new bases."""
  is_sides = lambda x: isinstance(x, Sides)  # noqa: E731
  changes = dict(jax.tree_util.tree_flatten_with_path(change, is_leaf=is_sides)[0])

  def carry(path, x):
    for i, key in enumerate(path):
      if isinstance(key, jax.tree_util.GetAttrKey) and key.name in linear:
        sides = changes.get(path[i + 1 :])
        return x if sides is None else multiply(x, sides).astype(x.dtype)
    return x

  return jax.tree_util.tree_map_with_path(carry, state)
