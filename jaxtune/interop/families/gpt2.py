"""GPT-2 in Hugging Face's files, which hold matrices as `[in, out]`."""

from typing import Any

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
    *decoder.fused(_LAYER + 'attn.c_attn', {f'{_OURS}attn/{name}': config.width for name in 'qkv'}),
    *decoder.dense(_OURS + 'attn/o', _LAYER + 'attn.c_proj'),
    *decoder.norm(_OURS + 'mlp_norm', _LAYER + 'ln_2'),
    *decoder.dense(_OURS + 'mlp/up', _LAYER + 'mlp.c_fc'),
    *decoder.dense(_OURS + 'mlp/down', _LAYER + 'mlp.c_proj'),
    *decoder.norm('norm', 'transformer.ln_f'),
  ]
  # Its heads alone are held as `[out, in]`.
  return (
    *(row._replace(transpose=False) for row in rows),
    *decoder.head(config, token='classifier'),
  )


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
