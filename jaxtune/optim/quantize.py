"""Optimizer state kept in few bytes between updates."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.optim.codecs import Codec, bfloat16, dynamic_8bit
from jaxtune.optim.descent import descend
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.tables import DECAYED

Codecs = Sequence[tuple[str, Codec | None]]

# Copies of parameters, and matrices whose small eigenvalues or orthogonality matter.
_EXACT = (
  r'(^|/)(params0?|init_params|init_particles|x0|z|factors|roots|bases|projector)$',
  None,
)

EIGHT_BIT: Codecs = (
  (r'(^|/)(nu|nu_max|exp_avg_sq|sum_of_squares|grad_sum_sq|e_g|e_x)$', dynamic_8bit(signed=False)),
  _EXACT,
  ('', dynamic_8bit()),
)
"""Second moments unsigned, other averages signed; not copies of parameters, factors and bases."""

BFLOAT16: Codecs = (_EXACT, ('', bfloat16()))
"""The same states in bfloat16, stochastically rounded."""

SMALL = 4096  # elements of a layer's leaf; smaller ones cost nothing and are the sensitive ones


class QuantizedState(NamedTuple):
  """step: int32, updates made so far. inner: the state of the rule, with leaves encoded."""

  step: jax.Array
  inner: Any


def quantize_state(
  inner: optax.GradientTransformation,
  codec: Codecs = EIGHT_BIT,
  *,
  axes: Sequence[tuple[str, int]] = STACKED,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Keeps the moments of `inner` encoded between updates; it sees and leaves them decoded.

  Encoded are the floating-point leaves of its state that have a parameter's path and shape, from
  4,096 elements up (bitsandbytes' rule; each layer of a stack counts by itself, so a stack is its
  layers). Codes keep the parameter's path and shape, scales its leading axes, so both are sharded
  as the parameter is (`tree.state_shardings`). Blocks run along the last axis.

  Codecs are chosen by the name of the state, which is the leaf's path without its parameter's:
  `mu`, `0/nu`. Rounding draws of `BFLOAT16` differ by step and leaf, not by lane.

  Args:
    inner: the rule.
    codec: `(pattern, Codec or None)`, the first that is found in the name: `EIGHT_BIT`, `BFLOAT16`,
      or a table of your own; None leaves a state as it is. `describe` shows what came of it.
    axes: `(pattern, number of stacked leading axes)` by the parameter's path, see `STACKED`.
    seed: of codecs that round stochastically.

  Raises:
    InputError: at `init`, a state or a parameter that no rule covers.
  """
  inner = optax.with_extra_args_support(inner)

  def plan(params):
    """The shapes of the inner state, and the codec of each leaf."""
    shapes = jax.eval_shape(inner.init, params)
    return shapes, _codecs(codec, axes, shapes, params)

  def encoded(state, codecs, step):
    leaves, structure = jax.tree.flatten(state)
    key = jax.random.fold_in(jax.random.key(seed), step)
    return structure.unflatten(
      x if c is None else c.encode(x, jax.random.fold_in(key, i))
      for i, (x, c) in enumerate(zip(leaves, codecs, strict=True))
    )

  def decoded(state, codecs, shapes):
    leaves, structure = jax.tree.flatten(shapes)
    stored = structure.flatten_up_to(state)
    return structure.unflatten(
      x if c is None else c.decode(x).astype(leaf.dtype)
      for x, c, leaf in zip(stored, codecs, leaves, strict=True)
    )

  def init(params):
    step = jnp.zeros((), jnp.int32)
    return QuantizedState(step, encoded(inner.init(params), plan(params)[1], step))

  def update(updates, state, params=None, **extra):
    shapes, codecs = plan(updates if params is None else params)
    whole = decoded(state.inner, codecs, shapes)
    updates, whole = inner.update(updates, whole, params, **extra)
    step = optax.safe_increment(state.step)
    return updates, QuantizedState(step, encoded(whole, codecs, step))

  return optax.GradientTransformationExtraArgs(init, update)


def adamw_8bit(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 1e-4,
  mask: Any = DECAYED,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW with both moments in 8 bits: 2.03 bytes of state a parameter in place of 8.

  $m \leftarrow b_1 m + (1-b_1) g$, $v \leftarrow b_2 v + (1-b_2) g^2$ and
  $\theta \leftarrow \theta - \alpha (\hat m / (\sqrt{\hat v} + \epsilon) + \lambda \theta)$, where
  $m$ and $v$ are stored block-wise quantized, signed and unsigned, after each step (Dettmers et
  al., arXiv 2110.02861; `AdamW8bit` of bitsandbytes). Leaves, or layers of a stack, under 4,096
  elements stay float32. Blocks of 256 run along the last axis, so that none crosses rows or layers;
  where 256 divides that axis they are those of bitsandbytes, which flattens.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: $\epsilon$, outside the root.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    axes: see `STACKED`.
  """
  direction = quantize_state(optax.scale_by_adam(b1, b2, eps), EIGHT_BIT, axes=axes)
  return descend(direction, learning_rate, weight_decay, mask)


def _codecs(codec: Codecs, axes: Any, state: Any, params: Any) -> list[Codec | None]:
  leaves = jax.tree.leaves(params)
  stacked = [route.value for route in tree.routing(axes, params)]

  def one(leaf: Any, owner: tree.Owner | None) -> Codec | None:
    if owner is None or leaf.shape != leaves[owner.position].shape:
      return None
    own = leaf.shape[stacked[owner.position] :]
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or math.prod(own) < SMALL:
      return None
    return tree.routing(codec, {owner.state: leaf})[0].value

  return [
    one(x, o) for x, o in zip(jax.tree.leaves(state), tree.owners(state, params), strict=True)
  ]
