"""Named axes over the devices."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh

from jaxtune.typing import InputError

DATA_AXES = ('data', 'fsdp')  # the axes that the rows of a batch are spread over


def mesh(sizes: Mapping[str, int] | None = None) -> Mesh:
  """A mesh with the axes `data` (replicas) and `fsdp` (shards of the parameters).

  Args:
    sizes: devices along each axis; one of them may be -1 for all that are left. By default every
      device is a replica.

  Raises:
    InputError: an unknown axis, or sizes that do not multiply to the number of devices.
  """
  sizes = {'data': -1, 'fsdp': 1} if sizes is None else {'data': 1, 'fsdp': 1, **sizes}
  unknown = sorted(set(sizes) - set(DATA_AXES))
  if unknown:
    raise InputError(f'unknown mesh axis {unknown[0]!r}; known: {", ".join(DATA_AXES)}')
  devices = jax.device_count()
  given = math.prod(size for size in sizes.values() if size != -1)
  if list(sizes.values()).count(-1) == 1 and given > 0 and devices % given == 0:
    sizes = {name: devices // given if size == -1 else size for name, size in sizes.items()}
  if math.prod(sizes.values()) != devices or min(sizes.values()) < 1:
    shape = ' x '.join(f'{name}={size}' for name, size in sizes.items())
    raise InputError(
      f'mesh {shape} does not fit {devices} device(s): the sizes must multiply to {devices} '
      '(one may be -1 for the rest)'
    )
  return jax.make_mesh(
    tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
  )
