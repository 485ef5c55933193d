"""The one step of all lanes, compiled once."""

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import adapt, losses, train, tree
from jaxtune.sweep.lanes import Lanes, count, stack, take
from jaxtune.typing import Batch, InputError, Metrics, Params

AXIS = 'lanes'
_BEHIND = re.compile(r'(head|norm|pooler|projection|decoder_norm)/')  # all layers
Step = Callable[[Lanes, Params, Batch], tuple[Lanes, Metrics]]


def make_step(step: Any, *, own_batches: bool = False) -> Step:
  """`(lanes, base, batch) -> lanes, metrics [K]`, pure, from the step of one run.

  Args:
    step: from `train.make_step`; where lanes have `weights`, `(weights) -> step`. What differs
      between lanes is data in their states: the rule of `optimizer` there may be that of any lane.
    own_batches: whether each lane has a batch of its own, `[K, B, ...]`. With one batch for all,
      what no lane trains below the first trained layer is computed once, see `shared_layers`.
  """

  def lane(run: Lanes, base: Params, batch: Batch) -> tuple[Lanes, Metrics]:
    own = step(run.weights) if run.weights else step
    state, metrics = own(run.state, tree.combine(run.own, base), batch)
    return run._replace(state=state), metrics

  return jax.vmap(lane, in_axes=(0, None, 0 if own_batches else None))


class Program(NamedTuple):
  """What runs lanes.

  Attributes:
    step: compiled; it donates the lanes.
    compiled: the same, for a look at what it needs.
    lanes: the runs before their first step, on their devices.
    base: what they stand on.
    load: puts runs side by side on the devices, as many as the step takes, or others to evaluate.
    place: puts a host batch on the devices.
    evaluate: `(lanes, batches) -> one dict of metrics a lane`, of any number of them, without
      dropout; all see the same batches.
    batch: the shapes of a batch, placed.
  """

  step: Step
  compiled: jax.stages.Compiled
  lanes: Lanes
  base: Params
  load: Callable[[Sequence[Lanes]], Lanes]
  place: Callable[[Batch], Batch]
  evaluate: Callable[..., list[dict[str, float]]]
  batch: Any


def prepare(
  lanes: Lanes,
  base: Params,
  objective: Any,
  optimizer: optax.GradientTransformation,
  batch: Batch,
  *,
  judge: losses.Objective | None = None,
  accumulate: int = 1,
  arguments: train.Arguments | None = None,
  own_batches: bool = False,
  devices: Sequence[jax.Device] | None = None,
) -> Program:
  """Places lanes on the devices and compiles their step.

  Args:
    lanes: from `stack`.
    base: of any of the runs.
    objective: what all of them minimize; where they have `weights`, `(weights) -> objective`.
    optimizer: the rule of any of them, see `make_step`.
    batch: a host batch; `[K, B, ...]` with `own_batches`.
    judge: what `evaluate` measures, the same for all; `objective` by default.
    accumulate, arguments: as of `train.make_step`.
    own_batches: see `make_step`.
    devices: over which lanes are spread, the base whole on each; the first one by default.

  Raises:
    InputError: lanes that the devices do not divide, or with weights and nothing to judge them by.
  """
  size = count(lanes)
  devices = jax.devices()[:1] if devices is None else list(devices)
  if size % len(devices):
    raise InputError(
      f'{size} lanes cannot be spread over {len(devices)} devices; take '
      f'{size + -size % len(devices)} lanes'
    )
  grid = Mesh(np.array(devices), (AXIS,))
  spread = NamedSharding(grid, PartitionSpec(AXIS))
  whole = NamedSharding(grid, PartitionSpec())
  lanes = jax.device_put(lanes, spread, may_alias=False)
  base = jax.device_put(base, whole)
  place = functools.partial(jax.device_put, device=spread if own_batches else whole)
  example = place(batch)

  def one(objective: Any) -> train.Step:
    return train.make_step(objective, optimizer, accumulate=accumulate, arguments=arguments)

  if lanes.weights and judge is None:
    raise InputError('lanes with weights minimize different objectives; give one for `judge`')
  judge = judge or objective
  of_weights = (lambda weights: one(objective(weights))) if lanes.weights else one(objective)
  step = make_step(of_weights, own_batches=own_batches)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(spread, spread))
  compiled = jitted.lower(lanes, base, example).compile()

  def evaluation(run: Lanes, base: Params, batch: Batch) -> Any:
    return train.make_evaluation(judge)(run.state.trainable, tree.combine(run.own, base), batch)

  first = jax.eval_shape(lambda lanes: jax.tree.map(lambda x: x[0], lanes), lanes)
  together = len(devices) > 1 or _shared(first.state.trainable, tree.combine(first.own, base)) > 0
  alone, side_by_side = jax.jit(evaluation), jax.jit(jax.vmap(evaluation, in_axes=(0, None, None)))
  measure = judge.measure if isinstance(judge, losses.Measured) else None

  def evaluate(lanes: Lanes, batches: Sequence[Batch]) -> list[dict[str, float]]:
    batches = [jax.device_put(batch, whole) for batch in batches]
    if together:
      parts = jax.device_get([side_by_side(lanes, base, batch) for batch in batches])
      found = [jax.tree.map(operator.itemgetter(lane), parts) for lane in range(count(lanes))]
    else:  # one at a time is as fast, and takes the memory of one
      runs = (take(lanes, lane) for lane in range(count(lanes)))
      found = [jax.device_get([alone(run, base, batch) for batch in batches]) for run in runs]
    return [train.totalled(parts, measure) for parts in found]

  def load(runs: Sequence[Lanes]) -> Lanes:
    return jax.device_put(stack(runs), whole if len(runs) % len(devices) else spread)

  return Program(
    step=compiled,
    compiled=compiled,
    lanes=lanes,
    base=base,
    load=load,
    place=place,
    evaluate=evaluate,
    batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example),
  )


def shared_layers(params: Params) -> int:
  """How many layers run once for all lanes of one batch: those below everything that trains.

  A stack is cut in front of the layers that train where the method says so (`adapt.last_layers`); a
  segment with one trained leaf runs in every lane, all of its layers.

  Args:
    params: what a method returned.
  """
  return _shared(*adapt.trainable(params))


def _shared(trainable: Params, frozen: Params) -> int:
  trained = [path for path in tree.paths(trainable) if not _BEHIND.match(path)]
  names = [name for name in ('encoder', 'decoder') if isinstance(frozen.get(name), Mapping)]
  if any(path.split('/')[0] not in names for path in trained):
    return 0  # embeddings, or a prompt
  layers = 0
  for name in names:
    for segment in tree.segments(frozen[name]):
      if any(path.startswith(f'{name}/{segment}/') for path in trained):
        return layers
      first, end = tree.bounds(segment)
      layers += end - first
  return layers
