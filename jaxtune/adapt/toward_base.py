"""Penalties that pull what trains back to where it started: L2-SP and EWC.

The start is a frozen part of the parameters and not a constant of the penalty: a constant of a
compiled step is whole on every device, and XLA folds it for seconds per hundred megabytes.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops, tree
from jaxtune.adapt.adapted import HEAD, Adapted, beside, trainable, without
from jaxtune.adapt.lora import LoRA, without_key
from jaxtune.typing import Batch, InputError, Params, is_weight

START, FISHER = 'start', 'fisher'  # top-level names in the parameters


@dataclasses.dataclass(frozen=True)
class Penalty:
  """`(params) -> float32 scalar`, and what of the parameters is there for the penalty alone.

  Attributes:
    value: the function.
    own: top-level names in the parameters that the model does not know.
  """

  value: Callable[[Params], jax.Array]
  own: tuple[str, ...]

  def __call__(self, params: Params) -> jax.Array:
    return self.value(params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
  """The trained fields of a weight leaf as they were, for penalties only.

  Attributes:
    leaf: the weight leaf, with None for the fields that do not train.
    shape: of the weight.
  """

  leaf: Any
  shape: tuple[int, ...] = dataclasses.field(metadata={'static': True})

  def materialize(self) -> jax.Array:
    raise InputError(
      'these parameters hold their start for a penalty; take it out with adapt.without_start first'
    )

  def axes(self, names: tuple[str | None, ...]) -> 'Held':
    """Those of the leaf, without the fields that it lacks."""

    def one(field: Any, names: Any) -> Any:
      return None if field is None else names

    own = jax.tree.map(one, self.leaf, ops.axes(self.leaf, names), is_leaf=lambda x: x is None)
    return Held(own, self.shape)


def with_start(params: Params, fisher: Params | None = None) -> Adapted:
  """The parameters with a frozen copy of what trains, for `l2_sp` and `ewc` to compare with.

  Give the result to `train.prepare` in place of the parameters, and after training take the copy
  out with `without_start`. A second copy of the weights in full fine-tuning (a third with a
  `fisher`), sharded like the first; of an adapter a copy of its own few parameters.

  Args:
    params: what a method returned; methods come first.
    fisher: from `fisher`, for `ewc`.

  Raises:
    InputError: no method was applied, the parameters have an entry of that name, or `fisher` is one
      of other parameters.
  """
  parts = {START: trainable(params)[0]} | ({} if fisher is None else {FISHER: fisher})
  if fisher is not None:
    wrong = tree.difference(_shapes(parts[START]), _shapes(fisher))
    if wrong:
      raise InputError(f'the Fisher information is not that of what trains here: {wrong}')
  held = {
    name: jax.tree.map(_hold, dict(params), dict(part), is_leaf=is_weight)
    for name, part in parts.items()
  }
  return beside(params, held, 'without_start')


def without_start(params: Params) -> Adapted:
  """The parameters as they were before `with_start`, with what was trained since."""
  return without(params, START, FISHER)


def policy_and_reference(params: Params) -> tuple[Params, Params]:
  """The parameters that a model knows, and the same with all that trains as it was at the start.

  For objectives with a `reference`, such as `losses.dpo`: a reference model beside the policy costs
  a copy of what trains, which for an adapter is next to nothing. Where a method starts as the base
  model does, the reference is the base model; a prompt's is the model with the prompt that it
  started with.

  Args:
    params: from `with_start`, or what a step makes of them.

  Returns:
    `(policy, reference)`. The dropout that a step switches on is the policy's alone.

  Raises:
    InputError: parameters without a start.
  """
  start = {path: held for path, _, held in _pairs(params, START)}
  policy = {name: leaf for name, leaf in params.items() if name not in (START, FISHER)}

  def back(path: str, leaf: Any) -> Any:
    leaf = without_key(leaf)
    if path not in start:
      return leaf
    return jax.tree.map(
      lambda held, own: own if held is None else held,
      start[path],
      leaf,
      is_leaf=lambda x: x is None,
    )

  return policy, tree.map_weights(back, policy)


def l2_sp(weight: float = 0.01, new_weight: float = 0.01, new: str = HEAD) -> Penalty:
  r"""`(params) -> weight / 2 ||w - w_0||^2 + new_weight / 2 ||w_new||^2`, float32.

  Li et al. 2018, arXiv:1802.01483: `w_0` is the start (`with_start`), `w_new` what the base model
  did not have.

  Of a LoRA leaf the distance is that of the weight that it stands for,
  `||s A B - s A_0 B_0||_F^2`, through `[2R, 2R]` products: with
  `A B - A_0 B_0 = [A - A_0, A_0] [B; B - B_0] = U V` it is `tr(U^T U V V^T)`. The size of A alone,
  which says nothing, costs nothing. Of other leaves and arrays it is that of the trained fields.

  Give it to `losses.penalized`. Cost: one pass over what trains; `with_start` says what is held.

  Args:
    weight: of the distance, the paper's alpha.
    new_weight: of the size of new parameters, the paper's beta.
    new: regular expression over the paths of new parameters: by default the head of a classifier.
      `r'(?!)'` for none, as in a language model.

  Raises:
    InputError: a negative weight; or, when called, parameters without a start.
  """
  for name, value in (('weight', weight), ('new_weight', new_weight)):
    _check_weight('l2_sp', name, value)

  def penalty(params: Params) -> jax.Array:
    total = jnp.zeros(())
    for path, leaf, start in _pairs(params, START):
      if re.search(new, path):
        total += new_weight / 2 * _plain(leaf, jax.tree.map(jnp.zeros_like, start))
      else:
        total += weight / 2 * _distance(leaf, start)
    return total

  return Penalty(penalty, (START, FISHER))


def ewc(weight: float = 1.0) -> Penalty:
  r"""`(params) -> weight sum_i F_i / 2 (w_i - w_{0,i})^2`, float32.

  Elastic weight consolidation, Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3: what mattered
  to the task before, by its Fisher information F, is held in place; the rest may move. Over the
  trained fields, also in adapters: at LoRA's own start, where B is zero, A does not matter and its
  F is zero, so take `fisher` after the task that is to be kept.

  Args:
    weight: the paper's lambda. Information is per row, so this has to grow with the rows of the
      task before for the posterior that the paper derives; in practice it is searched for.

  Raises:
    InputError: a negative weight; or, when called, parameters without a start and its `fisher`.
  """
  _check_weight('ewc', 'weight', weight)

  def penalty(params: Params) -> jax.Array:
    total = jnp.zeros(())
    pairs = zip(_pairs(params, START), _pairs(params, FISHER), strict=True)
    for (_, leaf, start), (_, _, information) in pairs:
      total += weight / 2 * _plain(leaf, start, information)
    return total

  return Penalty(penalty, (START, FISHER))


def fisher(objective: Any, params: Params, batches: Iterable[Batch], rows: int = 1) -> Params:
  r"""The diagonal of the empirical Fisher information, float32.

  `F = 1/N sum_n (d log p_n / d w)^2`, where `log p_n` is minus the objective's `total` of row n: of
  its label, or of all its supervised tokens, as they are in the data (the expectation over the
  model's own labels would need one pass for each).

  Exact, from a gradient for each row: the square of a batch's mean gradient is another quantity,
  and smaller by about the batch. It takes as long as training on these rows in batches of `rows`,
  and besides F holds `rows` gradients.

  Args:
    objective: of the task to be kept. Dropout is off.
    params: its parameters, under the method that will train them on.
    batches: of that task, a few hundred rows; rows of weight zero do not count.
    rows: gradients taken at a time.

  Returns:
    A tree like `adapt.trainable(params)[0]`, for `with_start`.

  Raises:
    InputError: no row with a weight, or `rows` that does not divide a batch.
  """
  trained, frozen = trainable(params)

  def total(trained: Any, frozen: Any, row: Batch) -> tuple[jax.Array, Any]:
    loss = objective(tree.combine(trained, frozen), jax.tree.map(lambda x: x[None], row), None)
    return loss.total, loss.weight > 0

  gradient = jax.vmap(jax.grad(total, has_aux=True), (None, None, 0))

  @jax.jit
  def squares(trained: Any, frozen: Any, batch: Batch) -> tuple[Any, jax.Array]:
    def add(sums: Any, part: Batch) -> tuple[Any, None]:
      gradients, real = gradient(trained, frozen, part)
      squared = jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradients)
      new = jax.tree.map(lambda x: x.sum(0), (squared, real.astype(jnp.float32)))
      return jax.tree.map(jnp.add, sums, new), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
    parts = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), batch)
    return jax.lax.scan(add, (zeros, jnp.zeros(())), parts)[0]

  sums, count = None, 0.0
  for batch in batches:
    batch = jax.tree.map(jnp.asarray, dict(batch))
    size = len(jax.tree.leaves(batch)[0])
    if rows < 1 or size % rows:
      raise InputError(f'fisher: rows is {rows}, which does not divide a batch of {size}')
    part, real = squares(trained, frozen, batch)
    sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    count += float(real)
  if not count:
    raise InputError('fisher: no row of the batches carries weight; give rows of the task to keep')
  return jax.tree.map(lambda x: x / count, sums)


def _check_weight(penalty: str, name: str, value: Any) -> None:
  if isinstance(value, int | float) and not 0 <= value < float('inf'):
    raise InputError(f'{penalty}: {name} is {value}; it must be a number of at least 0')


def _shapes(part: Params) -> Params:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), part)


def _hold(leaf: Any, part: Any) -> Any:
  """What is held of one weight: an array as it is, of a weight leaf the trained fields."""
  if not jax.tree.leaves(part):
    return None
  return Held(part, tuple(leaf.shape)) if is_weight(leaf) else part


def _pairs(params: Params, name: str) -> list[tuple[str, Any, Any]]:
  """`(path, leaf, what is held of it under that name)` of every weight that trains."""
  if name not in params:
    raise InputError(
      f'the parameters hold no {name!r} to compare with; make them with adapt.with_start(params'
      + (', fisher)' if name == FISHER else ')')
    )
  held = dict(tree.named_weights(params[name]))
  return [
    (path, leaf, held[path].leaf if isinstance(held[path], Held) else held[path])
    for path, leaf in tree.named_weights(params)
    if path in held
  ]


def _plain(leaf: Any, start: Any, weights: Any = None) -> jax.Array:
  """`sum (x - x_0)^2` over the fields that `start` has, each times its weight."""

  def one(x_0: Any, x: Any, weight: Any) -> jax.Array | float:
    if x_0 is None:
      return 0.0
    squared = jnp.square(x.astype(jnp.float32) - x_0.astype(jnp.float32))
    return jnp.sum(squared if weight is None else weight * squared)

  weights = jax.tree.map(lambda _: None, start) if weights is None else weights
  parts = jax.tree.map(one, start, leaf, weights, is_leaf=lambda x: x is None)
  return sum(jax.tree.leaves(parts), jnp.zeros(()))


def _distance(leaf: Any, start: Any) -> jax.Array:
  """Squared distance of a weight from its start: of what LoRA stands for, else of its fields."""
  us, vs = [], []
  while isinstance(leaf, LoRA):  # one on another: their products add up
    a, b = (x.astype(jnp.float32) for x in (leaf.a, leaf.b))
    a_0, b_0 = (x if x_0 is None else x_0.astype(jnp.float32)
                for x, x_0 in ((a, start.a), (b, start.b)))  # fmt: skip
    us.append(leaf.scale[..., None, None] * jnp.concatenate([a - a_0, a_0], axis=-1))
    vs.append(jnp.concatenate([b, b - b_0], axis=-2))
    leaf, start = leaf.base, start.base
    if start is None:
      break
  total = jnp.zeros(()) if start is None else _plain(leaf, start)
  if us:
    u, v = jnp.concatenate(us, axis=-1), jnp.concatenate(vs, axis=-2)
    with jax.default_matmul_precision('highest'):
      total += jnp.sum((u.mT @ u) * (v @ v.mT))
  return total
