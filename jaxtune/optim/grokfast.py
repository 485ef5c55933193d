"""Grokfast: the slow part of the gradient is amplified."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.descent import descend
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAYED


class SlowGradientState(NamedTuple):
  """step: int32, updates made. average: of the gradients, float32 (or float64)."""

  step: jax.Array
  average: Any


def amplify_slow_gradients(
  alpha: float = 0.98, lamb: float = 2.0
) -> optax.GradientTransformationExtraArgs:
  r"""$g_t \leftarrow g_t + \lambda h_t$ with $h_t = \alpha h_{t-1} + (1-\alpha) g_t$.

  Grokfast-EMA (Lee et al., arXiv 2405.20233), a low-pass filter before any rule. As in the authors'
  code $h_1 = g_1$, so a constant gradient grows $1 + \lambda$ times from the first step on. One
  float32 per parameter of state.

  Args:
    alpha: weight of the past, in [0, 1).
    lamb: $\lambda$, how much of the average is added, >= 0; 0 leaves the gradient as it is.
  """

  def init(params):
    return SlowGradientState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

  def update(updates, state, params=None):
    del params
    first = state.step == 0
    average = jax.tree.map(
      lambda g, h: jnp.where(first, g, alpha * h + (1 - alpha) * g), updates, state.average
    )
    amplified = jax.tree.map(lambda g, h: g + lamb * h, updates, average)
    return amplified, SlowGradientState(optax.safe_increment(state.step), average)

  return in_precision(optax.GradientTransformation(init, update))


def grokfast_adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  alpha: float = 0.98,
  lamb: float = 2.0,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW on gradients whose slow part is amplified.

  AdamW with $g_t + \lambda h_t$ in place of $g_t$ (Lee et al., arXiv 2405.20233); see
  `amplify_slow_gradients`. 12 bytes of state per parameter.

  Args:
    learning_rate: a number or a function from the step to a number.
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    alpha: weight of the past in the slow average $h$.
    lamb: how much of the average is added.
    eps: added to the root of the second moment.
    weight_decay: decoupled.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
  """
  direction = optax.chain(amplify_slow_gradients(alpha, lamb), optax.scale_by_adam(b1, b2, eps))
  return descend(direction, learning_rate, weight_decay, mask)
