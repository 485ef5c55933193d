"""One training step and one evaluation step as pure functions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxtune import adapt, optim, shard, tree
from jaxtune.losses import Loss, Measured, Objective
from jaxtune.train.state import State
from jaxtune.typing import Batch, InputError, Key, Metrics, Params

Step = Callable[[State, Any, Batch], tuple[State, Metrics]]
Arguments = Callable[[Params, Batch], Mapping[str, Any]]


def make_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  accumulate: int = 1,
  axis: str | None = None,
  arguments: Arguments | None = None,
) -> Step:
  """`(state, frozen, batch) -> (state, metrics)`, pure: jit, vmap, pmap or scan it.

  The gradient is `grad(sum of loss) / sum of weight`, both sums taken over micro-batches and
  devices before the division, so cutting a batch changes nothing but rounding.

  Args:
    objective: what is minimized.
    optimizer: any optax transformation; it also gets `value`, `grad`, `value_fn` and `weight`.
    accumulate: micro-batches that a batch is cut into; it must divide the batch.
    axis: name of the mapped axis under `pmap`, over which gradients are summed.
    arguments: `(params, batch) -> dict`, more arguments of the optimizer's `update`, from the whole
      batch and the parameters before the step: for `optim.muonclip`
      `lambda p, b: {'query_key_maxima': models.query_key_maxima(model, p, b)}`. Under `axis` it has
      to reduce over that itself.

  Returns:
    A step whose metrics are float32 scalars: `loss`, the objective's own metrics as means,
    `grad_norm`, `weight`, and where the optimizer keeps them in its state `learning_rate` and
    `optim.observations`.

  Raises:
    InputError: traced with a batch that micro-batches and devices do not divide.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def summed(trainable: Any, frozen: Any, batch: Batch, key: Key) -> tuple[jax.Array, Loss]:
    params = adapt.with_key(tree.combine(trainable, frozen), key)
    loss = objective(params, batch, key)
    return loss.total + loss.weight * adapt.training_penalty(params), loss

  gradient = jax.grad(summed, has_aux=True)

  def accumulated(trainable: Any, frozen: Any, batch: Batch, key: Key) -> tuple[Any, Loss]:
    if accumulate == 1:
      return gradient(trainable, frozen, batch, key)

    devices = shard.size(*shard.ROWS)

    # Micro-batch i takes every accumulate-th row, so rows spread over devices stay where they are.
    def cut(x: jax.Array) -> jax.Array:
      if len(x) % (accumulate * devices):
        raise InputError(
          f'a batch of {len(x)} rows cannot be cut into {accumulate} micro-batches over {devices} '
          f'devices; choose a multiple of {accumulate * devices} rows'
        )
      return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def one(total: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
      part = gradient(trainable, frozen, xs[0], jax.random.fold_in(key, xs[1]))
      return jax.tree.map(lambda t, p: t + p.astype(t.dtype), total, part), None

    micro = (jax.tree.map(cut, batch), jnp.arange(accumulate))
    shapes = jax.eval_shape(
      gradient, trainable, frozen, jax.tree.map(lambda x: x[0], micro[0]), key
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    return lax.scan(one, zeros, micro)[0]

  def step(state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    gradients, loss = accumulated(state.trainable, frozen, batch, key)
    if axis is not None:
      gradients, loss = lax.psum((gradients, loss), axis)
    weight = jnp.maximum(loss.weight, jnp.finfo(jnp.float32).tiny)
    gradients = jax.tree.map(
      lambda g, p: (g / weight.astype(g.dtype)).astype(p.dtype), gradients, state.trainable
    )

    def value_fn(trainable: Any) -> jax.Array:
      return summed(trainable, frozen, batch, key)[0] / weight

    updates, opt = optimizer.update(
      gradients,
      state.opt,
      state.trainable,
      value=loss.total / weight,
      grad=gradients,
      value_fn=value_fn,
      weight=loss.weight,
      **(arguments(tree.combine(state.trainable, frozen), batch) if arguments else {}),
    )
    metrics = {
      'loss': loss.total / weight,
      **{name: total / weight for name, total in loss.metrics.items()},
      'grad_norm': optax.tree.norm(gradients).astype(jnp.float32),
      'weight': loss.weight,
      **optim.observations(opt),
    }
    rate = optim.hyperparameters(opt).get('learning_rate')
    if rate is not None:
      metrics['learning_rate'] = rate
    trainable = optax.apply_updates(state.trainable, updates)
    return State(trainable, opt, state.step + 1, state.key), metrics

  return step


def make_evaluation(
  objective: Objective,
) -> Callable[[Any, Any, Batch], tuple[Loss, dict[str, jax.Array]]]:
  """`(trainable, frozen, batch) -> Loss, outputs` without dropout: sums that add up over batches.

  The outputs are those of a `losses.measured` objective; of any other there are none.
  """

  def evaluation(trainable: Any, frozen: Any, batch: Batch) -> tuple[Loss, dict[str, jax.Array]]:
    params = tree.combine(trainable, frozen)
    outputs = objective.outputs(params, batch) if isinstance(objective, Measured) else {}
    return objective(params, batch, None), outputs

  return evaluation
