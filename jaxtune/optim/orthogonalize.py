"""Orthogonalization: a matrix with its singular values moved to about 1, by products alone."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.matrix_shape import require_matrices, shape_factor
from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError

Coefficients = str | Sequence[tuple[float, float, float]]

STANDARD = ((3.4445, -4.7750, 2.0315),)
"""Jordan's coefficients of Muon, the same in every step: fast, and not convergent to 1."""

SAFETY = 1.01
_POLAR_EXPRESS = (
  (8.28721201814563, -23.595886519098837, 17.300387312530933),
  (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
  (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
  (3.3184196573706015, -2.488488024314874, 0.51004894012372),
  (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
  (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
POLAR_EXPRESS = (
  *((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in _POLAR_EXPRESS),
  (1.875, -1.25, 0.375),
)
"""Amsel et al.'s optimal coefficients for singular values from 1e-3, which converge to 1.

The margin of 1% in all rows but the last is theirs: rounding may lift a singular value above 1.
"""

TABLES = {'standard': STANDARD, 'polar_express': POLAR_EXPRESS}


def newton_schulz(
  x: jax.Array,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  eps: float | jax.Array = 1e-7,
  scale: float = 1.0,
) -> jax.Array:
  r"""About $U V^\top$ for each matrix $X = U \Sigma V^\top$ in the last two axes of `x`.

  $X \leftarrow X / \max(\lVert X \rVert_F, \epsilon)$, then `steps` times
  $X \leftarrow a X + (b A + c A^2) X$ with $A = X X^\top$ on the shorter side. A singular value
  $\sigma$ goes to the odd polynomial $a\sigma + b\sigma^3 + c\sigma^5$, so that
  $f(QXP) = Q f(X) P$ for orthogonal $Q$ and $P$, and the length of $X$ is of no effect: only a norm
  below $\epsilon$ shrinks the result, and zeros give zeros. Leading axes are a batch.

  Singular values come out in a band if they are in [0.002, 1] after the division by the norm;
  smaller ones come out below it, none above it (float32; bfloat16 widens the band by 0.01):

  - 'standard' (Jordan et al., 2024, "Muon: An optimizer for hidden layers"), 5 steps or more:
    [0.68, 1.21]. More steps do not narrow it.
  - 'polar_express' (Amsel et al., arXiv 2505.16932, Algorithm 1 and its code; the norm is taken
    1.01 times as large), 5 steps: [0.87, 1.13]; 6: [0.99, 1.01]; 7 and more: 1 within 1e-4.

  Where we differ: the reference codes work in bfloat16. Here `dtype` is that of the factors of each
  product, by default float32, and sums, norms and coefficients are at least float32. A float32
  product on an accelerator follows `jax.default_matmul_precision`.

  Args:
    x: `[..., rows, columns]`.
    steps: iterations, at least 1. Those beyond the rows of a table repeat its last row.
    coefficients: 'standard', 'polar_express', or rows of $(a, b, c)$.
    dtype: of the factors; None is that of `x`, at least float32. `jnp.bfloat16` is faster on
      accelerators.
    eps: the norm below which a matrix counts as noise.
    scale: multiplies the result, at no cost: the last step is linear in its coefficients.

  Returns:
    An array like `x`, at least float32.

  Raises:
    InputError: see `orthogonalize`; an `x` of fewer than two axes.
  """
  rows, margin = _table(steps, coefficients, dtype)
  rows[-1] = tuple(scale * row for row in rows[-1])
  if x.ndim < 2:
    raise InputError(f'newton_schulz takes [..., rows, columns], and x has the shape {x.shape}')
  x = at_least(x)
  real = x.dtype
  low = real if dtype is None else jnp.dtype(dtype)
  tall = x.shape[-2] > x.shape[-1]
  x = x.mT if tall else x

  product = functools.partial(jnp.matmul, preferred_element_type=real)

  # Every term of a step reads the same rounded factor: a rounding that only one of them saw would
  # not cancel, and the error of bfloat16 would double.
  def step(x, abc):
    a, b, c = abc
    gram = product(x, x.mT).astype(low)
    inner = (b * gram + c * product(gram, gram)).astype(low)
    return (a * x + product(inner, x)).astype(low), None

  norm = margin * jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
  x = x / jnp.maximum(norm, jnp.maximum(jnp.asarray(eps, real), jnp.finfo(real).tiny))
  # A loop keeps the program small, and what reads the result apart from its last product.
  x, _ = jax.lax.scan(step, x.astype(low), jnp.asarray(rows, real))
  return (x.mT if tall else x).astype(real)


def orthogonalize(
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  eps: float = 1e-7,
  adjust: str | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces each matrix of the updates by its orthogonal factor, $U \Sigma V^\top \to U V^\top$.

  By the Newton-Schulz iteration, so that singular values come out in a band about 1 that
  `newton_schulz` states. The last two axes of a leaf are the matrix, leading axes are a batch: the
  layers of a stack. No state. `bucket_by_shape` around it makes one batch of many leaves.

  Args:
    steps: iterations, at least 1.
    coefficients: 'standard', 'polar_express', or rows of $(a, b, c)$, the last of which repeats.
    dtype: of the factors of products; None is that of the updates, at least float32.
    eps: the Frobenius norm below which a matrix counts as noise.
    adjust: 'rms', 'spectral' or 'mup' multiplies by a number that the shape gives, as
      `scale_by_matrix_shape` does, without a pass over memory.

  Raises:
    InputError: fewer than one step, an unknown name, rows that are not three finite numbers, a
      dtype that is not floating; at `init`, a leaf with fewer than two axes.
  """
  _table(steps, coefficients, dtype)
  factor = (lambda rows, columns: 1.0) if adjust is None else shape_factor(adjust)

  def init(params):
    require_matrices(params)
    return optax.EmptyState()

  def update(updates, state, params=None, **extra):
    del params, extra

    def one(x):
      return newton_schulz(x, steps, coefficients, dtype, eps, factor(*x.shape[-2:]))

    return jax.tree.map(one, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _table(
  steps: int, coefficients: Coefficients, dtype: Any
) -> tuple[list[tuple[float, ...]], float]:
  """A row for each step, and what the norm is multiplied by."""
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
    raise InputError(f'steps is {steps!r}; give a whole number of iterations, at least 1')
  try:
    floating = dtype is None or jnp.issubdtype(dtype, jnp.floating)
  except TypeError:
    floating = False
  if not floating:
    raise InputError(f'dtype is {dtype!r}; give a float dtype such as jnp.bfloat16')
  if isinstance(coefficients, str):
    if coefficients not in TABLES:
      raise InputError(
        f'coefficients is {coefficients!r}; choose one of {", ".join(TABLES)}, or give rows of '
        'three numbers (a, b, c)'
      )
    rows = [tuple(row) for row in TABLES[coefficients]]
  else:
    try:
      rows = [tuple(float(x) for x in row) for row in coefficients]
    except (TypeError, ValueError):
      rows = []
    if not rows or not all(len(row) == 3 and all(map(math.isfinite, row)) for row in rows):
      raise InputError(
        f'coefficients is {coefficients!r}; give one or more rows of three finite numbers (a, b, c)'
      )
  margin = SAFETY if coefficients == 'polar_express' else 1.0
  return [rows[min(i, len(rows) - 1)] for i in range(steps)], margin
