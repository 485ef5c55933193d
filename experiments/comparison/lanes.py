"""Many runs of one update rule in one compiled program: a lane each, by `jax.vmap` of the step."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.comparison.tasks import Task
from jaxtune import optim, plan, train
from jaxtune.typing import InputError


class Lanes(NamedTuple):
  """Which runs: lane i has the seed `seeds[i]` and the hyperparameters `values[name][i]`."""

  seeds: np.ndarray
  values: dict[str, np.ndarray]

  def part(self, rows: Any) -> 'Lanes':
    return Lanes(self.seeds[rows], {name: value[rows] for name, value in self.values.items()})


class Program(NamedTuple):
  """A rule on a task, compiled for `width` lanes.

  Attributes:
    start: `(seeds, values) -> state`.
    advance: `(state, data, first, end) -> (state, mean training loss, held-out loss)`; it takes the
      steps from `first` up to `end`, or none, and donates its state.
    data: what all lanes share.
    width: lanes at a time.
    bytes: what the program holds while it runs.
  """

  start: Callable[..., Any]
  advance: Callable[..., tuple[Any, jax.Array, jax.Array]]
  data: Any
  width: int
  bytes: int


class Segment(NamedTuple):
  """What some lanes did between two points of a run: losses `[lanes]`."""

  step: int
  lanes: Lanes
  loss: np.ndarray
  train_loss: np.ndarray
  seconds: float


def grid(seeds: Sequence[int], **values: Sequence[float]) -> Lanes:
  """A lane for every seed with every set of values: `grid([0, 1], learning_rate=[a, b])` is
  a0, a1, b0, b1. Several hyperparameters go together: the first of each, the second of each, ..."""
  count = len(next(iter(values.values())))
  return Lanes(
    np.tile(np.asarray(seeds, np.int32), count),
    {name: np.repeat(np.asarray(v, np.float32), len(seeds)) for name, v in values.items()},
  )


def compile_lanes(
  task: Task,
  rule: optax.GradientTransformation,
  names: Sequence[str],
  width: int,
  *,
  seed: int,
  limit: float,
) -> Program:
  """Compiles a rule for up to `width` lanes, as many as `limit` bytes hold.

  Initial parameters and batches depend on the lane's seed alone: lanes of one seed, of whatever
  rule, start alike and see the same data in the same order.

  Args:
    task: what is trained.
    rule: made by `optim.create`.
    names: hyperparameters in its state that differ from lane to lane.
    width: lanes wanted at a time.
    seed: of the whole comparison; the lanes' seeds are folded into it.
    limit: bytes.

  Raises:
    InputError: not even one lane fits.
  """
  step = train.make_step(task.objective, rule)

  def start(seed_of_lane: jax.Array, values: Mapping[str, jax.Array]) -> train.State:
    init_key, data_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), seed_of_lane))
    state = train.init_state(task.init(init_key), rule, data_key)
    return state._replace(opt=optim.set_hyperparameters(state.opt, **values))

  def advance(state: train.State, data: Any, first: jax.Array, end: jax.Array) -> Any:
    frozen = jax.tree.map(lambda _: None, state.trainable)

    def body(i: jax.Array, carry: Any) -> Any:
      state, total = carry
      batch = task.draw(data['train'], jax.random.fold_in(state.key, i))
      state, metrics = step(state, frozen, batch)
      return state, total + metrics['loss']

    state, total = lax.fori_loop(first, end, body, (state, jnp.zeros(())))
    parts = lax.map(
      lambda batch: task.objective(state.trainable, batch, None)[:2], data['held_out']
    )
    held_out = parts[0].sum() / parts[1].sum()
    return state, total / jnp.maximum(end - first, 1), held_out

  data = {'train': task.train, 'held_out': task.held_out}
  lane = jax.eval_shape(start, jnp.int32(0), dict.fromkeys(names, jnp.float32(0)))
  axes = lane_axes(advance, lane, data)
  starts = jax.jit(jax.vmap(start, out_axes=axes))
  program = jax.jit(
    jax.vmap(advance, in_axes=(axes, None, None, None), out_axes=(axes, 0, 0)), donate_argnums=0
  )

  def build(width: int) -> tuple[Any, int]:
    values = dict.fromkeys(names, jax.ShapeDtypeStruct((width,), jnp.float32))
    state = jax.eval_shape(starts, jax.ShapeDtypeStruct((width,), jnp.int32), values)
    compiled = program.lower(state, data, jnp.int32(0), jnp.int32(1)).compile()
    return compiled, plan.forecast(compiled, state, None, data).total

  compiled, needed = build(width)
  while needed > limit and width > 1:
    width = max(1, min(width - 1, int(width * limit / needed)))
    compiled, needed = build(width)
  if needed > limit:
    raise InputError(
      f'one lane of the task {task.name} takes {needed / 1e9:.2f} GB, but there are '
      f'{limit / 1e9:.2f} GB (memory_limit_gb, or half of what is free); make the task smaller'
    )
  return Program(starts, compiled, data, width, needed)


def lane_axes(advance: Callable[..., Any], lane: Any, data: Any) -> Any:
  """The axis of lanes of every leaf of a state: none for counts that are the same in all.

  A rule's `lax.cond` on its count of updates (a costly part every ten steps) stays a branch when
  the count has no lanes; with lanes it would become a select that always computes both sides.
  """
  shared = jax.tree.map(
    lambda x: None if x.shape == () and jnp.issubdtype(x.dtype, jnp.integer) else 0, lane
  )
  wide = jax.tree.map(
    lambda x, axis: x if axis is None else jax.ShapeDtypeStruct((2, *x.shape), x.dtype),
    lane,
    shared,
    is_leaf=lambda x: x is None,
  )
  mapped = jax.vmap(advance, in_axes=(shared, None, None, None), out_axes=(shared, 0, 0))
  try:
    jax.eval_shape(mapped, wide, data, jnp.int32(0), jnp.int32(1))
  except ValueError:  # a count that depends on a lane's gradients
    return jax.tree.map(lambda _: 0, lane)
  return shared


def run_lanes(program: Program, lanes: Lanes, boundaries: Sequence[int]) -> Iterator[Segment]:
  """Runs all lanes, `width` at a time, and yields what they reached at each boundary.

  Args:
    program: as `compile_lanes` gives.
    lanes: any number of them.
    boundaries: steps, ascending from 0.
  """
  for first in range(0, len(lanes.seeds), program.width):
    # The last part is filled up with lanes of its own, which are not reported.
    rows = np.arange(first, first + program.width)
    part = lanes.part(np.minimum(rows, len(lanes.seeds) - 1))
    real = rows < len(lanes.seeds)
    state = program.start(part.seeds, part.values)
    for begin, end in zip((0, *boundaries[:-1]), boundaries, strict=True):
      started = time.perf_counter()
      state, train_loss, loss = program.advance(state, program.data, np.int32(begin), np.int32(end))
      losses = np.asarray(loss)[real], np.asarray(train_loss)[real]
      yield Segment(end, part.part(real), *losses, time.perf_counter() - started)
