"""Update rules and schedules: Optax gradient transformations, one idea a file."""

from jaxtune.optim.accumulate import accumulate_by_weight
from jaxtune.optim.accumulated_norm import (
  AccumulatedNormState,
  adagrad_norm,
  adaptive_rate,
  scale_by_accumulated_norm,
)
from jaxtune.optim.average import AveragedState, average_weights, averaged
from jaxtune.optim.blockwise import (
  ADAM_MINI,
  Blocks,
  adam_mini,
  adam_mini_blocks,
  scale_by_blockwise_moments,
)
from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.by_name import create, factory, names
from jaxtune.optim.cautious import cautious, cautious_adamw, cautious_lion
from jaxtune.optim.codecs import Codec, bfloat16, dynamic_8bit
from jaxtune.optim.decay import add_cautious_decay, add_independent_decay
from jaxtune.optim.descent import gradient_descent, momentum
from jaxtune.optim.describe import check_state, describe, state_bytes, state_sharding
from jaxtune.optim.eigenbasis import in_eigenbasis
from jaxtune.optim.grokfast import amplify_slow_gradients, grokfast_adamw
from jaxtune.optim.hyperball import adam_h, hold_norms, muon_h, soap_h
from jaxtune.optim.injection import (
  HyperparameterState,
  hyperparameters,
  set_hyperparameters,
  with_hyperparameters,
)
from jaxtune.optim.kron import kron, scale_by_kron
from jaxtune.optim.lora_pairs import find_pairs, for_pairs
from jaxtune.optim.lora_rite import lora_rite, scale_by_lora_rite
from jaxtune.optim.mars import mars, scale_by_gradient_difference
from jaxtune.optim.matrices import MATRICES, Matrix, for_matrices, matrix_chain
from jaxtune.optim.matrix_shape import scale_by_matrix_shape
from jaxtune.optim.multipliers import complete_p, layerwise_decay, lora_plus, lora_plus_rates, mup
from jaxtune.optim.muon import muon, scale_by_muon
from jaxtune.optim.normuon import normuon, scale_by_normuon
from jaxtune.optim.observe import observations, observe
from jaxtune.optim.orthogonalize import newton_schulz, orthogonalize
from jaxtune.optim.per_layer import STACKED, per_layer
from jaxtune.optim.precision import in_precision
from jaxtune.optim.qk_clip import QUERY_KEY, muonclip, qk_clip
from jaxtune.optim.quantize import BFLOAT16, EIGHT_BIT, adamw_8bit, quantize_state
from jaxtune.optim.riemannian_lora import riemannian_lora, scale_by_riemannian_lora
from jaxtune.optim.schedules import Schedule, schedule
from jaxtune.optim.scion import SCION, Ball, scale_by_lmo, scion
from jaxtune.optim.shampoo import graft, scale_by_shampoo, shampoo
from jaxtune.optim.soap import scale_by_soap, soap
from jaxtune.optim.spikes import skip_spikes
from jaxtune.optim.stochastic_rounding import stochastic_round, stochastic_round_params
from jaxtune.optim.subspace import (
  Projector,
  apollo,
  galore,
  in_subspace,
  limit_growth,
  random_projector,
  svd_projector,
)
from jaxtune.optim.tables import DECAY, DECAYED, by_rules, decay_mask, multiply_by_rules

__all__ = [
  'ADAM_MINI',
  'AccumulatedNormState',
  'AveragedState',
  'BFLOAT16',
  'Ball',
  'Blocks',
  'Codec',
  'DECAY',
  'DECAYED',
  'EIGHT_BIT',
  'HyperparameterState',
  'MATRICES',
  'Matrix',
  'Projector',
  'QUERY_KEY',
  'SCION',
  'STACKED',
  'Schedule',
  'accumulate_by_weight',
  'adagrad_norm',
  'adam_h',
  'adam_mini',
  'adam_mini_blocks',
  'adamw_8bit',
  'adaptive_rate',
  'add_cautious_decay',
  'add_independent_decay',
  'amplify_slow_gradients',
  'apollo',
  'average_weights',
  'averaged',
  'bfloat16',
  'bucket_by_shape',
  'by_rules',
  'cautious',
  'cautious_adamw',
  'cautious_lion',
  'check_state',
  'complete_p',
  'create',
  'decay_mask',
  'describe',
  'dynamic_8bit',
  'factory',
  'find_pairs',
  'for_matrices',
  'for_pairs',
  'galore',
  'gradient_descent',
  'graft',
  'grokfast_adamw',
  'hold_norms',
  'hyperparameters',
  'in_eigenbasis',
  'in_precision',
  'in_subspace',
  'kron',
  'layerwise_decay',
  'limit_growth',
  'lora_plus',
  'lora_plus_rates',
  'lora_rite',
  'mars',
  'matrix_chain',
  'momentum',
  'multiply_by_rules',
  'muon',
  'muon_h',
  'muonclip',
  'mup',
  'names',
  'newton_schulz',
  'normuon',
  'observations',
  'observe',
  'orthogonalize',
  'per_layer',
  'qk_clip',
  'quantize_state',
  'random_projector',
  'riemannian_lora',
  'scale_by_accumulated_norm',
  'scale_by_blockwise_moments',
  'scale_by_gradient_difference',
  'scale_by_kron',
  'scale_by_lmo',
  'scale_by_lora_rite',
  'scale_by_matrix_shape',
  'scale_by_muon',
  'scale_by_normuon',
  'scale_by_riemannian_lora',
  'scale_by_shampoo',
  'scale_by_soap',
  'schedule',
  'scion',
  'set_hyperparameters',
  'shampoo',
  'skip_spikes',
  'soap',
  'soap_h',
  'state_bytes',
  'state_sharding',
  'stochastic_round',
  'stochastic_round_params',
  'svd_projector',
  'with_hyperparameters',
]
