"""Shapes of matrices: what is one, and how long a step it should get."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxtune import tree
from jaxtune.optim.precision import at_least
from jaxtune.typing import InputError

FACTORS: dict[str, Callable[[int, int], float]] = {
  'rms': lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
  'spectral': lambda rows, columns: math.sqrt(max(1.0, columns / rows)),
  'mup': lambda rows, columns: math.sqrt(columns / rows),
}


def scale_by_matrix_shape(mode: str = 'rms') -> optax.GradientTransformationExtraArgs:
  r"""Multiplies each matrix `[..., in, out]` by a number that its shape gives.

  For an orthogonal factor, all of whose singular values are about 1:

  - 'rms': $0.2 \sqrt{\max(in, out)}$, an RMS of 0.2, which is about that of Adam's updates, so that
    Adam's rate and decay fit (Liu et al., arXiv 2502.16982, equation 4; torch's `match_rms_adamw`).
  - 'spectral': $\sqrt{\max(1, out/in)}$ (Jordan et al., 2024; torch's `original`).
  - 'mup': $\sqrt{out/in}$, so that outputs change alike at every width (Yang et al., arXiv
    2310.17813; Bernstein, 2025, "Deriving Muon").

  The reference codes keep weights as `[out, in]`, so their rows are our columns. No state.

  Args:
    mode: rms, spectral or mup.

  Raises:
    InputError: an unknown mode; at `init`, a leaf with fewer than two axes.
  """
  factor = shape_factor(mode)

  def init(params):
    require_matrices(params)
    return optax.EmptyState()

  def update(updates, state, params=None, **extra):
    del params, extra
    return jax.tree.map(lambda x: factor(*x.shape[-2:]) * x, at_least(updates)), state

  return optax.GradientTransformationExtraArgs(init, update)


def shape_factor(mode: str) -> Callable[[int, int], float]:
  """The function from rows and columns that a mode of `scale_by_matrix_shape` names."""
  if mode not in FACTORS:
    raise InputError(f'adjust is {mode!r}; choose one of {", ".join(FACTORS)}')
  return FACTORS[mode]


def require_matrices(params: Any) -> None:
  """Checks that every leaf is `[..., rows, columns]`.

  Raises:
    InputError: a leaf with fewer than two axes.
  """
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if leaf.ndim < 2:
      raise InputError(
        f'{tree.path_name(path)!r} of shape {leaf.shape} is no matrix, and this rule takes nothing '
        'else; give such leaves to another rule with optim.for_matrices'
      )
