"""The decoders of the parity tests: a model of each family, unusual ones, and fields to change."""

from typing import Any

SIZES = {
  'vocab_size': 40,
  'hidden_size': 24,
  'intermediate_size': 36,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 32,
  'rms_norm_eps': 3e-3,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
GPT2 = {
  'vocab_size': 40,
  'n_embd': 24,
  'n_layer': 3,
  'n_head': 4,
  'n_positions': 32,
  'n_inner': 37,
  'layer_norm_epsilon': 3e-3,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
PHI3 = {k: v for k, v in SIZES.items() if k != 'head_dim'} | {'hidden_size': 32}
NEOX = {k: v for k, v in PHI3.items() if k != 'num_key_value_heads'}
NEOX['layer_norm_eps'] = NEOX.pop('rms_norm_eps')
GEMMA = {'sliding_window': 5, 'query_pre_attn_scalar': 20, 'final_logit_softcapping': 3.0}
QWEN_MOE = {
  'num_experts': 4,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 12,
  'mlp_only_layers': [1],
}


def rope(kind: str = 'default', base: float = 100.0, **fields: Any) -> dict[str, Any]:
  """`rope_parameters`, whose base is small enough for a few tokens to turn every pair."""
  return {'rope_parameters': {'rope_type': kind, 'rope_theta': base, **fields}}


# One of each family; the stem of its classes and its fields.
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
  'llama': ('Llama', {**SIZES, **rope()}),
  'mistral': ('Mistral', {**SIZES, **rope(), 'sliding_window': 5}),
  'smollm3': ('SmolLM3', {**SIZES, **rope(), 'no_rope_layer_interval': 2}),
  'qwen2': ('Qwen2', {**SIZES, **rope()}),
  'qwen3': ('Qwen3', {**SIZES, **rope()}),
  'gemma2': ('Gemma2', {**SIZES, **rope(), **GEMMA, 'attn_logit_softcapping': 2.0}),
  'gemma3': ('Gemma3', {**SIZES, **GEMMA, 'sliding_window_pattern': 2}),
  'phi3': ('Phi3', {**PHI3, **rope(partial_rotary_factor=0.5), 'sliding_window': 5}),
  'gpt2': ('GPT2', GPT2),
  'gpt_neox': ('GPTNeoX', {**NEOX, **rope(partial_rotary_factor=0.5)}),
  'mixtral': ('Mixtral', {**SIZES, **rope(), 'num_local_experts': 4, 'sliding_window': 5}),
  'qwen3_moe': ('Qwen3Moe', {**SIZES, **rope(), **QWEN_MOE}),
}

YARN = {'factor': 4.0, 'original_max_position_embeddings': 8, 'beta_fast': 1.2, 'beta_slow': 0.1}
LLAMA3 = {
  'factor': 4.0,
  'original_max_position_embeddings': 16,
  'low_freq_factor': 0.5,
  'high_freq_factor': 2.0,
}
LONGROPE = {
  'partial_rotary_factor': 0.5,
  'short_factor': [1.1, 2.3],
  'long_factor': [1.7, 4.1],
}

# Changes to one of the above; None takes a field away.
UNUSUAL: list[tuple[str, dict[str, Any]]] = [
  ('llama', {'num_key_value_heads': 4, 'attention_bias': True, 'mlp_bias': True}),
  ('llama', {'num_key_value_heads': 1, 'tie_word_embeddings': True, 'hidden_act': 'gelu'}),
  ('llama', rope('linear', factor=2.5)),
  ('llama', {**rope('dynamic', factor=2.5), 'max_position_embeddings': 8}),
  ('llama', rope('llama3', **LLAMA3)),
  ('llama', rope('yarn', **YARN)),
  ('mistral', {'sliding_window': None, 'tie_word_embeddings': True}),
  ('smollm3', {'no_rope_layers': [1, 0, 0], 'tie_word_embeddings': False, 'mlp_bias': True}),
  ('smollm3', {'use_sliding_window': True, 'sliding_window': 5, 'attention_bias': True}),
  ('qwen2', {'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1}),
  ('qwen2', {'tie_word_embeddings': True, 'num_key_value_heads': 1}),
  ('qwen3', {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 0}),
  (
    'qwen3',
    {
      **rope('yarn', **YARN, truncate=False),
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 4,
      'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
    },
  ),
  ('gemma2', {'attn_logit_softcapping': None, 'final_logit_softcapping': None}),
  (
    'gemma2',
    {
      'attention_bias': True,
      'tie_word_embeddings': False,
      'layer_types': ['full_attention', 'full_attention', 'sliding_attention'],
    },
  ),
  (
    'gemma3',
    {
      'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 50.0},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 30.0},
      },
      'final_logit_softcapping': None,
      'attention_bias': True,
    },
  ),
  ('gemma3', {'layer_types': ['full_attention'] * 3, 'num_key_value_heads': 4}),
  ('phi3', {**rope('longrope', **LONGROPE), 'original_max_position_embeddings': 8}),
  ('phi3', {**rope('longrope', **LONGROPE), 'original_max_position_embeddings': 16}),
  ('phi3', {**rope(), 'sliding_window': None, 'tie_word_embeddings': True}),
  ('gpt2', {'scale_attn_weights': False, 'tie_word_embeddings': False, 'n_inner': None}),
  ('gpt_neox', {'use_parallel_residual': False, 'tie_word_embeddings': True}),
  ('gpt_neox', {**rope(partial_rotary_factor=1.0), 'attention_bias': False, 'hidden_act': 'relu'}),
  ('mixtral', {'num_experts_per_tok': 1, 'sliding_window': None, 'tie_word_embeddings': True}),
  ('mixtral', {'num_experts_per_tok': 4, 'num_key_value_heads': 1}),
  ('qwen3_moe', {'norm_topk_prob': True, 'mlp_only_layers': [0], 'attention_bias': True}),
  (
    'qwen3_moe',
    {'decoder_sparse_step': 2, 'use_sliding_window': True, 'sliding_window': 5, 'num_experts': 3},
  ),
]

_LOCAL = ['sliding_attention', 'full_attention', 'full_attention']
_LLAMA = {'hidden_act': 'relu', 'rms_norm_eps': 0.03, 'rope_parameters.rope_theta': 30.0}
_WINDOW = {'sliding_window': 3}
_CAP = {'final_logit_softcapping': 5.0}
_SPARSE = {'num_experts_per_tok': 1}
_SLIDES = {'use_sliding_window': True, 'sliding_window': 5, 'layer_types': _LOCAL}

# Fields whose change changes the numbers: what the model is made with, and what it is changed to.
TELLING: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
  ('llama', {}, _LLAMA),
  ('mistral', {}, _LLAMA | _WINDOW),
  (
    'smollm3',
    _SLIDES,
    _LLAMA | _WINDOW | {'no_rope_layers': [0, 1, 1], 'layer_types': _LOCAL[::-1]},
  ),
  ('qwen2', _SLIDES, _LLAMA | _WINDOW | {'layer_types': _LOCAL[::-1]}),
  ('qwen3', _SLIDES, _LLAMA | _WINDOW | {'layer_types': _LOCAL[::-1]}),
  (
    'gemma2',
    {},
    _WINDOW
    | _CAP
    | {
      'hidden_activation': 'relu',
      'rms_norm_eps': 0.03,
      'rope_parameters.rope_theta': 30.0,
      'layer_types': ['full_attention', 'sliding_attention', 'full_attention'],
      'query_pre_attn_scalar': 10,
      'attn_logit_softcapping': 4.0,
    },
  ),
  (
    'gemma3',
    {},
    _WINDOW
    | _CAP
    | {
      'hidden_activation': 'relu',
      'rms_norm_eps': 0.03,
      'rope_parameters.full_attention.rope_theta': 30.0,
      'rope_parameters.sliding_attention.rope_theta': 30.0,
      'layer_types': ['full_attention', 'sliding_attention', 'full_attention'],
      'query_pre_attn_scalar': 10,
    },
  ),
  ('phi3', {}, _LLAMA | _WINDOW | {'rope_parameters.partial_rotary_factor': 1.0}),
  (
    'gpt2',
    {},
    {
      'activation_function': 'relu',
      'layer_norm_epsilon': 0.03,
      'scale_attn_weights': False,
      'n_head': 2,
    },
  ),
  (
    'gpt_neox',
    {},
    {
      'hidden_act': 'relu',
      'layer_norm_eps': 0.03,
      'rope_parameters.rope_theta': 30.0,
      'rope_parameters.partial_rotary_factor': 0.25,
      'use_parallel_residual': False,
      'num_attention_heads': 2,
    },
  ),
  ('mixtral', {}, _LLAMA | _WINDOW | _SPARSE),
  (
    'qwen3_moe',
    {'use_sliding_window': True, 'sliding_window': 5},
    _LLAMA | _WINDOW | _SPARSE | {'norm_topk_prob': True, 'use_sliding_window': False},
  ),
  ('llama', rope('linear', factor=2.5), {'rope_parameters.factor': 3.0}),
  (
    'llama',
    {**rope('dynamic', factor=2.5), 'max_position_embeddings': 8},
    {'rope_parameters.factor': 3.0, 'max_position_embeddings': 9},
  ),
  (
    'llama',
    rope('llama3', **LLAMA3),
    {
      'rope_parameters.factor': 3.0,
      'rope_parameters.original_max_position_embeddings': 24,
      'rope_parameters.low_freq_factor': 0.3,
      'rope_parameters.high_freq_factor': 1.5,
    },
  ),
  (
    'llama',
    rope('yarn', **YARN),
    {
      'rope_parameters.factor': 3.0,
      'rope_parameters.original_max_position_embeddings': 20,
      'rope_parameters.beta_fast': 0.3,
      'rope_parameters.beta_slow': 0.02,
      'rope_parameters.attention_factor': 1.3,
      'rope_parameters.truncate': False,
    },
  ),
  (
    'phi3',
    {**rope('longrope', **LONGROPE), 'original_max_position_embeddings': 8},
    {
      'rope_parameters.long_factor': [1.7, 3.0],
      'rope_parameters.attention_factor': 1.3,
      'original_max_position_embeddings': 16,
    },
  ),
  (
    'phi3',
    {**rope('longrope', **LONGROPE), 'original_max_position_embeddings': 16},
    {'rope_parameters.short_factor': [1.7, 3.0], 'max_position_embeddings': 64},
  ),
]

# Fields that fix shapes, or what tensors there are: another value contradicts the weights.
_SHAPED = {
  'vocab_size': 41,
  'hidden_size': 28,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'num_key_value_heads': 4,
  'head_dim': 4,
}
SHAPED: dict[str, dict[str, Any]] = {
  family: _SHAPED | {'tie_word_embeddings': family not in ('smollm3', 'gemma2', 'gemma3')}
  for family in PLAIN
}
for _family in ('llama', 'smollm3'):
  SHAPED[_family] |= {'attention_bias': True, 'mlp_bias': True}
for _family in ('qwen3', 'gemma2', 'gemma3', 'qwen3_moe'):
  SHAPED[_family] |= {'attention_bias': True}
SHAPED['mixtral'] |= {'num_local_experts': 3}
SHAPED['qwen3_moe'] |= {
  'num_local_experts': 3,
  'moe_intermediate_size': 10,
  'mlp_only_layers': [2],
  'decoder_sparse_step': 2,
}
SHAPED['gpt_neox'] = {k: v for k, v in _SHAPED.items() if 'head' not in k} | {
  'tie_word_embeddings': True,
  'attention_bias': False,
}
SHAPED['gpt2'] = {
  'vocab_size': 41,
  'n_embd': 28,
  'n_inner': 40,
  'n_layer': 2,
  'n_positions': 30,
  'tie_word_embeddings': False,
}


def architecture(family: str, head: str = 'ForCausalLM') -> str:
  """The class of that family and head."""
  stem = PLAIN[family][0]
  if head == 'ForCausalLM' and family == 'gpt2':
    return 'GPT2LMHeadModel'
  if head in ('ForSequenceClassification', 'Model') and family == 'gemma3':
    return f'Gemma3Text{head}'
  return stem + head


def fields(family: str, **changes: Any) -> dict[str, Any]:
  """The fields of a family's plain model with changes."""
  return PLAIN[family][1] | changes
