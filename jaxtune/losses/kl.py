"""A penalty on what a language model says otherwise than its reference."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxtune.losses.log_probs import compared
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import Measured, measured
from jaxtune.losses.options import check_at_least_zero
from jaxtune.losses.preference import Reference
from jaxtune.typing import Batch, InputError, Key, Params


def kl_to_reference(
  objective: Objective,
  model: Any,
  reference: Reference,
  weight: float = 0.1,
  chunk: int | None = None,
) -> Objective:
  """Adds `weight KL(policy || reference)` of every supervised token, exact over the vocabulary.

  `sum_t w_t sum_v p(v | <t) (log p(v | <t) - log q(v | <t))` in nats, over the tokens that
  `causal_lm` learns and with their weights, so that the mean over any cut of the data is that of
  the loss plus `weight` times the mean divergence per token.

  It needs a pass through both models. With a `weight` of 0 it only measures.

  Batch: as of `objective`, whose weight is to be that of tokens, as that of `causal_lm`.
  Metrics: those of `objective`, and `kl` in nats/token, which the loss includes times `weight`, in
  an evaluation too; what is measured on a whole split stays as it is.

  Args:
    objective: of a causal language model; it sees the policy's parameters alone.
    model: that model.
    reference: `(params) -> policy, reference params`, as `adapt.policy_and_reference`.
    weight: of the divergence.
    chunk: predictions whose logits are held at a time, of both models; None for
      `ops.automatic_chunk`.

  Raises:
    InputError: a negative weight; when called, a batch without tokens of its own.
  """
  check_at_least_zero('kl_to_reference', weight=weight)

  def objective_near_reference(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    if 'tokens' not in batch:
      raise InputError(
        f'kl_to_reference: the batch has {", ".join(batch)} and no tokens of its own; it goes with '
        'objectives on one text a row, such as causal_lm'
      )
    policy, held = reference(params)
    loss = objective(policy, batch, key)
    kl = compared(model, policy, held, batch, chunk=chunk, key=key).kl
    kl = jnp.sum(kl * row_weights(batch)[:, None])
    metrics = {**loss.metrics, 'kl': lax.stop_gradient(kl)}
    return Loss(loss.total + weight * kl, loss.weight, metrics)

  if not isinstance(objective, Measured):
    return objective_near_reference
  outputs = objective.outputs
  return measured(
    objective_near_reference,
    lambda params, batch: outputs(reference(params)[0], batch),
    objective.measure,
  )
