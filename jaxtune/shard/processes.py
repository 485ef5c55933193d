"""Arrays and facts that several processes (`jax.distributed`) share; one alone needs nothing of it.

Every process runs the same program, so all of them call these functions, in the same order.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def put(values: Any, shardings: Any) -> Any:
  """`jax.device_put`, also onto a mesh with devices of other processes.

  Args:
    values: arrays or a tree of them, on the host or on the devices. Those of a process alone must
      be the same in every process, each of which puts its own shards; nothing is sent.
    shardings: one for all, or one for each leaf.
  """
  if jax.process_count() == 1:
    return jax.device_put(values, shardings)
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, values)
  return jax.tree.map(_put, values, shardings)


def _put(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    # Not device_put, which has no way for keys.
    same = value.sharding.is_equivalent_to(sharding, value.ndim)
    return value if same else jax.jit(lambda x: x, out_shardings=sharding)(value)
  if not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
    value = np.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(values: Any, *, keep: bool = True) -> Any:
  """A tree whose arrays this process holds whole: on a device of its own, or on the host.

  What was cut over processes is put together leaf by leaf, as NumPy arrays. Of a process that does
  not want to `keep` it, such a leaf is None: machines hold several processes, and one copy each.
  """

  def whole(value: Any) -> Any:
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
      return value
    if value.is_fully_replicated:
      return value.addressable_data(0)
    made = multihost_utils.process_allgather(value, tiled=True)
    return made if keep else None

  return jax.tree.map(whole, values)


def of_first(values: Any) -> Any:
  """A tree of host arrays as the first process has it; all of them have the shapes."""
  return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(values)


def every(value: Any) -> list[Any]:
  """The values of all processes, first process first, as JSON can hold them."""
  if jax.process_count() == 1:
    return [value]
  own = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(own.size))
  padded = np.pad(own, (0, int(sizes.max()) - own.size))
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
