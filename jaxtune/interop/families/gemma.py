"""Gemma 2 and the text models of Gemma 3 in Hugging Face's files."""

import math
from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import decoder
from jaxtune.interop.names import Family, Name
from jaxtune.interop.rope_fields import read_ropes, write_ropes
from jaxtune.models import DecoderConfig
from jaxtune.ops import Rope

_LAYER = 'model.layers.{layer}.'


def names(config: DecoderConfig) -> tuple[Name, ...]:
  """The table of both: norms before and after attention and MLP."""
  return (
    *decoder.ENDS,
    *decoder.ATTENTION,
    *decoder.norm('decoder/{layer}/attn_post_norm', _LAYER + 'post_attention_layernorm'),
    *decoder.norm('decoder/{layer}/mlp_norm', _LAYER + 'pre_feedforward_layernorm'),
    *decoder.MLP,
    *decoder.norm('decoder/{layer}/mlp_post_norm', _LAYER + 'post_feedforward_layernorm'),
    *decoder.head(config),
  )


def _read(raw: dict[str, Any], file: str, positions: int, pattern: int) -> dict[str, Any]:
  """What both have; every `pattern`-th layer sees everything."""
  fields.refuse(raw, file, use_bidirectional_attention=False)
  sizes = decoder.read_sizes(
    raw,
    file,
    positions=positions,
    tied=True,
    head_width=256,
    activation='gelu_pytorch_tanh',
    activation_key='hidden_activation',
  )
  layers = sizes['layers']
  window = decoder.or_null(fields.integer, raw, file, 'sliding_window', 4096)
  local = [(i + 1) % pattern != 0 for i in range(layers)]
  biased = fields.boolean(raw, file, 'attention_bias', False)
  return {
    **sizes,
    **decoder.read_window(raw, file, layers, window, local),
    'norm_offset': 1.0,
    'order': 'sandwich',
    'qkv_bias': biased,
    'o_bias': biased,
    'attention_scale': fields.real(raw, file, 'query_pre_attn_scalar', 256.0) ** -0.5,
    'embed_scale': math.sqrt(sizes['width']),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  scalar = round(config.attention_scale**-2, 6)
  return {
    **decoder.write_sizes(config, 'hidden_activation'),
    'query_pre_attn_scalar': int(scalar) if scalar.is_integer() else scalar,
    'attention_bias': config.qkv_bias,
    'sliding_window': config.window or 4096,  # readers want one where no layer uses it, too
    'layer_types': decoder.layer_types(config),
    'final_logit_softcapping': config.logits_cap or None,
  }


def _read_gemma2(raw: dict[str, Any], file: str) -> DecoderConfig:
  common = _read(raw, file, 8192, 2)
  return DecoderConfig(
    **common,
    rope=decoder.read_whole_rope(raw, file, common),
    attention_cap=decoder.or_null(fields.real, raw, file, 'attn_logit_softcapping', 50.0),
    logits_cap=decoder.or_null(fields.real, raw, file, 'final_logit_softcapping', 30.0),
  )


def _write_gemma2(config: DecoderConfig) -> dict[str, Any]:
  return {
    **_write(config),
    'attn_logit_softcapping': config.attention_cap or None,
  }


def _read_gemma3(raw: dict[str, Any], file: str) -> DecoderConfig:
  fields.refuse(raw, file, attn_logit_softcapping=None)  # transformers reads and ignores it
  pattern = fields.integer(raw, file, 'sliding_window_pattern', 6)
  common = _read(raw, file, 131072, pattern)
  rope, local_rope = read_ropes(
    raw, file, common['head_width'], common['positions'], base=1000000.0, local_base=10000.0
  )
  return DecoderConfig(
    **common,
    rope=rope,
    local_rope=local_rope,
    qk_norm=True,
    logits_cap=decoder.or_null(fields.real, raw, file, 'final_logit_softcapping', None),
  )


def _write_gemma3(config: DecoderConfig) -> dict[str, Any]:
  rope = config.rope or Rope()
  local_rope = config.local_rope or rope
  return {
    **_write(config),
    **write_ropes(rope, local_rope, config.head_width),
    'rope_local_base_freq': local_rope.base,
  }


GEMMA2 = Family('gemma2', 'model.', names, _read_gemma2, _write_gemma2, decoder.classes('Gemma2'))
GEMMA3 = Family(
  'gemma3_text',
  'model.',
  names,
  _read_gemma3,
  _write_gemma3,
  classes={
    'features': 'Gemma3TextModel',
    'causal_lm': 'Gemma3ForCausalLM',
    'classification': 'Gemma3TextForSequenceClassification',
  },
)
