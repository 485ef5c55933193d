"""LoRA gradients measured in the metric of the product: each factor scaled by the other's Gram."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.descent import descend
from jaxtune.optim.in_turn import after
from jaxtune.optim.lora_pairs import all_pairs, for_pairs, on_spectrum, trained_ranks
from jaxtune.optim.precision import at_least
from jaxtune.optim.tables import DECAYED


def scale_by_riemannian_lora(delta: float = 1e-6) -> optax.GradientTransformationExtraArgs:
  r"""$g_A \leftarrow g_A (B B^\top + \delta I)^{-1}$,
  $g_B \leftarrow (A^\top A + \delta I)^{-1} g_B$, for weights $W + s A B$.

  The gradient in a metric of the manifold of matrices of rank r (Zhang and Pilanci, arXiv
  2402.02347, Eq. 2; there $W + B A$). With $\delta = 0$ the step of $A B$ under gradient descent
  is the same for $A R^{-1}$, $R B$ with any invertible $R$. Directions in which a Gram matrix is
  zero to rounding have no gradient and get none. No state. Leaves: pairs of factors and nothing
  else, see `for_pairs`.

  Args:
    delta: damping, >= 0.

  Raises:
    InputError: at `init`, a leaf that belongs to no pair.
  """

  def init(params):
    all_pairs(params, 'scale_by_riemannian_lora')
    return optax.EmptyState()

  def update(updates, state, params=None, **extra):
    del extra
    if params is None:
      raise ValueError('gradients are scaled by the factors: give update the parameters')
    gradients, structure = jax.tree.flatten(at_least(updates))
    factors = jax.tree.leaves(at_least(params))
    done = None
    with jax.default_matmul_precision('highest'):
      for i, j in all_pairs(updates, 'scale_by_riemannian_lora'):
        a, b = factors[i], factors[j]
        used = trained_ranks(a, b)
        for_a = on_spectrum(jnp.reciprocal, after(b @ b.mT, done), delta)
        done = for_b = on_spectrum(jnp.reciprocal, after(a.mT @ a, for_a), delta)
        gradients[i] = gradients[i] @ for_a
        gradients[j] = for_b @ gradients[j]
        gradients[i] *= used[..., None, :]
        gradients[j] *= used[..., None]
    return structure.unflatten(gradients), state

  return optax.GradientTransformationExtraArgs(init, update)


def riemannian_lora(
  learning_rate: optax.ScalarOrSchedule,
  delta: float = 1e-6,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW on LoRA gradients that are scaled by the Gram matrix of the other factor.

  $g_A \leftarrow g_A (B B^\top + \delta I)^{-1}$,
  $g_B \leftarrow (A^\top A + \delta I)^{-1} g_B$, then Adam's moments of these, for weights
  $W + s A B$: "scaled AdamW" of Zhang and Pilanci (arXiv 2402.02347, Algorithm 1). Scaled gradient
  descent is `for_pairs(scale_by_riemannian_lora(), rest)` with a learning rate.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    delta: damping, >= 0.
    b1: weight of the past in the first moment, in [0, 1).
    b2: the same in the second.
    eps: added to the root of the second moment.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay.
    rest: the rule for leaves outside of pairs; None is Adam with the same b1, b2 and eps.

  Raises:
    InputError: at `init`, a tree without a pair of LoRA factors.
  """
  adam = optax.scale_by_adam(b1, b2, eps)
  core = optax.chain(scale_by_riemannian_lora(delta), adam)
  direction = for_pairs(core, adam if rest is None else rest)
  return descend(direction, learning_rate, weight_decay, mask)
