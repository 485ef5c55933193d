"""Gradient descent and momentum as the article writes them, and the end of every ready chain."""

from typing import Any

import jax
import optax

from jaxtune.optim.precision import in_precision


def descend(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float | jax.Array,
  mask: Any,
) -> optax.GradientTransformationExtraArgs:
  r"""$\theta \leftarrow \theta - \alpha\,(u + \lambda \theta)$ with $u$ of `direction`.

  Arithmetic and state are at least float32.

  Args:
    direction: gives $u$, whose sign is still the gradient's.
    learning_rate: $\alpha$, a number or a function from the step to a number.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
  """
  return in_precision(
    optax.chain(
      direction,
      optax.add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


def gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
  r"""$\theta_{t+1} = \theta_t - \alpha\, g_t$ (Cauchy, 1847). No state.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
  """
  return in_precision(optax.scale_by_learning_rate(learning_rate))


def momentum(
  learning_rate: optax.ScalarOrSchedule, beta: float = 0.9
) -> optax.GradientTransformationExtraArgs:
  r"""Steps along an average of the gradients, in the $(1-\beta)$ form.

  $v_t = \beta v_{t-1} + (1-\beta)\, g_t$ with $v_0 = 0$, and
  $\theta_{t+1} = \theta_t - \alpha\, v_t$.

  The average keeps the size of a gradient, so $\alpha$ means the same for every $\beta$. The heavy
  ball $v_t = \beta v_{t-1} + g_t$ (Polyak, 1964; `optax.sgd(momentum=...)`, torch's SGD) takes
  steps $1/(1-\beta)$ times longer: ten times for $\beta = 0.9$. One float32 per parameter of state.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    beta: weight of the past, in [0, 1).
  """
  return in_precision(
    optax.chain(optax.ema(beta, debias=False), optax.scale_by_learning_rate(learning_rate))
  )
