"""Fields and names of the decoder families in older files, and what is refused by name."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxtune import interop
from jaxtune.typing import InputError

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def edited(name, folder, absent=(), **changes):
  """A golden model whose config.json has other fields."""
  raw = json.loads((GOLDEN / name / 'config.json').read_text())
  raw = {key: value for key, value in raw.items() if key not in absent} | changes
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(raw))
  if not (folder / 'model.safetensors').exists():
    (folder / 'model.safetensors').symlink_to(GOLDEN / name / 'model.safetensors')
  return folder


ROPE = 'rope_parameters'
LLAMA3 = {
  'type': 'llama3',
  'factor': 4.0,
  'low_freq_factor': 0.5,
  'high_freq_factor': 2.0,
  'original_max_position_embeddings': 16,
}
LONGROPE = {'type': 'su', 'short_factor': [1.0, 2.0], 'long_factor': [1.5, 4.0]}
OLD = [
  ('llama', (ROPE, 'dtype'), {'rope_theta': 100.0, 'rope_scaling': LLAMA3}),
  ('mistral', (ROPE,), {'rope_theta': 100.0}),
  ('smollm3', (ROPE, 'no_rope_layers', 'layer_types'), {'rope_theta': 100.0}),
  (
    'qwen2',
    (ROPE, 'layer_types'),
    {'rope_theta': 100.0, 'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
  ),
  ('qwen3', ('layer_types',), {}),
  ('gemma2', (ROPE, 'layer_types'), {'rope_theta': 100.0}),
  (
    'gemma3',
    (ROPE, 'layer_types'),
    {
      'rope_theta': 50.0,
      'rope_local_base_freq': 20.0,
      'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
      'sliding_window_pattern': 2,
    },
  ),
  (
    'phi3',
    (ROPE,),
    {'rope_theta': 100.0, 'partial_rotary_factor': 0.5, 'rope_scaling': LONGROPE},
  ),
  ('gpt_neox', (ROPE,), {'rotary_emb_base': 100, 'rotary_pct': 0.5}),
  ('mixtral', (ROPE,), {'rope_theta': 100.0}),
  ('qwen3_moe', (ROPE, 'num_local_experts'), {'rope_theta': 100.0, 'num_experts': 3}),
]


@pytest.mark.parametrize(('name', 'absent', 'added'), OLD, ids=[name for name, *_ in OLD])
def test_fields_of_transformers_4(tmp_path, name, absent, added):
  model, _ = interop.load(GOLDEN / name)
  assert interop.load(edited(name, tmp_path / 'old', absent, **added))[0].config == model.config


OLD_NAMES = [
  ('gpt2', lambda n: n.removeprefix('transformer.'), ['h.1.attn.bias', 'h.1.attn.masked_bias']),
  ('gpt_neox', lambda n: n, [f'gpt_neox.layers.0.attention.{n}' for n in ('bias', 'masked_bias')]),
  ('gpt_neox', lambda n: n, ['gpt_neox.layers.1.attention.rotary_emb.inv_freq']),
  ('llama', lambda n: n, ['model.layers.0.self_attn.rotary_emb.inv_freq']),
]


@pytest.mark.parametrize(('name', 'rename', 'buffers'), OLD_NAMES)
def test_tensors_of_old_files(tmp_path, name, rename, buffers):
  """The Hub's GPT-2 has no prefix, and the first files of some families have buffers."""
  tensors = safetensors.numpy.load_file(GOLDEN / name / 'model.safetensors')
  old = {rename(key): value for key, value in tensors.items()}
  old |= {key: np.ones(3, np.float32) for key in buffers}
  folder = tmp_path / 'old'
  folder.mkdir()
  safetensors.numpy.save_file(old, folder / 'model.safetensors')
  _, got = interop.load(edited(name, folder))
  _, want = interop.load(GOLDEN / name)
  jax.tree.map(np.testing.assert_array_equal, want, got)


def rope(kind='default', **fields):
  return {ROPE: {'rope_type': kind, 'rope_theta': 100.0, **fields}}


FULL, SLIDING = 'full_attention', 'sliding_attention'
REFUSED = [
  ('llama', {'hidden_act': 'swiglu'}, "hidden_act is 'swiglu'; known: gelu"),
  ('llama', {'attention_bias': 'no'}, "attention_bias is 'no'; it must be true or false"),
  ('llama', {'num_key_value_heads': 3}, 'over 3 key-value heads do not fit'),
  ('llama', rope('ntk', factor=2.0), "rotary scaling 'ntk'; known: default"),
  ('llama', rope(partial_rotary_factor=0.7), 'partial_rotary_factor is 0.666667, which llama'),
  ('mistral', {'layer_types': [FULL, SLIDING]}, 'layer_types is .* cannot compute'),
  ('mistral', {'sliding_window': 0}, 'sliding_window is 0'),
  ('smollm3', {'no_rope_layers': [1, 2]}, 'no_rope_layers has 2, .* known: 0, 1'),
  ('smollm3', {'no_rope_layers': [1]}, 'no_rope_layers is 1 entries; it must be a list of 2'),
  ('qwen2', {'layer_types': FULL}, "layer_types is 'full_attention'; it must be a list of 2"),
  ('qwen2', {'layer_types': [FULL, 'chunked_attention']}, "has 'chunked_attention'"),
  ('qwen2', {'layer_types': [FULL, SLIDING]}, 'switches it off'),
  ('qwen3', {'max_window_layers': -1}, 'max_window_layers is -1'),
  ('gemma2', {'layer_types': None, 'sliding_window': None}, 'switches it off'),
  ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention is True'),
  ('gemma2', {'attn_logit_softcapping': 0.0}, 'attn_logit_softcapping is 0.0'),
  ('gemma3', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping is 50.0'),
  ('gemma3', {'model_type': 'gemma3'}, "model_type is 'gemma3'; known: .*gemma3_text"),
  ('phi3', rope('linear', factor=2.0), "scaling 'linear', but phi3 has longrope alone"),
  ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx is True'),
  ('gpt2', {'add_cross_attention': True}, 'add_cross_attention is True'),
  ('gpt2', {'n_head': 3}, 'width 16 is not a multiple of the 3 attention heads'),
  ('gpt2', {'activation_function': 'tanhshrink'}, "activation_function is 'tanhshrink'"),
  ('gpt_neox', {'num_attention_heads': 3}, 'not a multiple of the 3'),
  ('gpt_neox', rope(partial_rotary_factor=0.4), 'make no rotation'),
  ('mixtral', {'num_experts_per_tok': 4}, 'num_experts_per_tok is 4 of 3 experts'),
  ('qwen3_moe', {'mlp_only_layers': 1}, 'mlp_only_layers is 1; it must be a list'),
]


@pytest.mark.parametrize(('name', 'changes', 'text'), REFUSED)
def test_what_is_refused(tmp_path, name, changes, text):
  """Contract: what is not supported is refused by name, in one line, before weights are read."""
  with pytest.raises(InputError) as error:
    interop.load(edited(name, tmp_path / 'bad', **changes))
  assert re.search(text, str(error.value)), error.value
  assert 'config.json' in str(error.value) and '\n' not in str(error.value)
