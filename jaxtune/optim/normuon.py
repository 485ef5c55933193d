"""NorMuon: Muon with the updates of all neurons brought to one size."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.matrices import MATRICES, Matrix, matrix_chain
from jaxtune.optim.matrix_shape import require_matrices
from jaxtune.optim.orthogonalize import Coefficients, orthogonalize
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import at_least
from jaxtune.optim.tables import DECAYED


class NeuronState(NamedTuple):
  """Mean squares of the updates of each output neuron, `[..., 1, columns]` a matrix."""

  nu: Any


def scale_by_neuron(
  beta2: float = 0.95, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
  r"""Divides each neuron's part of a matrix by its running RMS; the whole then has an RMS of 0.2.

  For a matrix O `[..., in, out]` and output neuron j, $v_j \leftarrow \beta_2 v_j + (1-\beta_2)\,
  \mathrm{mean}_i\, O_{ij}^2$, $\hat O_{ij} = O_{ij} / (\sqrt{v_j} + \epsilon)$, and the result is
  $0.2 \sqrt{in \cdot out}\; \hat O / \lVert \hat O \rVert_F$ (Li et al., arXiv 2510.05491,
  Algorithm 1, whose weights are `[out, in]`: its rows are our columns). Zeros give zeros. State:
  one number an output neuron.

  Args:
    beta2: $\beta_2$, weight of the past, in [0, 1).
    eps: keeps the divisions finite.

  Raises:
    InputError: at `init`, a leaf with fewer than two axes.
  """

  def init(params):
    require_matrices(params)
    return NeuronState(jax.tree.map(lambda x: jnp.zeros_like(x[..., :1, :]), at_least(params)))

  def update(updates, state, params=None, **extra):
    del params, extra
    updates = at_least(updates)

    def moment(o, v):
      return beta2 * v + (1 - beta2) * jnp.mean(o * o, axis=-2, keepdims=True)

    def scaled(o, v):
      even = o / (jnp.sqrt(v) + eps)
      norm = jnp.linalg.norm(even, axis=(-2, -1), keepdims=True)
      return 0.2 * math.sqrt(math.prod(o.shape[-2:])) * even / jnp.maximum(norm, eps)

    nu = jax.tree.map(moment, updates, state.nu)
    return jax.tree.map(scaled, updates, nu), NeuronState(nu)

  return optax.GradientTransformationExtraArgs(init, update)


def scale_by_normuon(
  momentum: float = 0.95,
  beta2: float = 0.95,
  *,
  nesterov: bool = True,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  eps: float = 1e-8,
  sharding: NamedSharding | PartitionSpec | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""The orthogonal factor of a matrix's momentum with even neurons, at an RMS of 0.2.

  `scale_by_muon`, then `scale_by_neuron`, both inside one `bucket_by_shape`.

  Args:
    momentum: the paper's $\beta_1$, in [0, 1).
    beta2: weight of the past in the mean squares of neurons, in [0, 1).
    nesterov: whether the present gradient counts once more.
    steps: Newton-Schulz iterations.
    coefficients: see `newton_schulz`.
    dtype: of the factors of products, see `newton_schulz`.
    eps: keeps the divisions by neurons finite.
    sharding: how whole matrices are divided over devices, see `bucket_by_shape`.
  """
  return bucket_by_shape(
    optax.chain(
      optax.trace(momentum, nesterov),
      orthogonalize(steps, coefficients, dtype),
      scale_by_neuron(beta2, eps),
    ),
    sharding,
  )


def normuon(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.95,
  beta2: float = 0.95,
  eps: float = 1e-8,
  *,
  nesterov: bool = True,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  sharding: NamedSharding | PartitionSpec | None = None,
  weight_decay: float = 0.1,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Muon with an adaptive rate for each output neuron; AdamW for all else.

  $\theta \leftarrow \theta - \alpha\,(u + \lambda\theta)$ with u of `scale_by_normuon`, whose RMS
  of 0.2 makes the rate that of AdamW (Li et al., arXiv 2510.05491, Algorithm 1). State: 4 bytes a
  parameter of a matrix and 4 an output neuron.

  Where we differ: the paper's algorithm has no Nesterov term, its code has, and so do we; the code
  keeps the norm of the orthogonal factor in place of an RMS of 0.2, and decays only where update
  and parameter agree in sign.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    momentum: the paper's $\beta_1$, in [0, 1).
    beta2: weight of the past in the mean squares of neurons, in [0, 1).
    eps: keeps the divisions by neurons finite.
    nesterov: whether the present gradient counts once more.
    steps: Newton-Schulz iterations.
    coefficients: 'standard', 'polar_express' or rows of numbers, see `newton_schulz`.
    dtype: of the factors of products; None is float32.
    sharding: how whole matrices are divided over devices, see `bucket_by_shape`.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    rest: the direction of everything that is no matrix; None is `optax.scale_by_adam()`.
    matrices: which leaves are matrices, see `MATRICES`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  core = scale_by_normuon(
    momentum,
    beta2,
    nesterov=nesterov,
    steps=steps,
    coefficients=coefficients,
    dtype=dtype,
    eps=eps,
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
