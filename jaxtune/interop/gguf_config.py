"""The metadata of a GGUF file as the `config.json` that the model had before its conversion.

What llama.cpp's converter leaves out is what llama.cpp itself assumes for the architecture.
"""

from typing import Any

import numpy as np

from jaxtune.interop import fields
from jaxtune.interop.gguf_header import Header, field
from jaxtune.ops import Rope
from jaxtune.ops.rope import frequencies
from jaxtune.typing import InputError

Raw = dict[str, Any]

# Hugging Face's word for each architecture.
ARCHITECTURES = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen3moe': 'qwen3_moe',
  'smollm3': 'smollm3',
  'gemma2': 'gemma2',
  'gemma3': 'gemma3_text',
}

# Fields that no model of these architectures has, with what they would be without effect.
_FOREIGN = {
  'attention.causal': True,
  'attention.scale': 0.0,
  'attention.clamp_kqv': 0.0,
  'attention.max_alibi_bias': 0.0,
  'attention.temperature_length': 0,
  'embedding_scale': 1.0,
  'residual_scale': 1.0,
  'logit_scale': 1.0,
  'expert_shared_count': 0,
  'expert_group_count': 1,
  'rope.dimension_sections': None,
  'rope.scale_linear': 1.0,
  'rope.scaling.attn_factor': 1.0,
  'rope.scaling.yarn_attn_factor': None,  # llama.cpp multiplies by it, others put it in place
  'rope.scaling.yarn_ext_factor': 1.0,
  'rope.scaling.yarn_log_multiplier': None,
}
# Models whose scores are scaled by the width over the heads, not by the width of a head.
# They are told by their layers: these are the 27B ones.
_WIDE = {('gemma2', 46), ('gemma3', 62)}


