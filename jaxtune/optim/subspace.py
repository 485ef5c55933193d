"""Rules that keep their moments in a low-dimensional subspace of each matrix's gradient."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.in_turn import after
from jaxtune.optim.matrices import MATRICES, Matrix, matrix_chain
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import at_least
from jaxtune.optim.tables import DECAYED
from jaxtune.typing import InputError


class Projector(NamedTuple):
  """Where the subspace of a matrix comes from.

  rank: r, the dimension; a matrix whose smaller side S is below it keeps S.
  init: gradient `[..., m, n]` of zeros -> what is kept from step to step, any tree.
  basis: (kept, gradient, step) -> (basis `[..., S, r]` or `[S, r]`, kept).
  """

  rank: int
  init: Callable[[jax.Array], Any]
  basis: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def svd_projector(rank: int = 128, every: int = 200) -> Projector:
  """The top singular vectors of the gradient, on its smaller side, found anew every so many steps.

  They are unique up to their sign; the one with a sum >= 0 is taken. State: S times r numbers a
  matrix. The singular value decomposition runs under `lax.cond`; where the step count itself is
  batched (a `vmap` over whole runs) that is a select, and it runs at every step.

  Args:
    rank: r, >= 1.
    every: steps from one decomposition to the next, >= 1.

  Raises:
    InputError: a rank or an interval below 1.
  """
  _at_least_one(rank=rank, every=every)

  def init(g):
    return jnp.zeros((*g.shape[:-2], min(g.shape[-2:]), min(rank, *g.shape[-2:])), g.dtype)

  def basis(kept, g, step):
    def fresh():
      left, _, right = jnp.linalg.svd(after(g, kept), full_matrices=False)
      vectors = (left if _wide(g) else right.mT)[..., : kept.shape[-1]]
      return jnp.where(vectors.sum(-2, keepdims=True) < 0, -vectors, vectors)

    kept = jax.lax.cond(step % every == 0, fresh, lambda: kept)
    return kept, kept

  return Projector(rank, init, basis)


def random_projector(rank: int = 256, every: int = 200, seed: int = 0) -> Projector:
  r"""Gaussian vectors with entries of variance 1/r, drawn anew every so many steps.

  $\mathbb{E}[P P^\top] = I$, so norms survive the projection to within about $1/\sqrt{r}$ whatever
  the gradient is. Nothing is kept: every step draws its basis again from the seed. Matrices with
  the same smaller side share it, so that a stack's update is that of its layers.

  Args:
    rank: r, >= 1.
    every: steps from one draw to the next, >= 1.
    seed: of the draws.

  Raises:
    InputError: a rank or an interval below 1.
  """
  _at_least_one(rank=rank, every=every)

  def basis(kept, g, step):
    shape = min(g.shape[-2:]), min(rank, *g.shape[-2:])
    key = jax.random.fold_in(jax.random.key(seed), step // every)
    return jax.random.normal(key, shape, g.dtype) / math.sqrt(shape[1]), kept

  return Projector(rank, lambda g: (), basis)


class SubspaceState(NamedTuple):
  """step: int32. bases: what the projector keeps, leaf by leaf. inner: the inner rule's state."""

  step: jax.Array
  bases: Any
  inner: Any


