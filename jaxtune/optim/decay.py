"""Weight decay beside the decoupled one, which is `optax.add_decayed_weights`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAYED


def add_independent_decay(
  weight_decay: float | jax.Array = 0.0,
  schedule: Callable[[jax.Array], jax.Array] | None = None,
  mask: Any = DECAYED,
) -> optax.GradientTransformationExtraArgs:
  r"""Decay free of the learning rate: $\delta \leftarrow \delta - \eta_t\lambda\theta$.

  $\delta$ is the step as it will be added, so it stands *last* in a chain, after the learning rate.
  $\eta_t$ is the shape of the schedule alone, without the peak rate: the decoupled decay as it was
  first written (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2, line 12), called independent
  by Wortsman et al. (arXiv 2309.14322), who find that it makes the loss less sensitive to the
  learning rate. `optax.adamw` and torch's AdamW multiply by the peak rate too: their $\lambda$ is
  this one divided by it. A learning rate of zero does not stop it.

  Args:
    weight_decay: $\lambda$, the share of a weight lost per step at the full rate.
    schedule: $\eta_t$, step -> multiplier, the one of the learning rate; None is 1.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
  """
  if schedule is None:
    return in_precision(optax.add_decayed_weights(-weight_decay, mask))
  shape = schedule
  return in_precision(optax.add_decayed_weights(lambda step: -weight_decay * shape(step), mask))


def add_cautious_decay(
  weight_decay: float | jax.Array = 0.0, mask: Any = DECAYED
) -> optax.GradientTransformationExtraArgs:
  r"""Decay where it pulls as the update: $u \leftarrow u + \lambda\,[u\theta \ge 0]\,\theta$.

  $u$ is a direction that still has the gradient's sign, so it stands *before* the learning rate, in
  place of `optax.add_decayed_weights` (Chen et al., arXiv 2510.12402, Algorithm 1). What it adds
  never grows a weight and never shortens a step; where the rule rests, $u = 0$, it decays.

  Args:
    weight_decay: $\lambda$, as of the decoupled decay.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
  """

  def update(updates, state, params=None, **extra):
    del extra

    def add(u, w):
      agree = jnp.sign(u) * jnp.sign(w) >= 0  # u * w itself may underflow
      return u + weight_decay * jnp.where(agree, w, 0)

    return jax.tree.map(add, updates, params), state

  core = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
  return in_precision(core if mask is None else optax.masked(core, mask))
