"""SOAP: Adam in the eigenbasis of Shampoo."""

from collections.abc import Sequence
from typing import Any

import optax

from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.eigenbasis import in_eigenbasis
from jaxtune.optim.matrices import MATRICES, Matrix, matrix_chain
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.tables import DECAYED


def scale_by_soap(
  b1: float = 0.95,
  b2: float = 0.95,
  *,
  shampoo_beta: float = 0.95,
  eps: float = 1e-8,
  every: int = 10,
  max_size: int = 10_000,
  skip_first: bool = False,
  kl: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Adam in the eigenbasis of the gradients' second moments (arXiv 2409.11321); see `soap`.

  Raises:
    InputError: at `init`, a leaf with fewer than two axes; `every` below 1.
  """
  return in_eigenbasis(
    optax.scale_by_adam(b1, b2, eps),
    every=every,
    beta=shampoo_beta,
    max_size=max_size,
    skip_first=skip_first,
    kl=kl,
  )


def soap(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.95,
  b2: float = 0.95,
  *,
  shampoo_beta: float = 0.95,
  eps: float = 1e-8,
  every: int = 10,
  max_size: int = 10_000,
  skip_first: bool = False,
  kl: bool = False,
  weight_decay: float = 0.01,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam in the slowly turning eigenbasis of the gradients' row and column moments, per matrix.

  With $G' = Q_L^\top G Q_R$ and Adam's moments $M$ of $G'$ and $V$ of $G'^2$, both corrected for
  their start: $W \leftarrow W - \alpha\,(Q_L \frac{M}{\sqrt V + \epsilon} Q_R^\top + \lambda W)$;
  $Q_L$, $Q_R$ are the eigenvectors of averages of $G G^\top$ and $G^\top G$ (Vyas et al., arXiv
  2409.11321, algorithm 3); see `in_eigenbasis`. Whether $W$ is `[in, out]` or `[out, in]` does not
  matter. With `kl` it is KL-SOAP (Lin et al., arXiv 2509.03378).

  Differs from the reference implementation: the first step learns (set `skip_first` for a first
  update of zero); $\epsilon$ is added after the correction of $V$, as in Adam; columns of the bases
  are not sorted, which leaves the update as it is. Differs from that of KL-SOAP: Adam's moments
  are corrected for their start.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number; the reference uses
      3e-3.
    b1: weight of the past in $M$, in [0, 1).
    b2: weight of the past in $V$, in [0, 1).
    shampoo_beta: weight of the past in the averages that give the bases, in [0, 1).
    eps: $\epsilon$.
    every: steps between changes of the bases.
    max_size: a side longer than this keeps the identity as its basis.
    skip_first: the first step only starts the bases, as in the reference.
    kl: fit the averages by KL divergence.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay; see `DECAY`.
    rest: the direction of everything that is no matrix; None is Adam with `b1`, `b2`, `eps`.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  core = scale_by_soap(
    b1,
    b2,
    shampoo_beta=shampoo_beta,
    eps=eps,
    every=every,
    max_size=max_size,
    skip_first=skip_first,
    kl=kl,
  )
  return matrix_chain(
    bucket_by_shape(core),
    learning_rate,
    weight_decay=weight_decay,
    mask=mask,
    rest=optax.scale_by_adam(b1, b2, eps) if rest is None else rest,
    matrices=matrices,
    axes=axes,
  )
