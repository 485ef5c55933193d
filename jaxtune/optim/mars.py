"""MARS: gradients corrected by their last change, a variance reduction for adaptive rules."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.descent import descend
from jaxtune.optim.per_layer import STACKED, per_layer
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAYED


class GradientDifferenceState(NamedTuple):
  """The last gradient, float32 (or float64)."""

  previous: Any


def scale_by_gradient_difference(
  gamma: float = 0.025,
  b1: float = 0.95,
  clip: float = 1.0,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""$c_t = g_t + \gamma\,\frac{\beta_1}{1-\beta_1}\,(g_t - g_{t-1})$, clipped to a norm of `clip`.

  The approximate MARS (Yuan et al., arXiv 2411.10438): the exact one takes $g_{t-1}$ at the present
  batch, for a second pass. As in the authors' code, $g_0 = 0$ (the paper
  starts with no difference) and the norm is that of one parameter. One float32 per parameter of
  state.

  Args:
    gamma: strength of the correction, >= 0; 0 leaves the gradient, clipped.
    b1: the first moment's weight of the past in the rule that follows, in [0, 1).
    clip: largest norm of a corrected parameter, > 0; infinity does not clip.
    axes: `(pattern, number of stacked leading axes)`; each layer of a stack has its own norm.

  Raises:
    InputError: at `init`, a leaf that no rule of `axes` covers or that has fewer axes than it says.
  """

  def init(params):
    return GradientDifferenceState(optax.tree.zeros_like(params))

  def update(updates, state, params=None):
    del params
    scale = gamma * b1 / (1 - b1)
    corrected = jax.tree.map(lambda g, last: g + scale * (g - last), updates, state.previous)
    return corrected, GradientDifferenceState(updates)

  def clipped(updates, state, params=None):
    del params
    return jax.tree.map(lambda c: c / jnp.maximum(1, _norm(c) / clip), updates), state

  return in_precision(
    optax.chain(
      optax.GradientTransformation(init, update),
      per_layer(optax.GradientTransformation(optax.init_empty_state, clipped), axes),
    )
  )


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x)))


def mars(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.95,
  b2: float = 0.99,
  gamma: float = 0.025,
  eps: float = 1e-8,
  clip: float = 1.0,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""MARS-AdamW: AdamW on gradients corrected by their last change.

  AdamW with $c_t$ in place of $g_t$ in both moments (Yuan et al., arXiv 2411.10438, Algorithm 2,
  approximate); see `scale_by_gradient_difference`. All parameters take part; the authors' code
  gives vectors to AdamW unless told otherwise (`optimize_1d`). 12 bytes of state per parameter.

  Args:
    learning_rate: a number or a function from the step to a number.
    b1: weight of the past in the first moment and in the correction.
    b2: weight of the past in the second moment.
    gamma: strength of the correction.
    eps: added to the root of the second moment.
    clip: largest norm of a corrected parameter.
    weight_decay: decoupled.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  corrected = scale_by_gradient_difference(gamma, b1, clip, axes)
  direction = optax.chain(corrected, optax.scale_by_adam(b1, b2, eps))
  return descend(direction, learning_rate, weight_decay, mask)
