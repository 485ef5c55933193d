"""What a run carries from step to step; everything else is frozen or given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import shard
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


def init_state(
  trainable: Any,
  optimizer: optax.GradientTransformation,
  key: Key,
  shardings: State | None = None,
) -> State:
  """The state before the first step.

  The trained leaves are copied once: a step donates its state, and donation must never delete the
  arrays that the caller holds.

  Args:
    trainable: the trained leaves, where `shardings` wants them if it is given.
    optimizer: what makes the state of the update rule.
    key: of the run.
    shardings: of the state; without them what the optimizer makes may lie whole on one device.

  Raises:
    InputError: nothing trains.
  """
  if not jax.tree.leaves(trainable):
    raise InputError(
      'nothing trains: the rules match no parameter with True; print them with '
      'tree.format_routing(tree.routing(rules, params))'
    )
  # One program: leaf by leaf, a start would compile dozens.
  if shardings is None:
    trainable, key = jax.device_put((trainable, key), may_alias=False)
    return State(trainable, jax.jit(optimizer.init)(trainable), jnp.zeros((), jnp.int32), key)
  trainable = jax.device_put(trainable, shardings.trainable, may_alias=False)
  opt = jax.jit(optimizer.init, out_shardings=shardings.opt)(trainable)
  step = shard.put(jnp.zeros((), jnp.int32), shardings.step)
  return State(trainable, opt, step, shard.put(jnp.copy(key), shardings.key))
