"""Many runs side by side: what each has of its own, above one frozen base that none of them moves.

A run is its state, the few frozen leaves that its method made for it (the scale of a LoRA, a
dropout, random projections), and the numbers of its objective. All else is the base, which has no
lane axis and is held once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxtune import adapt, train, tree
from jaxtune.typing import InputError, Key, Params

BESIDE = ('start', 'fisher')  # top-level entries that a run has of its own, see `adapt.with_start`


class Lanes(NamedTuple):
  """Runs side by side, whose leaves have them as the first axis `[K, ...]`; without it, one run.

  Attributes:
    state: of the runs; `step` and `key` too are `[K]`, so that lanes may be at different steps.
    own: the frozen leaves of each run, None where the base has the leaf.
    weights: of the objective, by name, float32; empty where all runs minimize the same.
  """

  state: train.State
  own: Params
  weights: Mapping[str, jax.Array]


def split(frozen: Params) -> tuple[Params, Params]:
  """(own, base) of what does not train, each with None where the other has the leaf.

  A run's own are the fields of adapters but for the `base` that they are around, and what
  `adapt.with_start` holds.
  """

  def owned(path: str, leaf: Any) -> Any:
    if path.split('/')[0] in BESIDE:
      return jax.tree.map(lambda _: True, leaf)
    if not adapt.is_adapter(leaf):
      return jax.tree.map(lambda _: False, leaf)
    return jax.tree_util.tree_map_with_path(
      lambda field, _: tree.path_name(field).split('/')[0] != 'base', leaf
    )

  mask = tree.map_weights(owned, frozen)
  own = jax.tree.map(lambda x, mine: x if mine else None, frozen, mask)
  base = jax.tree.map(lambda x, mine: None if mine else x, frozen, mask)
  return own, base


def run(
  params: Params,
  optimizer: optax.GradientTransformation,
  key: Key,
  weights: Mapping[str, float] | None = None,
) -> tuple[Lanes, Params]:
  """(a run before its first step, the base that it stands on).

  Args:
    params: what a method of `jaxtune.adapt` returned, `fit_ranks` perhaps after it.
    optimizer: with this run's own hyperparameters, from `optim.create`: they become data in its
      state.
    key: of the run, as for `train.init_state`.
    weights: numbers of its objective, which `prepare` then makes of them.

  Raises:
    InputError: no method was applied, or nothing trains.
  """
  trainable, frozen = adapt.trainable(params)
  own, base = split(frozen)
  state = train.init_state(trainable, optimizer, key)
  numbers = {name: jnp.asarray(x, jnp.float32) for name, x in (weights or {}).items()}
  return Lanes(state, jax.tree.map(jnp.copy, own), numbers), base


def stack(runs: Sequence[Lanes]) -> Lanes:
  """Runs side by side.

  Raises:
    InputError: none is given, or they have not all the same leaves; the first difference is named.
  """
  if not runs:
    raise InputError('no runs were given; lanes need at least one')
  for number, other in enumerate(runs[1:], 1):
    different = tree.difference(runs[0], other)
    if different:
      raise InputError(
        f'run {number} cannot be a lane beside run 0: {different}; ranks are made alike with '
        'sweep.fit_ranks, other differences need a program of their own'
      )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def count(lanes: Lanes) -> int:
  """K, how many there are."""
  return int(lanes.state.step.shape[0])


def take(lanes: Lanes, lane: int) -> Lanes:
  """One run: its `state` is an ordinary state above `tree.combine(run.own, base)`."""
  return _take(lanes, jnp.asarray(_checked(lanes, lane), jnp.int32))


def put(lanes: Lanes, lane: int, run: Lanes) -> Lanes:
  """The lanes with another run in place of one; all others stay as they are, bit for bit.

  One program does it for every lane, and the step of the lanes is not compiled again.

  Args:
    lanes: they are donated.
    lane: from 0.
    run: from `run` or `take`.

  Raises:
    InputError: no such lane, or a run that has other leaves.
  """
  one = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x), lanes)
  different = tree.difference(one, run)
  if different:
    raise InputError(
      f'the run does not fit into lane {lane}: {different}; ranks are made alike with '
      'sweep.fit_ranks, other differences need a program of their own'
    )
  where = lanes.state.step.sharding
  run = jax.device_put(run, _whole(where))
  return _putting(where)(lanes, jnp.asarray(_checked(lanes, lane), jnp.int32), run)


def _checked(lanes: Lanes, lane: int) -> int:
  lanes_there = count(lanes)
  if not 0 <= lane < lanes_there:
    raise InputError(f'there is no lane {lane}; choose one from 0 to {lanes_there - 1}')
  return lane


@jax.jit
def _take(lanes: Lanes, lane: jax.Array) -> Lanes:
  return jax.tree.map(lambda leaf: leaf[lane], lanes)


@functools.cache
def _putting(where: Sharding) -> Callable[..., Lanes]:
  """The program that writes one run into lanes; they stay where they lie."""

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
  def put(lanes: Lanes, lane: jax.Array, run: Lanes) -> Lanes:
    return jax.tree.map(lambda leaf, one: leaf.at[lane].set(one), lanes, run)

  return put


def _whole(where: Sharding) -> Sharding:
  return NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where
