"""GPT-NeoX and Pythia in Hugging Face's files, which hold the queries, keys and values of each head
side by side."""

from typing import Any

import numpy as np

from jaxtune.interop import fields
from jaxtune.interop.families import decoder
from jaxtune.interop.names import Family, Name
from jaxtune.interop.rope_fields import read_rope, write_rope
from jaxtune.models import DecoderConfig
from jaxtune.ops import Rope

_OURS = 'decoder/{layer}/'
_LAYER = 'gpt_neox.layers.{layer}.'


def names(config: DecoderConfig) -> tuple[Name, ...]:
  """The table."""
  rows = [
    Name('embed/tokens', 'gpt_neox.embed_in.weight'),
    *decoder.norm(_OURS + 'attn_norm', _LAYER + 'input_layernorm'),
    *decoder.dense(_OURS + 'attn/o', _LAYER + 'attention.dense'),
    *decoder.norm(_OURS + 'mlp_norm', _LAYER + 'post_attention_layernorm'),
    *decoder.dense(_OURS + 'mlp/up', _LAYER + 'mlp.dense_h_to_4h'),
    *decoder.dense(_OURS + 'mlp/down', _LAYER + 'mlp.dense_4h_to_h'),
    *decoder.norm('norm', 'gpt_neox.final_layer_norm'),
    *decoder.head(config, 'embed_out', token='classifier'),
  ]
  entries = np.arange(3 * config.width).reshape(config.heads, 3, config.head_width)
  for i, name in enumerate('qkv'):
    fused = decoder.dense(f'{_OURS}attn/{name}', _LAYER + 'attention.query_key_value')
    rows += [row._replace(part=entries[:, i].reshape(-1)) for row in fused]
  return tuple(rows)


def _read(raw: dict[str, Any], file: str) -> DecoderConfig:
  width = fields.integer(raw, file, 'hidden_size')
  heads = fields.integer(raw, file, 'num_attention_heads')
  fields.check_width(width, heads, file)
  positions = fields.integer(raw, file, 'max_position_embeddings', 2048)
  biased = fields.boolean(raw, file, 'attention_bias', True)
  return DecoderConfig(
    model_type='gpt_neox',
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=width,
    hidden=fields.integer(raw, file, 'intermediate_size'),
    layers=fields.integer(raw, file, 'num_hidden_layers'),
    heads=heads,
    positions=positions,
    rope=read_rope(
      raw,
      file,
      width // heads,
      positions,
      base_key='rotary_emb_base',
      part=0.25,
      part_key='rotary_pct',
    ),
    norm='layer',
    norm_bias=True,
    order='parallel' if fields.boolean(raw, file, 'use_parallel_residual', True) else 'pre',
    epsilon=fields.real(raw, file, 'layer_norm_eps', 1e-5),
    activation=fields.activation(raw, file, 'gelu'),
    gated=False,
    qkv_bias=biased,
    o_bias=biased,
    mlp_bias=True,
    tied=fields.boolean(raw, file, 'tie_word_embeddings', False),
    init_scale=fields.real(raw, file, 'initializer_range', 0.02),
  )


def _write(config: DecoderConfig) -> dict[str, Any]:
  rope = config.rope or Rope()
  written = write_rope(rope, config.head_width)
  part = {'partial_rotary_factor': written.pop('partial_rotary_factor', 1.0)}
  return {
    **written,
    'rope_parameters': written['rope_parameters'] | part,
    'rotary_emb_base': rope.base,
    'rotary_pct': part['partial_rotary_factor'],
    'vocab_size': config.vocabulary,
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'max_position_embeddings': config.positions,
    'use_parallel_residual': config.order == 'parallel',
    'layer_norm_eps': config.epsilon,
    'hidden_act': config.activation,
    'attention_bias': config.qkv_bias,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }


NEOX = Family(
  'gpt_neox',
  'gpt_neox.',
  names,
  _read,
  _write,
  decoder.classes('GPTNeoX'),
  renamed=((r'^lm_head\.', 'embed_out.'),),
  live=((r'^embed_out\.', 'lm_head.'),),
  buffers=r'(rotary_emb\.inv_freq|attention\.(masked_)?bias)$',  # in old files
)
