"""What a compiled module says of itself: bytes moved through memory, and a GPU without a GPU."""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# The properties of an H100 SXM that the compiler asks for (NVIDIA's published figures).
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  memory_bandwidth: 3352320000000 device_memory_size: 84929347584
}
platform_name: "CUDA" runtime_version { major: 12 minor: 8 } dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# These name memory and move none.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'iota'}
WIDTH = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 'f64': 8}
ARRAY = re.compile(r'\b(pred|[suf]\d+|bf16)\[([\d,]*)\]')
LINE = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\(([^)]*)\)')


def h100() -> NamedSharding:
  """A place on one H100 that exists only for the compiler.

  Raises:
    Exception: jax-cuda12-plugin and jax-cuda12-pjrt are not installed (no driver is needed).
  """
  topology = topologies.get_topology_desc(
    platform='cuda', topology_name='cuda', topology='1x1x1', target_config=H100
  )
  return NamedSharding(Mesh(np.array(topology.devices), ('x',)), PartitionSpec())


def shapes(tree: Any, place: NamedSharding | None = None) -> Any:
  """The tree as shapes, each at a place."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def bytes_moved(compiled: Any) -> int:
  """Bytes that the kernels of a compiled module read and write, each one's inputs and outputs.

  It counts the entry computation; a kernel that is called in a loop or a branch counts as one.
  """
  text = compiled.as_text()
  entry = text[text.index('ENTRY') :].splitlines()[1:]
  size: dict[str, int] = {}
  total = 0
  for line in entry:
    found = LINE.match(line)
    if not found:
      continue
    name, kind, operation, operands = found.groups()
    size[name] = sum(
      WIDTH[dtype] * int(np.prod([int(n) for n in dims.split(',') if n], dtype=np.int64))
      for dtype, dims in ARRAY.findall(kind)
    )
    if operation not in FREE:
      read = re.findall(r'%([\w.\-]+)', operands)
      total += size[name] + sum(size.get(operand, 0) for operand in read)
  return total
