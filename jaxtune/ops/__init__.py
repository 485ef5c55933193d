"""What a layer computes: products with weight leaves, attention, rope, norms, pooling, losses."""

from jaxtune.ops.attention import attention, attention_bias, hidden
from jaxtune.ops.cross_entropy import CrossEntropy, chunked_cross_entropy, cross_entropy
from jaxtune.ops.norm import layer_norm, rms_norm
from jaxtune.ops.pool import POOLINGS, normalize, pool
from jaxtune.ops.rope import Rope, Table, rope_table, rotate
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
  'POOLINGS',
  'CrossEntropy',
  'Rope',
  'Table',
  'affine',
  'attention',
  'attention_bias',
  'axes',
  'chunked_cross_entropy',
  'cross_entropy',
  'dot',
  'dot_transposed',
  'hidden',
  'layer_norm',
  'materialize',
  'materialize_all',
  'normalize',
  'pool',
  'rms_norm',
  'rope_table',
  'rotate',
  'scaled_bias',
  'scaled_biases',
  'take',
]
