"""Objectives that are computed in fewer bits than what trains is kept in."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import tree
from jaxtune.losses.loss import Loss, Objective
from jaxtune.losses.measured import Measured
from jaxtune.typing import Batch, Key, Params, is_weight


def computed_in(objective: Objective, dtype: Any) -> Objective:
  """The objective of parameters cast to `dtype`, once a step; their gradients stay as they are.

  What trains keeps its float32 (master weights; Micikevicius et al. 2017, arXiv:1710.03740, section
  3.1), and so do its gradient and the optimizer's state. Activations follow the embedding. Norms,
  softmax and losses are summed in float32 wherever they are computed. Only float32 arrays are cast:
  adapters and quantized leaves take the type of the activations where they are used.

  Args:
    objective: what is minimized.
    dtype: 'bfloat16', say.
  """

  def cast(path: str, leaf: Any) -> Any:
    del path
    return leaf if is_weight(leaf) or leaf.dtype != jnp.float32 else leaf.astype(dtype)

  def computed(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    return objective(tree.map_weights(cast, params), batch, key)

  if not isinstance(objective, Measured):
    return computed
  outputs = objective.outputs

  def low(params: Params, batch: Batch) -> dict[str, jax.Array]:
    return outputs(tree.map_weights(cast, params), batch)

  return dataclasses.replace(objective, objective=computed, outputs=low)
