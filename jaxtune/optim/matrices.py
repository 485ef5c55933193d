"""Which parameters are matrices, and over which axes: the table that matrix rules go by."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.optim.descent import descend
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.tables import BIASES, DECAYED, EMBEDDINGS, HEADS, NORMS
from jaxtune.typing import InputError


class Matrix(NamedTuple):
  """How the axes of a leaf, after its stacked ones, make one or more matrices.

  rows: that many axes are flattened to the rows, all others to the columns: 1 for `[in, out]`, and
    for `[D, H, K]` projections with their heads apart; 3 for a convolution `[h, w, in, out]`.
  cut: sizes of the column blocks that are matrices of their own, `(D, D, D)` for a fused
    `[D, 3 * D]` of queries, keys and values; () does not cut.
  cut_rows: the same for blocks of rows.
  """

  rows: int = 1
  cut: tuple[int, ...] = ()
  cut_rows: tuple[int, ...] = ()


MATRICES: Sequence[tuple[str, bool | Matrix]] = (
  (BIASES, False),
  (NORMS, False),
  (EMBEDDINGS, False),
  (HEADS, False),
  (r'.*', True),
)
"""Leaves that matrix rules take by default: neither biases, norms, embeddings nor heads.

`True` takes a leaf that has exactly two axes beside its stacked ones and leaves every other one to
the rule for the rest. A `Matrix` says which axes make the matrix, and fails where it does not fit.
Print it with `tree.format_routing(tree.routing(optim.MATRICES, params))`, or by `optim.describe`.
"""


class MatricesState(NamedTuple):
  """matrices: the state of the rule for matrices. rest: the state of the rule for all others."""

  matrices: Any
  rest: Any


class _View(NamedTuple):
  lead: tuple[int, ...]
  matrix: Matrix


def for_matrices(
  inner: optax.GradientTransformation,
  rest: optax.GradientTransformation,
  *,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  """Gives `inner` the leaves that are matrices, as `[..., rows, columns]`, and `rest` the others.

  The leading axes of what `inner` sees are a batch of matrices: the layers of a stack. A leaf
  `[L, in, out]` is passed as it is, under its own path; one that is cut into several matrices
  becomes a tuple of them. Both rules see holes in place of the other's leaves.

  Args:
    inner: a rule for matrices.
    rest: a rule for every other leaf.
    matrices: `(pattern, True, False or Matrix)`, see `MATRICES`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.

  Raises:
    InputError: at `init`, a leaf that no rule of a table covers, or a `Matrix` that does not fit.
  """
  inner = optax.with_extra_args_support(inner)
  rest = optax.with_extra_args_support(rest)

  def init(params):
    views = _views(matrices, axes, params)
    return MatricesState(inner.init(_matrices(views, params)), rest.init(_others(views, params)))

  def update(updates, state, params=None, **extra):
    views = _views(matrices, axes, updates)
    seen = [None, None] if params is None else [_matrices(views, params), _others(views, params)]
    taken, inner_state = inner.update(_matrices(views, updates), state.matrices, seen[0], **extra)
    others, rest_state = rest.update(_others(views, updates), state.rest, seen[1], **extra)
    return _merged(views, updates, taken, others), MatricesState(inner_state, rest_state)

  return optax.GradientTransformationExtraArgs(init, update)


def matrix_chain(
  core: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: float | jax.Array = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""The ready chain of a matrix rule: $\theta \leftarrow \theta - \alpha\,(u + \lambda \theta)$.

  $u$ comes from `core` for matrices and from `rest` for all else, so that with Adam as the rest the
  other parameters get AdamW. Arithmetic and state are at least float32.

  Args:
    core: the direction of matrices, of about the size of Adam's (an RMS of 0.2 to 1).
    learning_rate: $\alpha$, a number or a function from the step to a number.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    rest: the direction of all else; None is `optax.scale_by_adam()`.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  rest = optax.scale_by_adam() if rest is None else rest
  direction = for_matrices(core, rest, matrices=matrices, axes=axes)
  return descend(direction, learning_rate, weight_decay, mask)


def _views(matrices: Any, axes: Any, params: Any) -> list[_View | None]:
  """What each leaf is, in tree order: the axes of a matrix, or None."""
  taken, stacks = tree.routing(matrices, params), tree.routing(axes, params)
  return [_view(route, stack) for route, stack in zip(taken, stacks, strict=True)]


def _view(route: tree.Route, stack: tree.Route) -> _View | None:
  lead, own = route.shape[: stack.value], route.shape[stack.value :]
  if route.value is False or (route.value is True and len(own) != 2):
    return None
  matrix = Matrix() if route.value is True else route.value
  if not isinstance(matrix, Matrix):
    raise InputError(
      f'matrix rule {route.pattern!r} has the value {matrix!r}; give True, False or a Matrix'
    )
  sizes = math.prod(own[: matrix.rows]), math.prod(own[matrix.rows :])
  wrong = not 1 <= matrix.rows < len(own)
  wrong |= any(
    cut and (sum(cut) != size or min(cut) < 1)
    for cut, size in zip((matrix.cut_rows, matrix.cut), sizes, strict=True)
  )
  if wrong:
    raise InputError(
      f'matrix rule {route.pattern!r} makes {route.path!r} a {matrix}, but its shape after '
      f'{len(lead)} stacked axes is {own}; give sizes that fit, or False for the other rule'
    )
  return _View(lead, matrix)


def _open(view: _View, leaf: jax.Array) -> Any:
  """The leaf as its matrices: an array `[..., rows, columns]`, or a tuple where it is cut."""
  own = leaf.shape[len(view.lead) :]
  rows, columns = math.prod(own[: view.matrix.rows]), math.prod(own[view.matrix.rows :])
  whole = leaf.reshape(*view.lead, rows, columns)
  if not (view.matrix.cut or view.matrix.cut_rows):
    return whole
  bands = _split(whole, view.matrix.cut_rows, -2)
  return tuple(block for band in bands for block in _split(band, view.matrix.cut, -1))


def _split(x: jax.Array, sizes: tuple[int, ...], axis: int) -> list[jax.Array]:
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
  return jnp.split(x, ends, axis=axis)


def _close(view: _View, parts: Sequence[jax.Array], shape: tuple[int, ...]) -> jax.Array:
  """The inverse of `_open`, from its leaves."""
  width = max(len(view.matrix.cut), 1)
  bands = [
    jnp.concatenate(parts[i : i + width], -1) if width > 1 else parts[i]
    for i in range(0, len(parts), width)
  ]
  whole = jnp.concatenate(bands, -2) if len(bands) > 1 else bands[0]
  return whole.reshape(shape)


def _matrices(views: list[_View | None], params: Any) -> Any:
  leaves, structure = jax.tree.flatten(params)
  opened = [_open(v, x) if v else optax.MaskedNode() for v, x in zip(views, leaves, strict=True)]
  return jax.tree.unflatten(structure, opened)


def _others(views: list[_View | None], params: Any) -> Any:
  leaves, structure = jax.tree.flatten(params)
  return jax.tree.unflatten(
    structure, [optax.MaskedNode() if v else x for v, x in zip(views, leaves, strict=True)]
  )


def _merged(views: list[_View | None], updates: Any, taken: Any, others: Any) -> Any:
  leaves, structure = jax.tree.flatten(updates)
  matrices, rest = iter(jax.tree.leaves(taken)), iter(jax.tree.leaves(others))
  merged = []
  for view, leaf in zip(views, leaves, strict=True):
    if view is None:
      merged.append(next(rest))
    else:
      count = max(len(view.matrix.cut), 1) * max(len(view.matrix.cut_rows), 1)
      merged.append(_close(view, [next(matrices) for _ in range(count)], leaf.shape))
  return jax.tree.unflatten(structure, merged)
