"""Named axes over the devices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxtune.typing import InputError

# From the outermost, whose neighbours talk least, to the innermost, whose neighbours talk most.
AXES = ('data', 'fsdp', 'expert', 'sequence', 'tensor')
ROWS = ('data', 'fsdp', 'expert')  # the axes that the rows of a batch are spread over


def mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of all devices with the axes that parameters and activations are cut over.

  data: replicas, each with rows of its own.
  fsdp: shards of parameters and optimizer state, each with rows of its own (arXiv:1910.02054,
    stage 3).
  expert: shards of the experts of a mixture, each with rows of its own.
  sequence: shards of the tokens of a row.
  tensor: shards of every product (arXiv:1909.08053).

  Args:
    sizes: devices along each axis, 1 where none is given; one of them may be -1 for all that are
      left. By default every device is a replica.
    devices: others than those that are here, such as those of a topology to compile for.

  Raises:
    InputError: an unknown axis, or sizes that do not multiply to the number of devices.
  """
  given = {'data': -1} if sizes is None else sizes
  unknown = sorted(set(given) - set(AXES))
  if unknown:
    raise InputError(f'unknown mesh axis {unknown[0]!r}; known: {", ".join(AXES)}')
  whole = {name: given.get(name, 1) for name in AXES}
  count = jax.device_count() if devices is None else len(devices)
  fixed = math.prod(size for size in whole.values() if size != -1)
  if list(whole.values()).count(-1) == 1 and fixed > 0 and count % fixed == 0:
    whole = {name: count // fixed if size == -1 else size for name, size in whole.items()}
  if math.prod(whole.values()) != count or min(whole.values()) < 1:
    shape = ' x '.join(f'{name}={size}' for name, size in whole.items() if size != 1)
    raise InputError(
      f'mesh {shape or "of one device"} does not fit {count} device(s): the sizes must multiply '
      f'to {count} (one may be -1 for the rest)'
    )
  return jax.make_mesh(
    tuple(whole.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )
