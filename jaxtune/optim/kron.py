"""PSGD: a preconditioner with one triangular factor a side, learned so that it whitens."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.kronecker import Sides, each_side, identity, matmul
from jaxtune.optim.matrices import MATRICES, Matrix, matrix_chain
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import at_least
from jaxtune.optim.tables import DECAYED
from jaxtune.typing import InputError


class KronState(NamedTuple):
  """State of PSGD.

  step: int32, updates made so far.
  since: int32, updates since the factors last changed.
  factors: upper triangular Q `[..., n, n]`, or its diagonal `[..., n]` for sides longer than
    `max_size` or of one element; `Sides` under the path of each matrix.
  """

  step: jax.Array
  since: jax.Array
  factors: Any


def thinning(step: jax.Array) -> jax.Array:
  """Steps between updates of Q: 1 for 500 steps, then e-fold in 1000 steps, 33.3 at last."""
  return jnp.clip(jnp.exp((step - 500) / 1000), 1, 1 / 0.03)


def scale_by_kron(
  *,
  precond_lr: float = 0.1,
  every: int | Callable[[jax.Array], jax.Array] = thinning,
  max_size: int = 8192,
  init_scale: float = 1.0,
  clip: float = 1.1,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""$P G = Q_L^\top Q_L\, G\, Q_R^\top Q_R$ with factors that learn to whiten what comes in.

  Each update of Q is a step on $E[g^\top P g + v^\top P^{-1} v]$, least at $P = E[g
  g^\top]^{-1/2}$, within the group of triangular matrices. With $A = Q_L G Q_R^\top$ and $B =
  Q_L^{-\top} V Q_R^{-1}$ for a $V$ of independent normal numbers, $\Delta = A A^\top - B B^\top$
  and $N = A A^\top + B B^\top$: $Q_L \leftarrow Q_L - \mu\, triu(\Delta)\, Q_L / \lVert N
  \rVert_2$, and $Q_R$ likewise by $A^\top A$ and $B^\top B$ (Li, arXiv 1512.04202; Pooladzandi and
  Li, arXiv 2402.04553). The spectral norm is estimated from below by one power iteration that
  starts at the longest row. The result is scaled down to an RMS of `clip` where it is above.

  It whitens its input, so chain `optax.ema` before it as `kron` does. $V$ is zero in rows and
  columns where $G$ is: padding and parameters that never had a gradient leave $Q$ alone and stay.

  Args:
    precond_lr: $\mu$, the learning rate of Q, >= 0.
    every: steps between updates of Q, a number or a function from the step to a number.
    max_size: a side with more rows (columns) than this has a diagonal Q.
    init_scale: Q starts at $\sqrt{s}\, I$ on both sides.
    clip: the largest root mean square of a matrix of the result.
    seed: of the draws of $V$, one a step for all matrices of a shape.

  Raises:
    InputError: at `init`, a leaf with fewer than two axes; a number `every` below 1.
  """
  if isinstance(every, int) and every < 1:
    raise InputError(f'every is {every!r}; give the steps between updates of Q, at least 1')

  def init(params):
    def start(x, n):
      q = identity(x, n) if 1 < n <= max_size else jnp.ones((*x.shape[:-2], n), x.dtype)
      return q * jnp.asarray(init_scale, x.dtype) ** 0.5

    zero = jnp.zeros((), jnp.int32)
    return KronState(zero, jnp.copy(zero), each_side(start, at_least(params)))

  def update(updates, state, params=None, **extra):
    del params, extra
    updates = at_least(updates)

    def fit():
      key = jax.random.fold_in(jax.random.key(seed), state.step)

      def one(g, q):
        # Matrices of one shape share a draw, so that a stack gets what its layers would.
        probe = jax.random.normal(key, g.shape[-2:], g.dtype)
        return _fitted(g, jnp.broadcast_to(probe, g.shape), q, precond_lr)

      return jax.tree.map(one, updates, state.factors)

    interval = every(state.step) if callable(every) else every
    due = state.since + 1 >= interval
    factors = jax.lax.cond(due, fit, lambda: state.factors)
    whitened = jax.tree.map(
      lambda g, q: _clipped(_applied(_applied(g, q), q, back=True), clip), updates, factors
    )
    since = jnp.where(due, 0, state.since + 1)
    return whitened, KronState(optax.safe_increment(state.step), since, factors)

  return optax.GradientTransformationExtraArgs(init, update)


def _applied(x: jax.Array, q: Sides, back: bool = False) -> jax.Array:
  r"""$Q_L X Q_R^\top$, or with `back` $Q_L^\top X Q_R$."""

  def left(q, x):
    if q.ndim < x.ndim:
      return q[..., :, None] * x
    return matmul(q.mT if back else q, x)

  return left(q.columns, left(q.rows, x).mT).mT


