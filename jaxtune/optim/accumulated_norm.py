"""A step size that shrinks with the gradients seen so far: one scalar for the whole tree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.precision import at_least


class AccumulatedNormState(NamedTuple):
  """Sum over steps and leaves of squared gradients (float32, or float64 for float64 parameters)."""

  total: jax.Array


def scale_by_accumulated_norm(
  decay: float = 1.0, power: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  r"""Divides the update by $(1 + \mathrm{decay} \cdot S_t)^{\mathrm{power}}$,
  $S_t = \sum_{i \le t} \lVert g_i \rVert^2$.

  The sum runs over all leaves and all steps, the present gradient included, so the very first step
  is already divided. `power=1` is the adaptive rate; `power=1/2` with `decay=1/b0^2` is
  AdaGrad-Norm with its rate divided by $b_0$, see `adagrad_norm`. Memory: one scalar.

  Args:
    decay: how fast the rate falls, per squared unit of gradient, >= 0; 0 leaves updates as they
      are.
    power: exponent of the divisor.
  """

  def init(params):
    real = jnp.finfo(jnp.result_type(jnp.float32, *jax.tree.leaves(params))).dtype
    return AccumulatedNormState(jnp.zeros((), real))

  def update(updates, state, params=None, **extra):
    del params, extra
    updates = at_least(updates)
    total = state.total + jnp.asarray(optax.tree.norm(updates, squared=True), state.total.dtype)
    divisor = (1.0 + decay * total) ** power
    scaled = jax.tree.map(lambda g: (g / divisor).astype(g.dtype), updates)
    return scaled, AccumulatedNormState(total)

  return optax.GradientTransformationExtraArgs(init, update)


def adaptive_rate(
  learning_rate: optax.ScalarOrSchedule, beta: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  r"""Gradient descent with $\alpha_t = \alpha / (1 + \beta \sum_{i=1}^{t} \lVert g_i \rVert^2)$.

  The sum runs over all parameters and all steps up to and including the present one.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    beta: how fast the rate falls, per squared unit of gradient, >= 0; 0 is gradient descent.
  """
  return optax.chain(
    scale_by_accumulated_norm(beta, power=1.0), optax.scale_by_learning_rate(learning_rate)
  )


def adagrad_norm(
  learning_rate: optax.ScalarOrSchedule, b0: float = 0.1
) -> optax.GradientTransformationExtraArgs:
  r"""AdaGrad-Norm: gradient descent with $\eta / b_t$, $b_t^2 = b_{t-1}^2 + \lVert g_t \rVert^2$.

  One step size for all parameters, which converges for every $\eta$ and $b_0$ (Ward, Wu and Bottou,
  arXiv 1806.01811, Algorithm 1). No step is longer than $\eta$, so a small $b_0$ does no harm. One
  scalar of state.

  Args:
    learning_rate: $\eta$, a number or a function from the step to a number.
    b0: $b_0$ > 0, in units of the gradient's norm; 0.1 is ours, the paper has none.
  """
  return optax.chain(
    scale_by_accumulated_norm(1 / b0**2, power=0.5),
    optax.scale(1 / b0),
    optax.scale_by_learning_rate(learning_rate),
  )
