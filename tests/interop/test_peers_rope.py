"""Rotary positions beside those of transformers, read from and written to its configurations."""

import json

import numpy as np
import pytest

from jaxtune import ops
from jaxtune.interop.rope_fields import read_rope, read_ropes, write_rope, write_ropes

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
gemma3 = pytest.importorskip('transformers.models.gemma3.modeling_gemma3')
neox = pytest.importorskip('transformers.models.gpt_neox.modeling_gpt_neox')
llama = pytest.importorskip('transformers.models.llama.modeling_llama')
phi3 = pytest.importorskip('transformers.models.phi3.modeling_phi3')
pytestmark = pytest.mark.peers

HEAD, POSITIONS, ORIGINAL = 16, 128, 'original_max_position_embeddings'
TINY = {
  'vocab_size': 20,
  'hidden_size': 64,
  'intermediate_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 4,
  'max_position_embeddings': POSITIONS,
}
DIVISORS = {
  'short_factor': [1.0 + i / 8 for i in range(8)],
  'long_factor': [1.0 + i for i in range(8)],
}
SCALINGS = {
  'default': {'rope_type': 'default'},
  'linear': {'rope_type': 'linear', 'factor': 4.0},
  'dynamic': {'rope_type': 'dynamic', 'factor': 2.0},
  'llama3': {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    ORIGINAL: 64,
  },
  'yarn': {'rope_type': 'yarn', 'factor': 4.0, ORIGINAL: 64},
  'yarn with every field': {
    'rope_type': 'yarn',
    'factor': 4.0,
    ORIGINAL: 64,
    'beta_fast': 9.0,
    'beta_slow': 2.0,
    'mscale': 1.0,
    'mscale_all_dim': 0.5,
    'truncate': False,
  },
  'yarn with its growth': {
    'rope_type': 'yarn',
    'factor': 4.0,
    ORIGINAL: 64,
    'attention_factor': 1.25,
  },
  'longrope': {'rope_type': 'longrope', ORIGINAL: 64} | DIVISORS,
  'longrope with a factor': {'rope_type': 'longrope', 'factor': 3.0, ORIGINAL: 64} | DIVISORS,
}


def agree(module, rope, longest, head_width=HEAD, **kind):
  rng = np.random.default_rng(0)
  positions = rng.integers(0, longest, (2, 9))
  positions[1, 3] = longest
  with torch.no_grad():
    cos, sin = module(torch.zeros(1), torch.tensor(positions), **kind)
  table = ops.rope_table(positions, head_width, rope)
  half = table.cos.shape[-1]
  assert cos.shape[-1] == 2 * half
  # Both compute angles in float32, of which these are hundreds of radians.
  for got, want in ((table.cos, cos), (table.sin, sin)):
    np.testing.assert_allclose(got, want[..., :half].numpy(), atol=2e-4)


@pytest.mark.parametrize('longest', [40, 63, 64, 127, 128, 700])
@pytest.mark.parametrize('base', [100.0, 10000.0])
@pytest.mark.parametrize('name', SCALINGS)
def test_each_scaling(name, base, longest):
  theirs = SCALINGS[name] | {'rope_theta': base}
  config = transformers.LlamaConfig(**TINY, rope_parameters=dict(theirs))
  rope = read_rope(json.loads(config.to_json_string()), 'config.json', HEAD, POSITIONS)
  agree(llama.LlamaRotaryEmbedding(config), rope, longest)
  old = {'rope_theta': base, 'rope_scaling': dict(SCALINGS[name])}
  old['rope_scaling']['type'] = old['rope_scaling'].pop('rope_type')
  assert read_rope(old, 'config.json', HEAD, POSITIONS) == rope
  written = transformers.LlamaConfig(**TINY, **write_rope(rope, HEAD))
  agree(llama.LlamaRotaryEmbedding(written), rope, longest)


def test_every_scaling_that_transformers_has_is_known_or_refused():
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  ours = {scaling['rope_type'] for scaling in SCALINGS.values()}
  assert set(ROPE_INIT_FUNCTIONS) - ours <= {'proportional'}


def test_a_part_of_the_head():
  config = transformers.GPTNeoXConfig(
    hidden_size=64, num_attention_heads=4, rotary_pct=0.25, rotary_emb_base=500.0
  )
  raw = json.loads(config.to_json_string())
  rope = read_rope(raw, 'f', HEAD, POSITIONS)
  assert rope == ops.Rope(500.0, 4)
  agree(neox.GPTNeoXRotaryEmbedding(config), rope, 100)


@pytest.mark.parametrize('longest', [60, 100])
def test_phi3(longest):
  config = transformers.Phi3Config(
    **TINY,
    pad_token_id=0,
    original_max_position_embeddings=64,
    rope_scaling={'type': 'longrope'} | DIVISORS,
  )
  rope = read_rope(json.loads(config.to_json_string()), 'f', HEAD, POSITIONS)
  agree(phi3.Phi3RotaryEmbedding(config), rope, longest)
  written = transformers.Phi3Config(**TINY, pad_token_id=0, **write_rope(rope, HEAD))
  agree(phi3.Phi3RotaryEmbedding(written), rope, longest)


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {
      'rope_theta': 2e4,
      'rope_local_base_freq': 300.0,
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
  ],
)
def test_each_kind_of_layer(fields):
  tiny = TINY | {'num_hidden_layers': 6, 'head_dim': HEAD}
  config = transformers.Gemma3TextConfig(**tiny, **json.loads(json.dumps(fields)))
  raw = json.loads(config.to_json_string())
  defaults = {'base': 1e6, 'local_base': 1e4}
  ropes = read_ropes(raw, 'f', HEAD, POSITIONS, **defaults)
  assert read_ropes(fields, 'f', HEAD, POSITIONS, **defaults) == ropes
  written = transformers.Gemma3TextConfig(**tiny, **write_ropes(*ropes, HEAD))
  for each in (config, written):
    module = gemma3.Gemma3RotaryEmbedding(each)
    for rope, kind in zip(ropes, ('full_attention', 'sliding_attention'), strict=True):
      agree(module, rope, 300, layer_type=kind)