def _solved(x: jax.Array, q: Sides) -> jax.Array:
  r"""$Q_L^{-\top} X Q_R^{-1}$."""

  def left(q, x):
    if q.ndim < x.ndim:
      return x / q[..., :, None]
    return jax.lax.linalg.triangular_solve(q, x, left_side=True, lower=False, transpose_a=True)

  return left(q.columns, left(q.rows, x).mT).mT


def _fitted(g: jax.Array, v: jax.Array, q: Sides, rate: Any) -> Sides:
  alive = jnp.any(g != 0, -1, keepdims=True) & jnp.any(g != 0, -2, keepdims=True)
  a, b = _applied(g, q), _solved(jnp.where(alive, v, 0), q)
  rows = _step(q.rows, a, b, rate)
  columns = _step(q.columns, a.mT, b.mT, rate)
  return _balanced(rows, columns, g.ndim - 2)


def _balanced(rows: jax.Array, columns: jax.Array, lead: int) -> Sides:
  """Both factors with the same largest element: in range, and the product stays as it is."""

  def largest(q):
    return jnp.max(jnp.abs(q), range(lead, q.ndim))

  def times(q, ratio):
    return q * jnp.sqrt(ratio).reshape(*ratio.shape, *(1,) * (q.ndim - lead))

  ratio = largest(columns) / largest(rows)
  return Sides(times(rows, ratio), times(columns, 1 / ratio))


def _step(q: jax.Array, a: jax.Array, b: jax.Array, rate: Any) -> jax.Array:
  tiny = jnp.finfo(q.dtype).tiny
  if q.ndim < a.ndim:
    aa, bb = jnp.sum(a * a, -1), jnp.sum(b * b, -1)
    size = jnp.max(aa + bb, -1, keepdims=True) + tiny
    return (q - rate * (aa - bb) * q / size).astype(q.dtype)
  aa, bb = matmul(a, a.mT), matmul(b, b.mT)
  size = _spectral_norm(aa + bb) + tiny
  return (q - matmul(rate * jnp.triu(aa - bb) / size, q)).astype(q.dtype)


def _spectral_norm(x: jax.Array) -> jax.Array:
  """A lower bound of the norm of symmetric matrices `[..., n, n]`, as `[..., 1, 1]`."""
  largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1)
  longest = jnp.argmax(jnp.sum(x * x, -1, keepdims=True), -2, keepdims=True)
  row = matmul(jnp.take_along_axis(x, longest, -2), x)
  length = jnp.linalg.norm(row, axis=-1, keepdims=True)
  return largest * jnp.linalg.norm(
    matmul(row / jnp.maximum(length, jnp.finfo(x.dtype).tiny), x), axis=-1, keepdims=True
  )


def _clipped(x: jax.Array, clip: Any) -> jax.Array:
  rms = jnp.sqrt(jnp.mean(x * x, (-2, -1), keepdims=True))
  return (x * jnp.minimum(clip / (rms + 1e-6), 1)).astype(x.dtype)


def kron(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  *,
  precond_lr: float = 0.1,
  every: int | Callable[[jax.Array], jax.Array] = thinning,
  max_size: int = 8192,
  init_scale: float = 1.0,
  clip: float = 1.1,
  seed: int = 0,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""PSGD with triangular Kronecker factors that learn to whiten the average gradient.

  $W \leftarrow W - \alpha\,(Q_L^\top Q_L M Q_R^\top Q_R + \lambda W)$ with $M$ the average of the
  gradients, corrected for its start (Li, arXiv 1512.04202; Pooladzandi and Li, arXiv 2402.04553);
  see `scale_by_kron` for how the factors learn.

  As the widespread Kron of E. Walters, whose defaults these are. Differs: Q is updated at fixed
  steps, not at random ones; its factors are balanced at each update (which changes rounding alone);
  rows and columns that never had a gradient draw no noise.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number; about Adam's.
    b1: weight of the past in $M$, in [0, 1).
    precond_lr: the learning rate of Q, >= 0.
    every: steps between updates of Q, a number or a function from the step to a number.
    max_size: a side longer than this has a diagonal Q.
    init_scale: Q starts at $\sqrt{s}\, I$ on both sides.
    clip: the largest root mean square of a matrix of the direction.
    seed: of the noise in the updates of Q.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay; see `DECAY`.
    rest: the direction of everything that is no matrix; None is Adam.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  core = scale_by_kron(
    precond_lr=precond_lr,
    every=every,
    max_size=max_size,
    init_scale=init_scale,
    clip=clip,
    seed=seed,
  )
  return matrix_chain(
    bucket_by_shape(optax.chain(optax.ema(b1), core)),
    learning_rate,
    weight_decay=weight_decay,
    mask=mask,
    rest=rest,
    matrices=matrices,
    axes=axes,
  )
