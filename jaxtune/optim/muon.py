"""Muon: steps along the orthogonal factor of the momentum of a matrix."""

from collections.abc import Sequence
from typing import Any

import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.matrices import MATRICES, Matrix, matrix_chain
from jaxtune.optim.orthogonalize import Coefficients, orthogonalize
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.tables import DECAYED


def scale_by_muon(
  momentum: float = 0.95,
  *,
  nesterov: bool = True,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  eps: float = 1e-7,
  adjust: str | None = None,
  sharding: NamedSharding | PartitionSpec | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""The orthogonal factor of the momentum of each matrix, $\mathrm{msign}(d_t)$.

  $m_t = \mu m_{t-1} + g_t$, and $d_t = g_t + \mu m_t$ with `nesterov`, else $d_t = m_t$. The
  $(1-\mu)$ form of torch's and Jordan's newer code is $(1-\mu)$ times this in both, and the length
  of $d_t$ is of no effect, so the two agree. (`optax.contrib.muon` corrects the bias of each term
  of the Nesterov form by itself: another direction in the first steps.)

  The whole rule runs inside `bucket_by_shape`: matrices that are leaves of their own are one batch
  for each shape, and their momentum is kept so, because for 48 such leaves a momentum by leaf makes
  the program twice as large. That of stacks and of large matrices keeps path and shape.

  Args:
    momentum: $\mu$, in [0, 1).
    nesterov: whether the present gradient counts once more.
    steps: Newton-Schulz iterations.
    coefficients: see `newton_schulz`.
    dtype: of the factors of products, see `newton_schulz`.
    eps: the norm of $d_t$ below which it counts as noise.
    adjust: 'rms', 'spectral' or 'mup', see `scale_by_matrix_shape`; None leaves singular values
      about 1.
    sharding: how whole matrices are divided over devices, see `bucket_by_shape`.
  """
  return bucket_by_shape(
    optax.chain(
      optax.trace(momentum, nesterov), orthogonalize(steps, coefficients, dtype, eps, adjust)
    ),
    sharding,
  )


def muon(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.95,
  *,
  nesterov: bool = True,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  adjust: str = 'rms',
  sharding: NamedSharding | PartitionSpec | None = None,
  weight_decay: float = 0.1,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Steps along the orthogonal factor of a matrix's momentum; AdamW for all else.

  $\theta \leftarrow \theta - \alpha\,(s\,\mathrm{msign}(d_t) + \lambda\theta)$ with $d_t$ of
  `scale_by_muon` and $s$ of `scale_by_matrix_shape` (Jordan et al., 2024, "Muon: An optimizer for
  hidden layers"; Liu et al., arXiv 2502.16982). With `adjust='rms'` the rate is that of AdamW; with
  'spectral' about 0.02, for the rest too. State: 4 bytes a parameter of a matrix.

  Where we differ from `torch.optim.Muon`: products are of float32 unless `dtype` says otherwise,
  the default of `adjust` is Liu et al.'s, weights are `[in, out]`, and biases and norms do not
  decay.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    momentum: $\mu$, in [0, 1).
    nesterov: whether the present gradient counts once more.
    steps: Newton-Schulz iterations.
    coefficients: 'standard', 'polar_express' or rows of numbers, see `newton_schulz`.
    dtype: of the factors of products; None is float32.
    adjust: 'rms', 'spectral' or 'mup', see `scale_by_matrix_shape`.
    sharding: how whole matrices are divided over devices, see `bucket_by_shape`.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    rest: the direction of everything that is no matrix; None is `optax.scale_by_adam()`.
    matrices: which leaves are matrices, see `MATRICES`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  core = scale_by_muon(
    momentum,
    nesterov=nesterov,
    steps=steps,
    coefficients=coefficients,
    dtype=dtype,
    adjust=adjust,
    sharding=sharding,
  )
  return matrix_chain(
    core,
    learning_rate,
    weight_decay=weight_decay,
    mask=mask,
    rest=rest,
    matrices=matrices,
    axes=axes,
  )
