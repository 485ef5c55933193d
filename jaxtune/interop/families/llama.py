"""Llama in Hugging Face's files, and the names of the same weights in GGUF."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.names import Family, Name
from jaxtune.models import DecoderConfig
from jaxtune.typing import InputError

_LAYER = 'layers.{layer}.'

NAMES = (
  Name('embed/tokens', 'embed_tokens.weight'),
  Name('decoder/{layer}/attn_norm/scale', _LAYER + 'input_layernorm.weight'),
  Name('decoder/{layer}/attn/q', _LAYER + 'self_attn.q_proj.weight', True),
  Name('decoder/{layer}/attn/k', _LAYER + 'self_attn.k_proj.weight', True),
  Name('decoder/{layer}/attn/v', _LAYER + 'self_attn.v_proj.weight', True),
  Name('decoder/{layer}/attn/o', _LAYER + 'self_attn.o_proj.weight', True),
  Name('decoder/{layer}/mlp_norm/scale', _LAYER + 'post_attention_layernorm.weight'),
  Name('decoder/{layer}/mlp/gate', _LAYER + 'mlp.gate_proj.weight', True),
  Name('decoder/{layer}/mlp/up', _LAYER + 'mlp.up_proj.weight', True),
  Name('decoder/{layer}/mlp/down', _LAYER + 'mlp.down_proj.weight', True),
  Name('norm/scale', 'norm.weight'),
)

GGUF = (
  Name('embed/tokens', 'token_embd.weight'),
  Name('decoder/{layer}/attn_norm/scale', 'blk.{layer}.attn_norm.weight'),
  Name('decoder/{layer}/attn/q', 'blk.{layer}.attn_q.weight', True),
  Name('decoder/{layer}/attn/k', 'blk.{layer}.attn_k.weight', True),
  Name('decoder/{layer}/attn/v', 'blk.{layer}.attn_v.weight', True),
  Name('decoder/{layer}/attn/o', 'blk.{layer}.attn_output.weight', True),
  Name('decoder/{layer}/mlp_norm/scale', 'blk.{layer}.ffn_norm.weight'),
  Name('decoder/{layer}/mlp/gate', 'blk.{layer}.ffn_gate.weight', True),
  Name('decoder/{layer}/mlp/up', 'blk.{layer}.ffn_up.weight', True),
  Name('decoder/{layer}/mlp/down', 'blk.{layer}.ffn_down.weight', True),
  Name('norm/scale', 'output_norm.weight'),
  Name('head/dense', 'output.weight', True),
)


def names(config: DecoderConfig) -> tuple[Name, ...]:
  """The table, with the head that the configuration has."""
  return (*NAMES, Name('head/dense', 'score.weight' if config.outputs else 'lm_head.weight', True))


def read_config(raw: dict[str, Any], file: str, outputs: int) -> DecoderConfig:
  """The decoder that a `config.json` describes.

  The rotary base is read from `rope_parameters` (transformers 5) or `rope_theta` (before it).

  Raises:
    InputError: a field is missing, malformed, or asks for arithmetic that the decoder lacks.
  """
  fields.refuse(raw, file, attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0)
  rope: dict[str, Any] = {}
  for key in ('rope_scaling', 'rope_parameters'):
    rope = raw.get(key) or rope
    if not isinstance(rope, dict):
      raise InputError(f'{file}: {key} is {rope!r}; it must be an object')
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind != 'default':
      raise InputError(
        f'{file}: {key} asks for rotary scaling {kind!r}, which jaxtune cannot compute '
        "(only 'default'); choose another checkpoint"
      )
    fields.refuse(rope, f'{file}: {key}', partial_rotary_factor=1.0)
  base = fields.real(rope if rope.get('rope_theta') else raw, file, 'rope_theta', 10000.0)
  width = fields.integer(raw, file, 'hidden_size')
  heads = fields.integer(raw, file, 'num_attention_heads')
  config = DecoderConfig(
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=width,
    hidden=fields.integer(raw, file, 'intermediate_size'),
    layers=fields.integer(raw, file, 'num_hidden_layers'),
    heads=heads,
    kv_heads=fields.integer(raw, file, 'num_key_value_heads', heads),
    head_width=fields.integer(raw, file, 'head_dim', max(1, width // heads)),
    positions=fields.integer(raw, file, 'max_position_embeddings', 2048),
    rope_base=base,
    epsilon=fields.real(raw, file, 'rms_norm_eps', 1e-6),
    activation=fields.activation(raw, file, 'silu'),
    tied=bool(raw.get('tie_word_embeddings', False)),
    outputs=outputs,
    init_scale=fields.real(raw, file, 'initializer_range', 0.02),
  )
  check_heads(config, file)
  return config


def check_heads(config: DecoderConfig, file: str) -> None:
  """Query heads must share key-value heads evenly, and rotary positions pair a head's halves.

  Raises:
    InputError: they do not.
  """
  if config.heads % config.kv_heads or config.head_width % 2:
    raise InputError(
      f'{file}: {config.heads} heads of width {config.head_width} over {config.kv_heads} key-value '
      'heads do not fit (a multiple, an even width); take the config that belongs to the weights'
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the decoder fixes, in both forms of the rotary base."""
  return {
    'architectures': ['LlamaForSequenceClassification' if config.outputs else 'LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': config.vocabulary,
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_width,
    'max_position_embeddings': config.positions,
    'rope_theta': config.rope_base,
    'rope_scaling': None,
    'rope_parameters': {'rope_theta': config.rope_base, 'rope_type': 'default'},
    'rms_norm_eps': config.epsilon,
    'hidden_act': config.activation,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }


LLAMA = Family('llama', 'model.', names, read_config, write_config)
