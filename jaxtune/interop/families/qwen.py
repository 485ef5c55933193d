"""Qwen 2, 2.5 and 3 in Hugging Face's files."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import decoder
from jaxtune.interop.families.llama import names
from jaxtune.interop.names import Family
from jaxtune.models import DecoderConfig


def read_window(raw: dict[str, Any], file: str) -> int:
  """The window, in tokens; 0 for none.

  Raises:
    InputError: a field is malformed.
  """
  if not fields.boolean(raw, file, 'use_sliding_window', False):
    return 0
  return decoder.or_null(fields.integer, raw, file, 'sliding_window', 4096)


def _read(raw: dict[str, Any], file: str, head_width: int = 0) -> dict[str, Any]:
  sizes = decoder.read_sizes(raw, file, positions=32768, head_width=head_width)
  layers = sizes['layers']
  first = fields.integer(raw, file, 'max_window_layers', 28, least=0)
  window = read_window(raw, file)
  return {
    **sizes,
    'rope': decoder.read_whole_rope(raw, file, sizes),
    **decoder.read_window(
      raw, file, layers, window, [window > 0 and i >= first for i in range(layers)]
    ),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    **decoder.write_sizes(config),
    'use_sliding_window': config.window > 0,
    'sliding_window': config.window or None,
    'layer_types': decoder.layer_types(config),
  }


def _read_qwen2(raw: dict[str, Any], file: str) -> DecoderConfig:
  return DecoderConfig(**_read(raw, file), qkv_bias=True)


def _read_qwen3(raw: dict[str, Any], file: str) -> DecoderConfig:
  biased = fields.boolean(raw, file, 'attention_bias', False)
  return DecoderConfig(**_read(raw, file, 128), qkv_bias=biased, o_bias=biased, qk_norm=True)


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
  return {**_write(config), 'attention_bias': config.qkv_bias}


QWEN2 = Family('qwen2', 'model.', names, _read_qwen2, _write, decoder.classes('Qwen2'))
QWEN3 = Family('qwen3', 'model.', names, _read_qwen3, _write_qwen3, decoder.classes('Qwen3'))
