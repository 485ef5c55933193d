"""What a run carries from step to step; everything else is frozen or given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune.typing import InputError, Key


class State(NamedTuple):
  """All that changes in a step, and all that a checkpoint holds besides the data cursor.

  Attributes:
    trainable: the trained leaves, `None` where a leaf is frozen.
    opt: the optimizer's state, hyperparameters included.
    step: int32 scalar, the number of steps taken.
    key: the run's PRNG key; step n uses `fold_in(key, n)`.
  """

  trainable: Any
  opt: Any
  step: jax.Array
  key: Key


def init_state(trainable: Any, optimizer: optax.GradientTransformation, key: Key) -> State:
  """The state before the first step.

  The trained leaves are copied once: a step donates its state, and donation must never delete the
  arrays that the caller holds.

  Raises:
    InputError: nothing trains.
  """
  if not jax.tree.leaves(trainable):
    raise InputError(
      'nothing trains: the rules match no parameter with True; print them with '
      'tree.format_routing(tree.routing(rules, params))'
    )
  trainable, key = jax.device_put((trainable, key), may_alias=False)
  # One program: leaf by leaf, a start would compile dozens.
  return State(trainable, jax.jit(optimizer.init)(trainable), jnp.zeros((), jnp.int32), key)
