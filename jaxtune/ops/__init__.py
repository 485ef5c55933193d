"""What a layer computes: products with weight leaves, attention, rope, norms, pooling, losses."""

from jaxtune.ops.attention import attention
from jaxtune.ops.attention_kernels import SCOPES, attention_kernel
from jaxtune.ops.cross_entropy import (
  CrossEntropy,
  automatic_chunk,
  chunked_cross_entropy,
  cross_entropy,
)
from jaxtune.ops.matmul import matmul
from jaxtune.ops.norm import layer_norm, rms_norm
from jaxtune.ops.pool import POOLINGS, normalize, pool
from jaxtune.ops.rope import Rope, Table, rope_table, rotate
from jaxtune.ops.visible import EVERYBODY, NOBODY, Visible, allowed, hidden, reach, visible
from jaxtune.ops.weight import (
  affine,
  axes,
  dot,
  dot_transposed,
  materialize,
  materialize_all,
  scaled_bias,
  scaled_biases,
  take,
)

__all__ = [
  'EVERYBODY',
  'NOBODY',
  'POOLINGS',
  'SCOPES',
  'CrossEntropy',
  'Rope',
  'Table',
  'Visible',
  'affine',
  'allowed',
  'attention',
  'attention_kernel',
  'automatic_chunk',
  'axes',
  'chunked_cross_entropy',
  'cross_entropy',
  'dot',
  'dot_transposed',
  'hidden',
  'layer_norm',
  'materialize',
  'materialize_all',
  'matmul',
  'normalize',
  'pool',
  'reach',
  'rms_norm',
  'rope_table',
  'rotate',
  'scaled_bias',
  'scaled_biases',
  'take',
  'visible',
]
