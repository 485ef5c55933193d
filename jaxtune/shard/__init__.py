"""A mesh of named axes, and the placement of parameters, states and batches on it."""

from jaxtune.shard.mesh import DATA_AXES, mesh
from jaxtune.shard.place import (
  FSDP,
  batch_sharding,
  param_shardings,
  place_batch,
  replicated,
  state_shardings,
)

__all__ = [
  'DATA_AXES',
  'FSDP',
  'batch_sharding',
  'mesh',
  'param_shardings',
  'place_batch',
  'replicated',
  'state_shardings',
]
