"""A reward model: one number a text, larger for what is preferred."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.options import check_at_least_zero
from jaxtune.losses.preference import apart, both, compared_pairs
from jaxtune.typing import Batch, InputError, Key, Params


def reward_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  margin: jax.Array | float = 0.0,
  center_rewards_coefficient: float = 0.0,
) -> jax.Array:
  """`-log sigmoid(chosen - rejected - margin) + c (chosen + rejected)^2` of each pair `[B]`.

  Bradley and Terry 1952; equation 1 of Ouyang et al. 2022, arXiv:2203.02155; the margin is that of
  Llama 2, arXiv:2307.09288, equation 2; the second term holds rewards near zero (arXiv:2312.09244).

  Args:
    chosen: rewards `[B]`.
    rejected: rewards `[B]`.
    margin: by which they are to differ, `[B]`: of how clear the preference is.
    center_rewards_coefficient: c.
  """
  loss = -jax.nn.log_sigmoid(chosen - rejected - margin)
  return loss + center_rewards_coefficient * jnp.square(chosen + rejected)


def reward(model: Any, center_rewards_coefficient: float = 0.0) -> Objective:
  """`sum_b w_b reward_loss(reward of chosen, of rejected)`, weight `sum_b w_b`.

  Batch: `chosen` and `rejected`, each a part with `tokens` int32 and `mask` bool `[B, T]`; `margin`
  float32 `[B]` and `weight` `[B]` if present.
  Metrics: those of `preference.compared_pairs`.

  Args:
    model: a classifier with one output, as `models.classifier(key, model, params, 1)` gives.
    center_rewards_coefficient: of the squared sum of the two rewards; 0.01 where rewards drift.

  Raises:
    InputError: a negative coefficient; when called, a model that has not one output a text.
  """
  check_at_least_zero('reward', center_rewards_coefficient=center_rewards_coefficient)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    rows = both(batch)
    outputs = model.apply(params, rows['tokens'], rows.get('mask'), key=key)
    if outputs.shape != (len(rows['tokens']), 1):
      raise InputError(
        f'reward: the model is a {model.family} for {model.task} with outputs '
        f'{list(outputs.shape)}; take one with one output a text, as models.classifier makes it'
      )
    chosen, rejected = apart(outputs[:, 0].astype(jnp.float32))
    losses = reward_loss(chosen, rejected, batch.get('margin', 0.0), center_rewards_coefficient)
    return compared_pairs(losses, chosen, rejected, row_weights(batch))

  return objective