def read_config(header: Header, divisors: np.ndarray | None) -> Raw:
  """The fields of `config.json`, for the `read_config` of the family that `model_type` names.

  Args:
    header: of the file.
    divisors: of the rotary frequencies, where the file has the tensor `rope_freqs.weight`.

  Raises:
    InputError: an unknown architecture; a field that is missing or malformed, or asks for
      arithmetic that the architecture does not have.
  """
  meta, file = header.metadata, str(header.path)
  name = field(header, 'general.architecture')
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise InputError(
      f'{file}: general.architecture is {name!r}; known: {", ".join(sorted(ARCHITECTURES))}'
    )
  if 'token_embd.weight' not in header.tensors:
    raise InputError(f'{file}: lacks the tensor token_embd.weight; take a whole checkpoint')
  fields.refuse(meta, file, **{f'{name}.{key}': harmless for key, harmless in _FOREIGN.items()})
  width = fields.integer(meta, file, f'{name}.embedding_length')
  heads = fields.integer(meta, file, f'{name}.attention.head_count')
  head_width = fields.integer(meta, file, f'{name}.attention.key_length', max(1, width // heads))
  same = ('attention.value_length', 'rope.dimension_count')
  fields.refuse(meta, file, **{f'{name}.{key}': head_width for key in same})
  kv_heads = fields.integer(meta, file, f'{name}.attention.head_count_kv', heads)
  for part, count in (('q', heads), ('k', kv_heads)):
    stored = header.tensors.get(f'blk.0.attn_{part}.weight')
    if stored and stored.shape[0] != count * head_width:  # before tables are made of so many
      raise InputError(
        f'{file}: blk.0.attn_{part}.weight has {stored.shape[0]} rows, but {name}.attention has '
        f'{count} heads of width {head_width}; convert the model to GGUF again'
      )
  raw: Raw = {
    'model_type': ARCHITECTURES[name],
    'vocab_size': header.tensors['token_embd.weight'].shape[0],
    'hidden_size': width,
    'intermediate_size': fields.integer(meta, file, f'{name}.feed_forward_length'),
    'num_hidden_layers': fields.integer(meta, file, f'{name}.block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': kv_heads,
    'head_dim': head_width,
    'max_position_embeddings': fields.integer(meta, file, f'{name}.context_length'),
    'rms_norm_eps': _real(header, f'{name}.attention.layer_norm_rms_epsilon'),
    'tie_word_embeddings': 'output.weight' not in header.tensors,
    **_rope(header, name, head_width, divisors),
  }
  raw['attention_bias'] = 'blk.0.attn_q.bias' in header.tensors
  raw['mlp_bias'] = 'blk.0.ffn_up.bias' in header.tensors
  if name.startswith('gemma'):
    return raw | _gemma(header, name, raw)
  # Mistral's window is lost in conversion; where a field does hold one, nobody defines its layers.
  fields.refuse(meta, file, **{f'{name}.attention.sliding_window': 0})
  if meta.get(f'{name}.expert_count'):
    return raw | _experts(header, name)
  return raw


def _experts(header: Header, name: str) -> Raw:
  meta, file = header.metadata, str(header.path)
  count = fields.integer(meta, file, f'{name}.expert_count')
  raw: Raw = {'num_experts_per_tok': fields.integer(meta, file, f'{name}.expert_used_count')}
  if name == 'llama':
    return raw | {'model_type': 'mixtral', 'num_local_experts': count}
  return raw | {
    'num_experts': count,
    'moe_intermediate_size': fields.integer(meta, file, f'{name}.expert_feed_forward_length'),
    'norm_topk_prob': True,
  }


def _gemma(header: Header, name: str, raw: Raw) -> Raw:
  """Which layers have a window, how scores are scaled, and the caps."""
  meta, file, layers = header.metadata, str(header.path), raw['num_hidden_layers']
  width = raw['hidden_size'] // raw['num_attention_heads']
  gemma2 = name == 'gemma2'
  window = f'{name}.attention.sliding_window'
  period = fields.integer(
    meta, file, f'{name}.attention.sliding_window_pattern', 2 if gemma2 else 6
  )
  if not gemma2 and window not in meta:
    period = 1
  kinds = ['sliding_attention' if (i + 1) % period else 'full_attention' for i in range(layers)]
  final = f'{name}.final_logit_softcapping'
  own: Raw = {
    'query_pre_attn_scalar': width if (name, layers) in _WIDE else raw['head_dim'],
    'hidden_activation': 'gelu_pytorch_tanh',
    'layer_types': kinds,
    'sliding_window': fields.integer(meta, file, window, 4096),
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
  }
  if gemma2:
    own['attn_logit_softcapping'] = _real(header, f'{name}.attn_logit_softcapping', 50.0)
  if gemma2 or final in meta:
    own['final_logit_softcapping'] = _real(header, final, 30.0)
  if not gemma2:
    own['rope_local_base_freq'] = _real(header, f'{name}.rope.freq_base_swa', 10000.0)
  return own


def _rope(header: Header, name: str, head_width: int, divisors: np.ndarray | None) -> Raw:
  meta, file = header.metadata, str(header.path)
  base = _real(header, f'{name}.rope.freq_base', 1e6 if name == 'gemma3' else 10000.0)
  key = f'{name}.rope.scaling'
  kind = meta.get(f'{key}.type', 'linear' if f'{key}.factor' in meta else 'none')
  scaling: Raw | None = None
  if kind == 'linear':
    scaling = {'rope_type': 'linear', 'factor': _real(header, f'{key}.factor')}
  elif kind == 'yarn':
    scaling = {
      'rope_type': 'yarn',
      'factor': _real(header, f'{key}.factor'),
      'original_max_position_embeddings': fields.integer(
        meta, file, f'{key}.original_context_length'
      ),
      'beta_fast': _real(header, f'{key}.yarn_beta_fast', 32.0),
      'beta_slow': _real(header, f'{key}.yarn_beta_slow', 1.0),
    }
  elif kind != 'none':
    raise InputError(f'{file}: {key}.type is {kind!r}; known: none, linear, yarn')
  if divisors is not None and not np.all((divisors > 0) & np.isfinite(divisors)):
    raise InputError(f'{file}: rope_freqs.weight is not all positive numbers; download it again')
  if divisors is not None and np.any(divisors != 1):
    if scaling:
      raise InputError(f'{file}: has both {key}.type {kind!r} and the tensor rope_freqs.weight')
    scaling = _divided(header, name, base, head_width, divisors)
  return {'rope_theta': base, 'rope_scaling': scaling}


def _divided(header: Header, name: str, base: float, head_width: int, divisors: np.ndarray) -> Raw:
  """Llama 3.1's scaling where the divisors are those, else LongRoPE with a single set of them."""
  llama3 = Rope(base, scaling='llama3', factor=_shortest(divisors.max()), original=8192)
  plain = frequencies(Rope(base), head_width)
  if plain.shape == divisors.shape and np.allclose(
    plain / divisors, frequencies(llama3, head_width), rtol=1e-5, atol=0
  ):
    return {
      'rope_type': 'llama3',
      'factor': llama3.factor,
      'low_freq_factor': llama3.low,
      'high_freq_factor': llama3.high,
      'original_max_position_embeddings': llama3.original,
    }
  return {
    'rope_type': 'longrope',
    'short_factor': [_shortest(x) for x in divisors],
    'long_factor': [_shortest(x) for x in divisors],
    'attention_factor': 1.0,
    'original_max_position_embeddings': field(header, f'{name}.context_length'),
  }


def _real(header: Header, key: str, default: float | None = None) -> float:
  return _shortest(fields.real(header.metadata, str(header.path), key, default))


def _shortest(value: Any) -> float:
  # The file keeps float32; the shortest decimal that names that float32 is what was meant.
  return float(str(np.float32(value)))
