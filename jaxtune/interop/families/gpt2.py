"""GPT-2 in Hugging Face's files, which hold matrices as `[in, out]`."""

from typing import Any

import numpy as np

from jaxtune.interop import fields
from jaxtune.interop.families import decoder
from jaxtune.interop.names import Family, Name
from jaxtune.models import DecoderConfig

_OURS = 'decoder/{layer}/'
_LAYER = 'transformer.h.{layer}.'


def names(config: DecoderConfig) -> tuple[Name, ...]:
  """The table."""
  rows = [
    Name('embed/tokens', 'transformer.wte.weight'),
    Name('embed/positions', 'transformer.wpe.weight'),
    *decoder.norm(_OURS + 'attn_norm', _LAYER + 'ln_1'),
    *_dense('attn/o', 'attn.c_proj'),
    *decoder.norm(_OURS + 'mlp_norm', _LAYER + 'ln_2'),
    *_dense('mlp/up', 'mlp.c_fc'),
    *_dense('mlp/down', 'mlp.c_proj'),
    *decoder.norm('norm', 'transformer.ln_f'),
    *decoder.head(config, token='classifier'),
  ]
  for i, name in enumerate('qkv'):
    part = np.arange(i * config.width, (i + 1) * config.width)
    rows += [row._replace(part=part) for row in _dense(f'attn/{name}', 'attn.c_attn')]
  return tuple(rows)


def _dense(ours: str, theirs: str) -> tuple[Name, Name]:
  weight, bias = decoder.dense(_OURS + ours, _LAYER + theirs)
  return weight._replace(transpose=False), bias


def _read(raw: dict[str, Any], file: str) -> DecoderConfig:
  fields.refuse(raw, file, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
  width = fields.integer(raw, file, 'n_embd')
  heads = fields.integer(raw, file, 'n_head')
  fields.check_width(width, heads, file)
  return DecoderConfig(
    model_type='gpt2',
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=width,
    hidden=fields.integer(raw, file, 'n_inner', 4 * width),
    layers=fields.integer(raw, file, 'n_layer'),
    heads=heads,
    positions=fields.integer(raw, file, 'n_positions', 1024),
    learned_positions=True,
    rope=None,
    norm='layer',
    norm_bias=True,
    epsilon=fields.real(raw, file, 'layer_norm_epsilon', 1e-5),
    activation=fields.activation(raw, file, 'gelu_new', 'activation_function'),
    gated=False,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    attention_scale=0.0 if fields.boolean(raw, file, 'scale_attn_weights', True) else 1.0,
    tied=fields.boolean(raw, file, 'tie_word_embeddings', True),
    init_scale=fields.real(raw, file, 'initializer_range', 0.02),
  )


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    'vocab_size': config.vocabulary,
    'n_embd': config.width,
    'n_inner': config.hidden,
    'n_layer': config.layers,
    'n_head': config.heads,
    'n_positions': config.positions,
    'layer_norm_epsilon': config.epsilon,
    'activation_function': config.activation,
    'scale_attn_weights': not config.attention_scale,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }


GPT2 = Family(
  'gpt2',
  'transformer.',
  names,
  _read,
  _write,
  decoder.classes('GPT2') | {'causal_lm': 'GPT2LMHeadModel'},
  buffers=r'\.attn\.(masked_)?bias$',  # the causal mask, in old files
)
