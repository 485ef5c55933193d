"""Cautious updates: a step is taken only where it agrees with the present gradient."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.descent import descend
from jaxtune.optim.per_layer import STACKED, per_layer
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAYED

LEAST = 1e-3  # of the mask's mean: else one number that agrees among 10^6 is multiplied by 10^6


def cautious(
  inner: optax.GradientTransformation, axes: Sequence[tuple[str, int]] = STACKED
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps the direction $u$ of `inner` where $u\,g > 0$, and scales up what is left.

  $\phi = [u\,g > 0]$ entrywise and $u \leftarrow u\,\phi / \max(\overline\phi, 10^{-3})$ with the
  mean over one parameter (Liang et al., arXiv 2411.16085).

  The paper's scale is $d / (\lVert\phi\rVert_0 + 1)$, which halves the step of a scalar; this is
  the one that its authors' code has now. The state is that of `inner`.

  Args:
    inner: a rule that gives a direction, as the `scale_by_...` do. Its sign is still the
      gradient's: an optimizer that has multiplied by minus the learning rate would keep exactly
      the wrong entries. Weight decay goes after it.
    axes: `(pattern, number of stacked leading axes)`; each layer of a stack has its own mean.

  Raises:
    InputError: at `init`, a leaf that no rule of `axes` covers or that has fewer axes than it says.
  """
  inner = optax.with_extra_args_support(inner)
  # The gradient takes the place of the parameters, so that the stacked axes are mapped in both.
  mask = per_layer(optax.GradientTransformation(optax.init_empty_state, _agreeing), axes)

  def init(params):
    mask.init(params)
    return inner.init(params)

  def update(updates, state, params=None, **extra):
    direction, state = inner.update(updates, state, params, **extra)
    return mask.update(direction, mask.init(updates), updates)[0], state

  return in_precision(optax.GradientTransformationExtraArgs(init, update))


def _agreeing(direction: Any, state: Any, gradient: Any = None) -> tuple[Any, Any]:
  def keep(u, g):
    agree = jnp.sign(u) * jnp.sign(g) > 0  # u * g itself underflows where gradients are small
    share = jnp.maximum(jnp.mean(agree, dtype=u.dtype), LEAST)
    return jnp.where(agree, u / share, 0)

  return jax.tree.map(keep, direction, gradient), state


def cautious_adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW that steps only where its direction agrees with the gradient.

  $\theta \leftarrow \theta - \alpha\,(u\,\phi/\max(\overline\phi, 10^{-3}) + \lambda\theta)$ with
  Adam's $u$ and $\phi = [u\,g > 0]$ (Liang et al., arXiv 2411.16085); the decay is not masked. See
  `cautious`.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    eps: added to the root of the second moment.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  direction = cautious(optax.scale_by_adam(b1, b2, eps), axes)
  return descend(direction, learning_rate, weight_decay, mask)


def cautious_lion(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.99,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Lion that steps only where its direction agrees with the gradient.

  $\theta \leftarrow \theta - \alpha\,(u\,\phi/\max(\overline\phi, 10^{-3}) + \lambda\theta)$ with
  Lion's $u = \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$ and $\phi = [u\,g > 0]$ (Liang et al., arXiv
  2411.16085); the decay is not masked. See `cautious`.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    b1: weight of the past in the direction.
    b2: weight of the past in what is kept.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  direction = cautious(optax.scale_by_lion(b1, b2), axes)
  return descend(direction, learning_rate, weight_decay, mask)
