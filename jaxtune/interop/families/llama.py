"""Llama, Mistral and SmolLM3 in Hugging Face's files."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import decoder
from jaxtune.interop.names import Family, Name
from jaxtune.models import DecoderConfig


def names(config: DecoderConfig) -> tuple[Name, ...]:
  """The table of all families with the layers of Llama."""
  return (
    *decoder.ENDS,
    *decoder.ATTENTION,
    *decoder.MLP_NORM,
    *decoder.MLP,
    *decoder.head(config),
  )


def _read_llama(raw: dict[str, Any], file: str) -> DecoderConfig:
  sizes = decoder.read_sizes(raw, file, positions=2048)
  biased = fields.boolean(raw, file, 'attention_bias', False)
  return DecoderConfig(
    **sizes,
    rope=decoder.read_whole_rope(raw, file, sizes),
    qkv_bias=biased,
    o_bias=biased,
    mlp_bias=fields.boolean(raw, file, 'mlp_bias', False),
  )


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
  return {
    **decoder.write_sizes(config),
    'attention_bias': config.qkv_bias,
    'mlp_bias': config.mlp_bias,
  }


def _read_mistral(raw: dict[str, Any], file: str) -> DecoderConfig:
  fields.refuse(raw, file, layer_types=None)
  sizes = decoder.read_sizes(raw, file, positions=131072)
  return DecoderConfig(
    **sizes,
    rope=decoder.read_whole_rope(raw, file, sizes),
    window=decoder.or_null(fields.integer, raw, file, 'sliding_window', 4096),
  )


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
  return {
    **decoder.write_sizes(config),
    'sliding_window': config.window or None,
  }


def _read_smollm3(raw: dict[str, Any], file: str) -> DecoderConfig:
  sizes = decoder.read_sizes(raw, file, positions=32768, tied=True)
  layers = sizes['layers']
  if raw.get('no_rope_layers') is None:  # named for the layers without, it lists those with
    interval = fields.integer(raw, file, 'no_rope_layer_interval', 4)
    rotated = tuple((i + 1) % interval != 0 for i in range(layers))
  else:
    rotated = decoder.flags(raw, file, 'no_rope_layers', layers, {0: False, 1: True})
  window = 0
  if fields.boolean(raw, file, 'use_sliding_window', False):
    window = decoder.or_null(fields.integer, raw, file, 'sliding_window', None)
  biased = fields.boolean(raw, file, 'attention_bias', False)
  return DecoderConfig(
    **sizes,
    rope=decoder.read_whole_rope(raw, file, sizes, 2000000.0),
    **decoder.read_window(
      raw, file, layers, window, [window > 0 and not turned for turned in rotated]
    ),
    rotated=() if all(rotated) else rotated,
    qkv_bias=biased,
    o_bias=biased,
    mlp_bias=fields.boolean(raw, file, 'mlp_bias', False),
  )


def _write_smollm3(config: DecoderConfig) -> dict[str, Any]:
  return {
    **_write_llama(config),
    'use_sliding_window': config.window > 0,
    'sliding_window': config.window or None,
    'layer_types': decoder.layer_types(config),
    'no_rope_layers': [int(turned) for turned in config.rotated or (True,) * config.layers],
  }


LLAMA = Family('llama', 'model.', names, _read_llama, _write_llama, decoder.classes('Llama'))
MISTRAL = Family(
  'mistral', 'model.', names, _read_mistral, _write_mistral, decoder.classes('Mistral')
)
SMOLLM3 = Family(
  'smollm3', 'model.', names, _read_smollm3, _write_smollm3, decoder.classes('SmolLM3')
)
