"""Phi-3 in Hugging Face's files, which hold queries, keys and values, and gate and up, as one."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import decoder
from jaxtune.interop.names import Family, Name
from jaxtune.interop.rope_fields import read_rope
from jaxtune.models import DecoderConfig
from jaxtune.typing import InputError

_OURS, _LAYER = 'decoder/{layer}/', 'model.layers.{layer}.'


def names(config: DecoderConfig) -> tuple[Name, ...]:
  """The table."""
  queries, keys = (count * config.head_width for count in (config.heads, config.kv_heads))
  return (
    *decoder.ENDS,
    *decoder.norm(_OURS + 'attn_norm', _LAYER + 'input_layernorm'),
    *decoder.fused(
      _LAYER + 'self_attn.qkv_proj',
      {_OURS + 'attn/q': queries, _OURS + 'attn/k': keys, _OURS + 'attn/v': keys},
    ),
    Name(_OURS + 'attn/o', _LAYER + 'self_attn.o_proj.weight', True),
    *decoder.MLP_NORM,
    *decoder.fused(
      _LAYER + 'mlp.gate_up_proj',
      {_OURS + 'mlp/gate': config.hidden, _OURS + 'mlp/up': config.hidden},
    ),
    Name(_OURS + 'mlp/down', _LAYER + 'mlp.down_proj.weight', True),
    *decoder.head(config),
  )


def _read(raw: dict[str, Any], file: str) -> DecoderConfig:
  sizes = decoder.read_sizes(raw, file, positions=4096, epsilon=1e-5)
  rope = read_rope(raw, file, sizes['head_width'], sizes['positions'])
  if rope.scaling not in ('default', 'longrope'):
    raise InputError(
      f'{file}: asks for rotary scaling {rope.scaling!r}, but phi3 has longrope alone; '
      'take the config that belongs to the weights'
    )
  return DecoderConfig(
    **sizes,
    rope=rope,
    window=decoder.or_null(fields.integer, raw, file, 'sliding_window', None),
  )


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    **decoder.write_sizes(config),
    'sliding_window': config.window or None,
  }


PHI3 = Family('phi3', 'model.', names, _read, _write, decoder.classes('Phi3'))
