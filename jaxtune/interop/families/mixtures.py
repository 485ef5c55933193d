"""Mixtures of experts in Hugging Face's files: Mixtral and Qwen 3."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import decoder, llama
from jaxtune.interop.families.qwen import read_window
from jaxtune.interop.names import Family, Name
from jaxtune.models import DecoderConfig
from jaxtune.typing import InputError

_OURS = 'decoder/{layer}/'


def _names(config: DecoderConfig, block: str, gate: str, up: str, down: str) -> tuple[Name, ...]:
  expert = f'model.layers.{{layer}}.{block}.experts.{{expert}}.'
  return (
    *llama.names(config),
    Name(_OURS + 'router/dense', f'model.layers.{{layer}}.{block}.gate.weight', True),
    Name(_OURS + 'experts/gate', f'{expert}{gate}.weight', True),
    Name(_OURS + 'experts/up', f'{expert}{up}.weight', True),
    Name(_OURS + 'experts/down', f'{expert}{down}.weight', True),
  )


def _mixtral_names(config: DecoderConfig) -> tuple[Name, ...]:
  return _names(config, 'block_sparse_moe', 'w1', 'w3', 'w2')


def _read_mixtral(raw: dict[str, Any], file: str) -> DecoderConfig:
  sizes = decoder.read_sizes(raw, file, positions=131072, epsilon=1e-5)
  return DecoderConfig(
    **sizes,
    rope=decoder.read_whole_rope(raw, file, sizes, 1000000.0),
    **_read_experts(raw, file, 8, 2),
    expert_hidden=sizes['hidden'],
    window=decoder.or_null(fields.integer, raw, file, 'sliding_window', None),
  )


def _write_mixtral(config: DecoderConfig) -> dict[str, Any]:
  return {
    **decoder.write_sizes(config),
    'num_local_experts': config.experts,
    'num_experts_per_tok': config.experts_per_token,
    'sliding_window': config.window or None,
  }


def _qwen3_names(config: DecoderConfig) -> tuple[Name, ...]:
  return _names(config, 'mlp', 'gate_proj', 'up_proj', 'down_proj')


def _read_qwen3(raw: dict[str, Any], file: str) -> DecoderConfig:
  sizes = decoder.read_sizes(raw, file, positions=32768)
  biased = fields.boolean(raw, file, 'attention_bias', False)
  step = fields.integer(raw, file, 'decoder_sparse_step', 1)
  dense = raw.get('mlp_only_layers') or []
  if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
    raise InputError(f'{file}: mlp_only_layers is {dense!r}; it must be a list of layers')
  sparse = tuple(i not in dense and (i + 1) % step == 0 for i in range(sizes['layers']))
  return DecoderConfig(
    **sizes,
    rope=decoder.read_whole_rope(raw, file, sizes),
    **_read_experts(raw, file, 128, 8),
    expert_hidden=fields.integer(raw, file, 'moe_intermediate_size', 768),
    normalize_gates=fields.boolean(raw, file, 'norm_topk_prob', False),
    sparse=() if all(sparse) else sparse,
    qkv_bias=biased,
    o_bias=biased,
    qk_norm=True,
    window=read_window(raw, file),
  )


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
  return {
    **decoder.write_sizes(config),
    'num_experts': config.experts,
    'num_local_experts': config.experts,
    'num_experts_per_tok': config.experts_per_token,
    'moe_intermediate_size': config.expert_hidden,
    'norm_topk_prob': config.normalize_gates,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [layer for layer, sparse in enumerate(config.sparse) if not sparse],
    'attention_bias': config.qkv_bias,
    'use_sliding_window': config.window > 0,
    'sliding_window': config.window or None,
  }


def _read_experts(raw: dict[str, Any], file: str, experts: int, chosen: int) -> dict[str, Any]:
  key = 'num_experts' if raw.get('num_experts') else 'num_local_experts'
  experts = fields.integer(raw, file, key, experts)
  chosen = fields.integer(raw, file, 'num_experts_per_tok', chosen)
  if chosen > experts:
    raise InputError(
      f'{file}: num_experts_per_tok is {chosen} of {experts} experts; '
      'take the config that belongs to the weights'
    )
  return {'experts': experts, 'experts_per_token': chosen}


MIXTRAL = Family(
  'mixtral', 'model.', _mixtral_names, _read_mixtral, _write_mixtral, decoder.classes('Mixtral')
)
QWEN3_MOE = Family(
  'qwen3_moe', 'model.', _qwen3_names, _read_qwen3, _write_qwen3, decoder.classes('Qwen3Moe')
)
