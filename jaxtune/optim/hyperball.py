"""Hyperball: matrices keep the norm they start with, so that the rate is an angle."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.matrices import MATRICES, Matrix, for_matrices
from jaxtune.optim.muon import scale_by_muon
from jaxtune.optim.orthogonalize import Coefficients
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import in_precision
from jaxtune.optim.soap import scale_by_soap
from jaxtune.typing import InputError


class HeldNormsState(NamedTuple):
  """step: int32, updates so far. norms: Frobenius norms at the start, `[..., 1, 1]` a matrix."""

  step: jax.Array
  norms: Any


def hold_norms(
  inner: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  *,
  rest_learning_rate: optax.ScalarOrSchedule | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Steps of a fixed length on the sphere of a matrix's first norm $R = \lVert W_0\rVert_F$.

  $W \leftarrow R\,\mathrm{n}(W - \alpha R\,\mathrm{n}(u))$, $\mathrm{n}(x) = x / \lVert x\rVert_F$,
  with the direction $u$ of `inner`, and $\theta \leftarrow \theta - \alpha' u$ for all else (Wen et
  al., arXiv 2606.16899). It is the end of a chain and takes the rate itself, in place of
  `scale_by_learning_rate` and of weight decay; what `inner` does to the length of $u$ is of no
  effect on matrices. Each layer of a stack has its own norm. State: 4 bytes a matrix, and `inner`.

  Where we differ: the paper's code divides by the norm of the present weights, which drifts by
  rounding; here, as in heavyball, the first norm is kept. A direction of zero and a rate of zero
  leave the weights bit for bit as they are. A matrix that starts at zero (B of LoRA) has no sphere
  and takes the plain step of all else.

  Args:
    inner: the direction of the step, before sign and rate: `optax.scale_by_adam()`.
    learning_rate: $\alpha$, about the angle of a step in radians, 0.003 to 0.03; a number or a
      function from the step to a number.
    rest_learning_rate: $\alpha'$; None is $\alpha$. Embeddings and norms want Adam's own rate.
    matrices: which leaves are held, and their axes, see `MATRICES`: by default neither embeddings,
      heads, norms nor biases.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  rest = learning_rate if rest_learning_rate is None else rest_learning_rate
  end = for_matrices(
    _on_sphere(learning_rate, rest),
    optax.scale_by_learning_rate(rest),
    matrices=matrices,
    axes=axes,
  )
  return in_precision(optax.chain(inner, end))


def adam_h(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  rest_learning_rate: optax.ScalarOrSchedule | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam on the sphere of each matrix's first norm, plain Adam for all else (AdamH).

  See `hold_norms` (Wen et al., arXiv 2606.16899). There is no weight decay: the sphere is in its
  place.

  Args:
    learning_rate: $\alpha$, about the angle of a step in radians, 0.003 to 0.03.
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    eps: keeps the division finite.
    rest_learning_rate: the rate of all that is not held; None is $\alpha$.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  return hold_norms(
    optax.scale_by_adam(b1, b2, eps),
    learning_rate,
    rest_learning_rate=rest_learning_rate,
    matrices=matrices,
    axes=axes,
  )


def muon_h(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.95,
  *,
  nesterov: bool = True,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  sharding: NamedSharding | PartitionSpec | None = None,
  rest: optax.GradientTransformation | None = None,
  rest_learning_rate: optax.ScalarOrSchedule | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Muon on the sphere of each matrix's first norm, Adam for all else (MuonH).

  `hold_norms` (Wen et al., arXiv 2606.16899) around `scale_by_muon`.

  Args:
    learning_rate: $\alpha$, about the angle of a step in radians, 0.003 to 0.03.
    momentum: $\mu$, in [0, 1).
    nesterov: whether the present gradient counts once more.
    steps: Newton-Schulz iterations.
    coefficients: of these, see `newton_schulz`.
    dtype: of the factors of their products; None is float32.
    sharding: how whole matrices are divided over devices, see `bucket_by_shape`.
    rest: the direction of everything that is no matrix; None is `optax.scale_by_adam()`.
    rest_learning_rate: the rate of all that is not held; None is $\alpha$.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  core = scale_by_muon(
    momentum,
    nesterov=nesterov,
    steps=steps,
    coefficients=coefficients,
    dtype=dtype,
    sharding=sharding,
  )
  rest = optax.scale_by_adam() if rest is None else rest
  return hold_norms(
    for_matrices(core, rest, matrices=matrices, axes=axes),
    learning_rate,
    rest_learning_rate=rest_learning_rate,
    matrices=matrices,
    axes=axes,
  )


def soap_h(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.95,
  b2: float = 0.95,
  *,
  shampoo_beta: float = 0.95,
  eps: float = 1e-8,
  every: int = 10,
  max_size: int = 10_000,
  rest: optax.GradientTransformation | None = None,
  rest_learning_rate: optax.ScalarOrSchedule | None = None,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""SOAP on the sphere of each matrix's first norm, Adam for all else (SOAPH).

  `hold_norms` (Wen et al., arXiv 2606.16899) around `scale_by_soap` (Vyas et al., arXiv
  2409.11321).

  Args:
    learning_rate: $\alpha$, about the angle of a step in radians, 0.003 to 0.03.
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    shampoo_beta: weight of the past in the averages that give the bases.
    eps: keeps the division finite.
    every: steps between changes of the bases.
    max_size: a side longer than this keeps the identity as its basis.
    rest: the direction of everything that is no matrix; None is Adam with `b1`, `b2`, `eps`.
    rest_learning_rate: the rate of all that is not held; None is $\alpha$.
    matrices: see `MATRICES`.
    axes: see `STACKED`.
  """
  core = scale_by_soap(b1, b2, shampoo_beta=shampoo_beta, eps=eps, every=every, max_size=max_size)
  rest = optax.scale_by_adam(b1, b2, eps) if rest is None else rest
  return hold_norms(
    for_matrices(bucket_by_shape(core), rest, matrices=matrices, axes=axes),
    learning_rate,
    rest_learning_rate=rest_learning_rate,
    matrices=matrices,
    axes=axes,
  )


def _on_sphere(
  learning_rate: optax.ScalarOrSchedule, rest: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
  """The step of `hold_norms` for leaves `[..., rows, columns]`."""

  def init(params):
    return HeldNormsState(jnp.zeros((), jnp.int32), jax.tree.map(_norm, params))

  def update(updates, state, params=None, **extra):
    del extra
    if params is None:
      raise InputError('hold_norms needs the parameters; call update(gradients, state, params)')
    rate, plain = (r(state.step) if callable(r) else r for r in (learning_rate, rest))

    def step(u, w, held):
      length = _norm(u)
      moves = (length > 0) & (rate != 0)
      moved = w - rate * held * u / jnp.where(length > 0, length, 1)
      reached = _norm(moved)
      on_sphere = moved * (held / jnp.where(reached > 0, reached, 1)) - w
      return jnp.where(held > 0, jnp.where(moves, on_sphere, 0), -plain * u).astype(u.dtype)

    new = jax.tree.map(step, updates, params, state.norms)
    return new, HeldNormsState(optax.safe_increment(state.step), state.norms)

  return optax.GradientTransformationExtraArgs(init, update)


def _norm(x: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
