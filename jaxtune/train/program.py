"""A run on its devices: parameters placed, the one step compiled."""

import ctypes
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from jaxtune import adapt, shard
from jaxtune.losses import Measured, Objective
from jaxtune.train.evaluate import evaluate
from jaxtune.train.state import State, init_state
from jaxtune.train.step import Arguments, Step, make_evaluation, make_step
from jaxtune.typing import Batch, Key, Metrics, Params


class Program(NamedTuple):
  """What `fit` needs.

  Attributes:
    step: the compiled step; it donates its state. A batch of another shape compiles it once more.
    compiled: the step for the shapes of `batch`, for a look at what it needs.
    state: the state before the first step.
    frozen: the leaves that do not train.
    place: puts a host batch on the devices.
    evaluate: `(trainable, batches) -> metrics` of the objective, without dropout.
    batch: the shapes of the first batch, placed; where shapes differ, the largest comes first.
  """

  step: Step
  compiled: jax.stages.Compiled
  state: State
  frozen: Params
  place: Callable[[Batch], Batch]
  evaluate: Callable[..., dict[str, float]]
  batch: Any


def prepare(
  model: Any,
  params: Params,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  batches: Any,
  *,
  key: Key | None = None,
  mesh: Mapping[str, int] | None = None,
  replicate: Collection[str] = (),
  accumulate: int = 1,
  arguments: Arguments | None = None,
  example: Batch | None = None,
) -> Program:
  """Places the parameters on the devices and compiles the step.

  Args:
    model: a `ModelSpec`; its `axes` say how parameters may be cut.
    params: what a method of `jaxtune.adapt` returns: they say which of them train.
    objective: what is minimized.
    optimizer: any optax transformation.
    batches: the iterator to train on, for the shapes of its batches; its place is not changed.
    key: for dropout, the key of seed 0 by default.
    mesh: devices along its axes, see `shard.mesh`; all replicas by default.
    replicate: logical axes of parameters that stay whole, see `shard.param_shardings`.
    accumulate: micro-batches that a batch is cut into.
    arguments: more arguments of the optimizer's update, see `make_step`.
    example: a host batch as the step gets it, where `fit` makes it of those of `batches` (`roll`).

  Raises:
    InputError: parameters or batches that the mesh does not divide.
  """
  grid = shard.mesh(mesh)
  shardings = _shardings(grid, model, params, replicate)
  trainable, frozen = adapt.trainable(shard.put(params, shardings))
  key = jax.random.key(0) if key is None else key
  shapes = jax.eval_shape(lambda x: init_state(x, optimizer, key), trainable)
  states = shard.state_shardings(grid, shapes, params, shardings)
  state = init_state(trainable, optimizer, key, states)

  def place(batch: Batch) -> Batch:
    return shard.place_batch(grid, batch)

  if example is None:
    cursor = batches.get_state()
    example = next(batches)
    batches.set_state(cursor)
  example = place(example)
  step_function = make_step(objective, optimizer, accumulate=accumulate, arguments=arguments)
  compiled: dict[Any, jax.stages.Compiled] = {}

  def compile(state: State, frozen: Params, batch: Batch) -> jax.stages.Compiled:
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    if shapes not in compiled:
      compiled[shapes] = _lower(grid, step_function, states, state, frozen, batch).compile()
      _trim()
    return compiled[shapes]

  def step(state: State, frozen: Params, batch: Batch) -> tuple[State, Metrics]:
    return compile(state, frozen, batch)(state, frozen, batch)

  jitted_evaluation = jax.jit(make_evaluation(objective))

  def evaluation(*given: Any) -> Any:
    with jax.set_mesh(grid):
      return jitted_evaluation(*given)

  measure = objective.measure if isinstance(objective, Measured) else None
  return Program(
    step=step,
    compiled=compile(state, frozen, example),
    state=state,
    frozen=frozen,
    place=place,
    evaluate=lambda trainable, batches: evaluate(
      evaluation, trainable, frozen, batches, place=place, measure=measure
    ),
    batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example),
  )


def _trim() -> None:
  """Gives back to the system what the compiler has used: hundreds of MB that glibc would hold."""
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if os.name == 'posix' else None
  if trim is not None:
    trim(0)


class Lowered(NamedTuple):
  """A step for devices that need not be here; compile it with `lowered.compile()`.

  Attributes:
    lowered: the step.
    state, frozen, batch: the shapes, types and shardings of its arguments.
  """

  lowered: jax.stages.Lowered
  state: State
  frozen: Params
  batch: Batch


def lower(
  model: Any,
  params: Params,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  batch: Batch,
  grid: Mesh,
  *,
  replicate: Collection[str] = (),
  accumulate: int = 1,
  arguments: Arguments | None = None,
) -> Lowered:
  """The step of `prepare` from shapes alone, on any mesh.

  Args:
    model, objective, optimizer, replicate, accumulate, arguments: as of `prepare`.
    params: the shapes of what a method returns, from `jax.eval_shape`.
    batch: shapes of a batch of all devices together.
    grid: from `shard.mesh`, perhaps of devices that only a compiler knows.

  Raises:
    InputError: parameters or batches that the mesh does not divide.
  """

  def placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )

  shardings = _shardings(grid, model, params, replicate)
  params = placed(params, shardings)
  trainable, frozen = adapt.trainable(params)
  state = jax.eval_shape(lambda x: init_state(x, optimizer, jax.random.key(0)), trainable)
  states = shard.state_shardings(grid, state, params, shardings)
  state = placed(state, states)
  batch = placed(batch, jax.tree.map(lambda _: shard.batch_sharding(grid), batch))
  step = make_step(objective, optimizer, accumulate=accumulate, arguments=arguments)
  return Lowered(_lower(grid, step, states, state, frozen, batch), state, frozen, batch)


def _shardings(grid: Mesh, model: Any, params: Params, replicate: Collection[str]) -> Any:
  axes = model.axes(params)
  return shard.param_shardings(grid, params, axes, units=model.units, replicate=replicate)


def _lower(
  grid: Mesh, step: Step, states: Any, state: State, frozen: Params, batch: Batch
) -> jax.stages.Lowered:
  """The one way in which a step is compiled: its outputs lie where its inputs did, or it would be
  compiled a second time for them."""
  out = (states, shard.replicated(grid))
  jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
  with jax.set_mesh(grid):
    return jitted.lower(state, frozen, batch)
