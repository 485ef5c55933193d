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
from jaxtune.shard.processes import every, gather, put

__all__ = [
  'DATA_AXES',
  'FSDP',
  'batch_sharding',
  'every',
  'gather',
  'mesh',
  'param_shardings',
  'place_batch',
  'put',
  'replicated',
  'state_shardings',
]
