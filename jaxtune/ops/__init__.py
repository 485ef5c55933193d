"""What a layer computes: products with weight leaves, attention, rope, norms, cross-entropy."""

from jaxtune.ops.attention import attention, attention_bias
from jaxtune.ops.cross_entropy import CrossEntropy, chunked_cross_entropy, cross_entropy
from jaxtune.ops.norm import layer_norm, rms_norm
from jaxtune.ops.rope import rope_angles, rotate
from jaxtune.ops.weight import dot, dot_transposed, materialize, materialize_all, take

__all__ = [
  'CrossEntropy',
  'attention',
  'attention_bias',
  'chunked_cross_entropy',
  'cross_entropy',
  'dot',
  'dot_transposed',
  'layer_norm',
  'materialize',
  'materialize_all',
  'rms_norm',
  'rope_angles',
  'rotate',
  'take',
]