def in_subspace(
  inner: optax.GradientTransformation,
  projector: Projector,
  back: Literal['project', 'channel', 'tensor'] = 'project',
) -> optax.GradientTransformationExtraArgs:
  r"""Runs a rule on $R = P^\top G$, of r rows, for matrices `[..., m, n]` with $m \le n$.

  With $U$ the inner rule's update for $R$, the update is

  - `project`: $P\,U$ (GaLore, Zhao et al., arXiv 2403.03507);
  - `channel`: $G\,\mathrm{diag}(s)$, $s_j = \lVert U_{:j} \rVert / \lVert R_{:j} \rVert$ (APOLLO,
    Zhu et al., arXiv 2412.05270): only step sizes come from the subspace, the direction is of full
    rank;
  - `tensor`: $s\,G$, $s = \lVert U \rVert_F / \lVert R \rVert_F$ (APOLLO-Mini).

  A tall matrix is treated as its transpose: $R = G P$ has r columns, and a channel is a row. Where
  $R$ is zero, s is zero. Moments stay as they are when the subspace changes, as in both papers.

  Args:
    inner: an elementwise rule that needs no parameters, such as `optax.scale_by_adam()`.
    projector: `svd_projector(...)`, `random_projector(...)` or your own.
    back: how the update becomes one of the full matrix.

  Raises:
    InputError: an unknown `back`; at `init`, a leaf with fewer than two axes.
  """
  if back not in ('project', 'channel', 'tensor'):
    raise InputError(f'back is {back!r}; choose project, channel or tensor')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
      if leaf.ndim < 2:
        raise InputError(
          f'in_subspace needs matrices, and {tree.path_name(path)!r} has the shape {leaf.shape}; '
          'give such leaves to another rule with optim.for_matrices'
        )
    zeros = jax.tree.map(jnp.zeros_like, at_least(params))

    def low(g):
      rank = min(projector.rank, *g.shape[-2:])
      sides = (rank, g.shape[-1]) if _wide(g) else (g.shape[-2], rank)
      return jnp.zeros((*g.shape[:-2], *sides), g.dtype)

    bases = jax.tree.map(projector.init, zeros)
    return SubspaceState(jnp.zeros((), jnp.int32), bases, inner.init(jax.tree.map(low, zeros)))

  def update(updates, state, params=None, **extra):
    del params  # they are no part of the subspace
    full, structure = jax.tree.flatten(at_least(updates))
    kept = structure.flatten_up_to(state.bases)
    found: list[Any] = []
    for k, g in zip(kept, full, strict=True):
      previous = found[-1] if found else None
      found.append(projector.basis(after(k, previous), g, state.step))
    low = [
      basis.mT @ g if _wide(g) else g @ basis for (basis, _), g in zip(found, full, strict=True)
    ]
    moved, inner_state = inner.update(structure.unflatten(low), state.inner, None, **extra)
    if back == 'project':
      new = [
        basis @ u if _wide(g) else u @ basis.mT
        for (basis, _), u, g in zip(found, jax.tree.leaves(moved), full, strict=True)
      ]
    else:
      new = [
        g * _ratio(u, r, (-2 if _wide(g) else -1) if back == 'channel' else (-2, -1))
        for g, r, u in zip(full, low, jax.tree.leaves(moved), strict=True)
      ]
    bases = structure.unflatten([k for _, k in found])
    count = optax.safe_increment(state.step)
    return structure.unflatten(new), SubspaceState(count, bases, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


class GrowthState(NamedTuple):
  """norms: the norm of each matrix's latest update, `[...]`; 0 before the first."""

  norms: Any


def limit_growth(gamma: float = 1.01) -> optax.GradientTransformationExtraArgs:
  r"""Lets the norm of each matrix's update grow at most by a factor of $\gamma$ a step.

  $u_t \leftarrow u_t \min(1, \gamma \lVert u_{t-1} \rVert / \lVert u_t \rVert)$ for leaves
  `[..., m, n]` (Chen et al., Fira, arXiv 2410.01623, Eq. 8). The first update passes, and so does
  the one after an update of zero: in the authors' code that one is cut to a norm of 1e-8.

  Args:
    gamma: the largest growth, >= 1.
  """

  def init(params):
    return GrowthState(jax.tree.map(lambda p: jnp.zeros(p.shape[:-2], p.dtype), at_least(params)))

  def update(updates, state, params=None, **extra):
    del params, extra
    updates = at_least(updates)

    norms = jax.tree.map(lambda u: jnp.linalg.norm(u, axis=(-2, -1)), updates)

    def factor(norm, last):
      limited = (last > 0) & (norm > gamma * last)
      return jnp.where(limited, gamma * last / jnp.where(limited, norm, 1), 1)

    factors = jax.tree.map(factor, norms, state.norms)
    new = jax.tree.map(lambda u, f: (u * f[..., None, None]).astype(u.dtype), updates, factors)
    reached = jax.tree.map(lambda n, f, x: (n * f).astype(x.dtype), norms, factors, state.norms)
    return new, GrowthState(reached)

  return optax.GradientTransformationExtraArgs(init, update)


def galore(
  learning_rate: optax.ScalarOrSchedule,
  rank: int = 128,
  every: int = 200,
  scale: float = 0.25,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam in the span of the gradient's top singular vectors, all other parameters by Adam.

  $R = P^\top G$, $\theta \leftarrow \theta - \alpha\,(s\, P\,\mathrm{Adam}(R) + \lambda\theta)$,
  with $P$ the r top singular vectors of the gradient at every 200th step (Zhao et al., arXiv
  2403.03507, Algorithm 2). State of a matrix `[m, n]`, $m \le n$: $2rn + rm$ numbers. The authors'
  code scales $\epsilon$ by Adam's second bias correction and decays after the step; here both are
  as in `optax.adamw`.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    rank: r, >= 1.
    every: steps from one decomposition to the next, >= 1.
    scale: s, the paper's $\alpha$ (0.25 when pre-training, 4 when fine-tuning).
    b1: weight of the past in Adam's first moment, in [0, 1).
    b2: the same in its second.
    eps: added to the root of the second moment.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay.
    rest: the rule for all that is no matrix; None is Adam with the same b1, b2 and eps.
    matrices: which leaves are matrices, see `MATRICES`.
    axes: see `STACKED`.
  """
  adam = optax.scale_by_adam(b1, b2, eps)
  core = optax.chain(in_subspace(adam, svd_projector(rank, every)), optax.scale(scale))
  return matrix_chain(
    bucket_by_shape(core),
    learning_rate,
    weight_decay=weight_decay,
    mask=mask,
    rest=adam if rest is None else rest,
    matrices=matrices,
    axes=axes,
  )


def apollo(
  learning_rate: optax.ScalarOrSchedule,
  rank: int = 256,
  every: int = 200,
  scale: float = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  gamma: float = 1.01,
  per: Literal['channel', 'tensor'] = 'channel',
  seed: int = 0,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""The gradient with step sizes by channel, which Adam finds in a random subspace.

  $R = P^\top G$, $u = G\,\mathrm{diag}(\lVert U_{:j} \rVert / \lVert R_{:j} \rVert)$ with
  $U = \mathrm{Adam}(R)$, then the norm-growth limiter, $\theta \leftarrow \theta - \alpha\,
  (s\,u + \lambda\theta)$ (Zhu et al., arXiv 2412.05270, Algorithm 1). State of a matrix `[m, n]`,
  $m \le n$: $2rn + 1$ numbers. APOLLO-Mini is `rank=1, per='tensor', scale=128**0.5`; the authors'
  code takes the root of its `scale` itself. Here the limiter sees updates after Adam's bias
  correction (there before), and norm ratios have no $\epsilon$.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    rank: r, >= 1.
    every: steps from one draw of the subspace to the next, >= 1.
    scale: s.
    b1: weight of the past in Adam's first moment, in [0, 1).
    b2: the same in its second.
    eps: added to the root of the second moment.
    gamma: largest growth of an update's norm in one step, >= 1.
    per: one step size for each channel (entry of the larger side) or for each matrix (`tensor`).
    seed: of the subspaces.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay.
    rest: the rule for all that is no matrix; None is Adam with the same b1, b2 and eps.
    matrices: which leaves are matrices, see `MATRICES`.
    axes: see `STACKED`.
  """
  if per not in ('channel', 'tensor'):
    raise InputError(f'per is {per!r}; choose channel or tensor')
  adam = optax.scale_by_adam(b1, b2, eps)
  core = optax.chain(
    in_subspace(adam, random_projector(rank, every, seed), per),
    limit_growth(gamma),
    optax.scale(scale),
  )
  return matrix_chain(
    bucket_by_shape(core),
    learning_rate,
    weight_decay=weight_decay,
    mask=mask,
    rest=adam if rest is None else rest,
    matrices=matrices,
    axes=axes,
  )


def _wide(g: jax.Array) -> bool:
  """Whether the rows are projected."""
  return g.shape[-2] <= g.shape[-1]


def _ratio(above: jax.Array, below: jax.Array, axis: int | tuple[int, int]) -> jax.Array:
  above, below = (jnp.linalg.norm(x, axis=axis, keepdims=True) for x in (above, below))
  return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)


def _at_least_one(**values: int) -> None:
  for name, value in values.items():
    if value < 1:
      raise InputError(f'{name} is {value}; give a whole number of at least 1')
