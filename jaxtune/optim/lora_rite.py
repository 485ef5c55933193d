"""LoRA-RITE: adaptive moments for LoRA that do not depend on how the product is factored."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.optim.descent import descend
from jaxtune.optim.in_turn import after
from jaxtune.optim.lora_pairs import all_pairs, for_pairs, on_spectrum, trained_ranks
from jaxtune.optim.precision import at_least
from jaxtune.optim.tables import DECAYED


class LoraRiteState(NamedTuple):
  """step: int32, updates made so far. The others are trees like the parameters:

  mu: first moments, shaped like the factors, in an orthonormal basis of the other factor's span.
  nu: second moments `[..., r, r]` in that basis.
  escaped: `[...]`, bound on the second moment that left the span of the other factor.
  bases: orthonormal bases of A's columns and B's rows, shaped like the factors.
  """

  step: jax.Array
  mu: Any
  nu: Any
  escaped: Any
  bases: Any


def scale_by_lora_rite(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformationExtraArgs:
  """The direction of LoRA-RITE for pairs of LoRA factors and nothing else: see `lora_rite`.

  Args:
    b1: weight of the past in the first moment, in [0, 1).
    b2: the same in the second.
    eps: added to the root of the second moment.

  Raises:
    InputError: at `init`, a leaf that belongs to no pair (use `for_pairs`).
  """

  def init(params):
    leaves, structure = jax.tree.flatten(at_least(params))
    ranks = {}
    for i, j in all_pairs(params, 'scale_by_lora_rite'):
      ranks[i] = ranks[j] = leaves[i].shape[-1]
    zeros = jax.tree.map(jnp.zeros_like, at_least(params))
    nu = [jnp.zeros((*x.shape[:-2], ranks[i], ranks[i]), x.dtype) for i, x in enumerate(leaves)]
    escaped = [jnp.zeros(x.shape[:-2], x.dtype) for x in leaves]
    return LoraRiteState(
      jnp.zeros((), jnp.int32),
      zeros,
      structure.unflatten(nu),
      structure.unflatten(escaped),
      jax.tree.map(jnp.zeros_like, zeros),
    )

  def update(updates, state, params=None, **extra):
    del extra
    if params is None:
      raise ValueError('lora_rite measures gradients by the factors: give update the parameters')
    count = optax.safe_increment(state.step)
    structure = jax.tree.structure(updates)
    gradients, factors, mu, nu, escaped, bases = (
      jax.tree.leaves(at_least(t)) for t in (updates, params, *state[1:])
    )

    def moved(g, inverse, carry, mu, nu, escaped, done):
      """A factor `[..., side, r]`: step and new moments in the other factor's present basis."""
      g = g @ inverse
      carried = carry @ nu @ carry.mT
      was = jnp.linalg.eigvalsh(after(nu, done))
      lost = (was - jnp.linalg.eigvalsh(after(carried, was))).max(-1)
      escaped = b2 * (escaped + jnp.maximum(lost, 0))
      nu = b2 * carried + (1 - b2) * (g.mT @ g) / g.shape[-2]
      bias = 1 - b2**count
      spectrum = after(nu / bias, lost)
      root = on_spectrum(lambda x: 1 / (jnp.sqrt(x) + eps), spectrum, escaped / bias)
      mu = b1 * (mu @ carry.mT) + (1 - b1) * (g @ root)
      return (mu / (1 - b1**count)) @ inverse.mT, mu, nu, escaped

    done = None
    with jax.default_matmul_precision('highest'):
      for i, j in all_pairs(updates, 'scale_by_lora_rite'):
        # From here on W + X Y^T with X = A and Y = B^T, as in the paper: both factors are thin.
        x, g, m, before = ((v[i], v[j].mT) for v in (factors, gradients, mu, bases))
        first = _span(after(x[0], done))
        now, inverse = zip(first, _span(after(x[1], first)), strict=True)
        done = now[1]
        used = trained_ranks(factors[i], factors[j])[..., None, :]
        for at, own, other in ((i, 0, 1), (j, 1, 0)):
          carry = now[other].mT @ before[other]
          move, moment, nu[at], escaped[at] = moved(
            g[own], inverse[other], carry, m[own], nu[at], escaped[at], done
          )
          done = moment
          thin = move * used, moment, now[own]
          gradients[at], mu[at], bases[at] = thin if at == i else (v.mT for v in thin)
    new = (structure.unflatten(v) for v in (mu, nu, escaped, bases))
    return structure.unflatten(gradients), LoraRiteState(count, *new)

  return optax.GradientTransformationExtraArgs(init, update)


def lora_rite(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Moments for LoRA whose step of the product is the same however it is factored.

  For $W + s A B$ and $B^\top = U R$ with orthonormal columns U, A is moved by

  $\bar g = g_A R^{-1}, \quad P = U_t^\top U_{t-1}$,
  $\rho \leftarrow b_2 (\rho + \max_i [\lambda_i(V) - \lambda_i(P V P^\top)]), \quad
  V \leftarrow b_2 P V P^\top + (1 - b_2)\, \bar g^\top \bar g / \mathrm{in}$,
  $M \leftarrow b_1 M P^\top + (1 - b_1)\, \bar g\, (V + \rho I)^{-1/2}, \quad
  A \leftarrow A - \alpha (M R^{-\top} + \lambda A)$

  with Adam's bias corrections of M, V and $\rho$, and B likewise from the same state (Yen et al.,
  arXiv 2410.20625, Algorithm 1; sums there are averages here, as in the authors' code). Replacing
  A, B by $A R^{-1}$, $R B$ changes neither this step of $A B$ nor any later one. State: mu and
  the last U, so as many numbers as Adam.

  What is singular is left out by pseudo-inverses, to rounding: B = 0 at the start, and components
  that the gradients have not yet reached (fewer rows than r), where the authors' code divides
  noise by $\epsilon$. It neither clips nor skips, as that code can. A global clip of the *raw*
  gradients depends on the factors' size: leave `clip_norm` out.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    b1: weight of the past in the first moment, in [0, 1).
    b2: the same in the second.
    eps: added to the root of the second moment.
    weight_decay: $\lambda$, decoupled.
    mask: which parameters decay.
    rest: the rule for leaves outside of pairs; None is Adam with the same b1 and b2.

  Raises:
    InputError: at `init`, a tree without a pair of LoRA factors.
  """
  rest = optax.scale_by_adam(b1, b2) if rest is None else rest
  direction = for_pairs(scale_by_lora_rite(b1, b2, eps), rest)
  return descend(direction, learning_rate, weight_decay, mask)


def _span(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  r"""For $x = U R$, `[..., side, r]`: the basis U and $R^+$, `[..., r, r]`.

  U are left singular vectors; those whose singular value is a rounding error are zero.
  """
  rank = x.shape[-1]
  q, upper = jnp.linalg.qr(x)
  left, sizes, right = jnp.linalg.svd(upper, full_matrices=False)
  kept = sizes > 10 * rank * jnp.finfo(x.dtype).eps * sizes[..., :1]
  inverse = jnp.where(kept, 1 / jnp.where(kept, sizes, 1), 0)
  wider = [(0, 0)] * (x.ndim - 1) + [(0, rank - sizes.shape[-1])]  # a side shorter than the rank
  basis = (q @ left) * kept[..., None, :]
  return jnp.pad(basis, wider), jnp.pad(right.mT * inverse[..., None, :], wider)
