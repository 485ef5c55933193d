"""Writes tests/interop/golden: a tiny model of each family, and what transformers computes with it.

python -m scripts.golden_families

Needs the extra `peers`. Every model has a folder as `save_pretrained` writes it, and beside it a
file with what went in and came out. Runs with one version of torch write the same numbers.
"""

import pathlib
import shutil
from typing import Any

import numpy as np
import safetensors.numpy

from tests.interop.decoders import architecture, rope
from tests.interop.families import batch, outputs, random_model

FOLDER = pathlib.Path(__file__).parents[1] / 'tests' / 'interop' / 'golden'

THEIRS = {
  'tokens': 'input_ids',
  'mask': 'attention_mask',
  'positions': 'position_ids',
  'types': 'token_type_ids',
  'targets': 'decoder_input_ids',
  'target_mask': 'decoder_attention_mask',
}
SIZES = {
  'vocab_size': 16,
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'num_key_value_heads': 1,
  'max_position_embeddings': 8,
  'rms_norm_eps': 3e-3,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
GEMMA = {'query_pre_attn_scalar': 20, 'sliding_window': 4, 'head_dim': 8}
LLAMA3 = {'factor': 4.0, 'low_freq_factor': 0.5, 'high_freq_factor': 2.0}
YARN = {'factor': 4.0, 'beta_fast': 0.9, 'beta_slow': 0.1}
LONGROPE = {'short_factor': [1.0, 2.0], 'long_factor': [1.5, 4.0], 'partial_rotary_factor': 0.5}

DECODERS: dict[str, dict[str, Any]] = {
  'llama': SIZES | rope('llama3', **LLAMA3, original_max_position_embeddings=16) | {'head_dim': 6},
  'mistral': SIZES | rope() | {'sliding_window': 4},
  'smollm3': SIZES | rope() | {'no_rope_layer_interval': 2, 'attention_bias': True},
  'qwen2': SIZES | rope('dynamic', factor=2.0) | {'tie_word_embeddings': True},
  'qwen3': SIZES | rope('yarn', **YARN) | {'head_dim': 8, 'use_sliding_window': True},
  'gemma2': SIZES
  | rope()
  | GEMMA
  | {'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0},
  'gemma3': SIZES
  | GEMMA
  | {'layer_types': ['sliding_attention', 'full_attention']}
  | {
    'rope_parameters': {
      'full_attention': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 50.0},
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 20.0},
    }
  },
  'phi3': SIZES | rope('longrope', **LONGROPE) | {'original_max_position_embeddings': 8},
  'gpt2': {
    'vocab_size': 16,
    'n_embd': 16,
    'n_inner': 18,
    'n_layer': 2,
    'n_head': 2,
    'n_positions': 12,
    'layer_norm_epsilon': 3e-3,
  },
  'gpt_neox': {k: v for k, v in SIZES.items() if k not in ('num_key_value_heads', 'rms_norm_eps')}
  | {'layer_norm_eps': 3e-3}
  | rope(partial_rotary_factor=0.5),
  'mixtral': SIZES | rope() | {'num_local_experts': 3, 'intermediate_size': 8},
  'qwen3_moe': SIZES
  | rope()
  | {'num_experts': 3, 'num_experts_per_tok': 2, 'moe_intermediate_size': 8}
  | {'mlp_only_layers': [0], 'head_dim': 8},
}
DECODERS['qwen3'] |= {'sliding_window': 4, 'max_window_layers': 1}

ENCODER = {
  'vocab_size': 16,
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'max_position_embeddings': 14,
  'layer_norm_eps': 3e-3,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
DISTILBERT = {
  'vocab_size': 16,
  'dim': 16,
  'hidden_dim': 20,
  'n_layers': 2,
  'n_heads': 2,
  'max_position_embeddings': 12,
}
MODERNBERT = {k: v for k, v in ENCODER.items() if k != 'layer_norm_eps'} | {
  'norm_eps': 3e-3,
  'local_attention': 4,
  'global_attn_every_n_layers': 2,
  'cls_token_id': 1,
  'sep_token_id': 2,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
  'bert': ('BertForMaskedLM', ENCODER),
  'roberta': ('RobertaForSequenceClassification', ENCODER | {'num_labels': 3}),
  'distilbert': ('DistilBertForTokenClassification', DISTILBERT | {'num_labels': 3}),
  'modernbert': ('ModernBertForMaskedLM', MODERNBERT),
}
T5 = {
  'vocab_size': 16,
  'd_model': 16,
  'd_kv': 6,
  'd_ff': 20,
  'num_layers': 2,
  'num_heads': 2,
  'relative_attention_num_buckets': 6,
  'relative_attention_max_distance': 7,
  'feed_forward_proj': 'gated-gelu',
  'layer_norm_epsilon': 3e-3,
}
VISION = {
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'image_size': 8,
  'patch_size': 4,
}


def main() -> None:
  for folder in FOLDER.iterdir():
    if folder.is_dir() and folder.name != 'adapters':  # those are of scripts/golden_adapters.py
      shutil.rmtree(folder)
  data = batch(16, 12, 'both')
  seen = {'tokens': data.tokens, 'mask': data.mask}
  for family, fields in DECODERS.items():
    write(family, architecture(family), fields, seen | {'positions': data.positions})
  types = {'types': (data.positions > 4).astype(np.int32)}
  for family, (kind, fields) in ENCODERS.items():
    write(family, kind, fields, seen | (types if family == 'bert' else {}))
  targets = {'targets': data.tokens[::-1], 'target_mask': data.mask[::-1]}
  write('t5', 'T5ForConditionalGeneration', T5, seen | targets)
  images = {'images': np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)}
  write('vit', 'ViTForImageClassification', VISION | {'num_labels': 3}, images)
  write('clip', 'CLIPVisionModel', VISION, images)
  size = sum(file.stat().st_size for file in FOLDER.rglob('*') if file.is_file())
  print(f'{size} bytes in {FOLDER}')


def write(name: str, kind: str, fields: dict[str, Any], given: dict[str, np.ndarray]) -> None:
  """A model's folder, and `<name>.safetensors` with what `apply` takes and its `outputs`."""
  import transformers

  model = random_model(kind, **fields)
  model.save_pretrained(FOLDER / name)
  (FOLDER / name / 'generation_config.json').unlink(missing_ok=True)
  if 'targets' in given:  # T5 does not scale its scores: its float32 is worse than our bound
    model = model.double()
  if 'images' in given:
    out = outputs(model, pixel_values=given['images'].transpose(0, 3, 1, 2))
  else:
    out = outputs(model, **{THEIRS[key]: x for key, x in given.items()})
  safetensors.numpy.save_file(
    {key: np.ascontiguousarray(x) for key, x in given.items()} | {'outputs': out},
    FOLDER / f'{name}.safetensors',
    metadata={'transformers': transformers.__version__, 'class': kind},
  )


if __name__ == '__main__':
  main()
