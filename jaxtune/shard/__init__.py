"""A mesh of named axes, and the placement of parameters, states, batches and activations on it."""

from jaxtune.shard.inside import (
  all_gather,
  constrain,
  gathered,
  index,
  locally,
  reduce_scatter,
  size,
  total,
)
from jaxtune.shard.mesh import AXES, ROWS, mesh
from jaxtune.shard.place import (
  PARAMETERS,
  batch_sharding,
  param_shardings,
  place_batch,
  replicated,
  state_shardings,
)
from jaxtune.shard.placement import Placed, format_placement, placement
from jaxtune.shard.processes import every, gather, of_first, put

__all__ = [
  'AXES',
  'PARAMETERS',
  'ROWS',
  'Placed',
  'batch_sharding',
  'all_gather',
  'constrain',
  'every',
  'format_placement',
  'gather',
  'gathered',
  'index',
  'locally',
  'mesh',
  'of_first',
  'param_shardings',
  'place_batch',
  'placement',
  'put',
  'reduce_scatter',
  'replicated',
  'size',
  'state_shardings',
  'total',
]
