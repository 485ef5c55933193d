"""Rotary positions in config.json: both of transformers' forms, and what is refused."""

import pytest

from jaxtune import ops
from jaxtune.interop.rope_fields import read_rope, read_ropes, write_rope, write_ropes
from jaxtune.typing import InputError

LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
}
LONG = {'short_factor': [1.0, 1.5, 2.0, 2], 'long_factor': [1.0, 3.0, 5.0, 9.0]}
ROPES = [
  ops.Rope(),
  ops.Rope(500.0, width=4),
  ops.Rope(500.0, scaling='linear', factor=3.0),
  ops.Rope(500.0, scaling='dynamic', factor=3.0, original=256),
  ops.Rope(500.0, scaling='llama3', factor=8.0, original=64, low=1.5, high=3.0),
  ops.Rope(500.0, 6, 'yarn', factor=4.0, original=64, slow=2.0, fast=20.0, truncate=False),
  ops.Rope(scaling='yarn', factor=4.0, original=64, attention_factor=1.3),
  ops.Rope(500.0, 4, 'longrope', factor=4.0, original=64, short=(1.0, 2.0), long=(3.0, 4.0)),
]


def read(raw, **fields):
  return read_rope(raw | fields, 'config.json', 8, 256)


@pytest.mark.parametrize('rope', ROPES, ids=lambda rope: rope.scaling)
def test_what_is_written_is_read_in_either_form(rope):
  raw = write_rope(rope, 8)
  assert read(raw) == rope
  assert read({key: x for key, x in raw.items() if key != 'rope_parameters'}) == rope
  assert read({'rope_parameters': raw['rope_parameters']}) == rope
  both = write_ropes(rope, ROPES[1], 8)
  assert read_ropes(both, 'f', 8, 256, base=1e6, local_base=7.0) == (rope, ROPES[1])


def test_parts_of_a_head_survive_rounding():
  for head_width in range(2, 260):
    for width in range(2, head_width, 2):
      raw = write_rope(ops.Rope(width=width), head_width)
      assert read_rope(raw, 'config.json', head_width, 256).width == width


def test_defaults_and_old_words():
  assert read({}) == ops.Rope()
  assert read({}, rope_theta=500.0, rope_scaling=None) == ops.Rope(500.0)
  neox = read_rope({'b': 77.0, 'p': 0.5}, 'f', 8, 256, base_key='b', part_key='p')
  assert neox == ops.Rope(77.0, 4)
  assert read_rope({}, 'f', 8, 256, base=3.0, part=0.25) == ops.Rope(3.0, 2)
  linear = ops.Rope(scaling='linear', factor=2.0)
  assert read({}, rope_scaling={'type': 'linear', 'factor': 2}) == linear
  original = 'original_max_position_embeddings'
  for kind in ('su', 'yarn', 'longrope'):
    phi = read({original: 64}, rope_scaling={'type': kind} | LONG)
    assert (phi.scaling, phi.factor, phi.original) == ('longrope', 4.0, 64)
    assert phi.short == (1.0, 1.5, 2.0, 2.0) and phi.long[3] == 9.0
  yarn = {'rope_type': 'yarn', 'factor': None, original: 64}
  assert read({}, rope_parameters=yarn).factor == 4.0
  deepseek = read({}, rope_parameters=yarn | {'mscale': 1.0, 'mscale_all_dim': 0.5})
  assert deepseek.attention_factor == pytest.approx(1.1386294 / 1.0693147)


def test_one_for_each_kind_of_layer():
  def both(raw):
    return read_ropes(raw, 'config.json', 8, 256, base=1e6, local_base=1e4)

  assert both({}) == (ops.Rope(1e6), ops.Rope(1e4))
  linear = {'rope_type': 'linear', 'factor': 8.0}
  four = both({'rope_theta': 2e6, 'rope_local_base_freq': 2e4, 'rope_scaling': linear})
  five = both(
    {
      'rope_parameters': {
        'full_attention': linear | {'rope_theta': 2e6},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 2e4},
      }
    }
  )
  assert four == five == (ops.Rope(2e6, scaling='linear', factor=8.0), ops.Rope(2e4))


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'rope_scaling': {'type': 'ntk'}}, ["rope_scaling asks for rotary scaling 'ntk'", 'llama3']),
    ({'rope_parameters': {'rope_type': 'mrope'}}, ['rope_parameters', "'mrope'"]),
    ({'rope_parameters': {'mrope_section': [1, 2]}}, ['mrope_section is [1, 2]']),
    ({'rope_parameters': 3}, ['rope_parameters is 3', 'object']),
    ({'rope_scaling': [1]}, ['rope_scaling is [1]', 'object']),
    ({'rope_theta': -1}, ['rope_theta is -1', 'positive']),
    ({'rope_theta': 1}, ['base 1']),
    ({'partial_rotary_factor': 1.5}, ['1.5 of heads of width 8']),
    ({'partial_rotary_factor': 0.4}, ['0.4 of heads of width 8', 'even']),
    ({'rope_scaling': {'type': 'linear'}}, ["rope_scaling: has no field 'factor'"]),
    ({'rope_scaling': {'type': 'linear', 'factor': '2'}}, ["factor is '2'"]),
    ({'rope_scaling': {'type': 'llama3'} | LLAMA3 | {'low_freq_factor': 4.0}}, ['low_freq_factor']),
    ({'rope_scaling': {'type': 'llama3', 'factor': 8.0}}, ["no field 'low_freq_factor'"]),
    ({'rope_scaling': {'type': 'yarn', 'beta_fast': 1.0}}, ['beta_slow 1', 'beta_fast 1']),
    ({'rope_scaling': {'type': 'yarn', 'truncate': 1}}, ['truncate is 1']),
    ({'rope_scaling': {'type': 'longrope'}}, ['short_factor is None', 'list of 4']),
    (
      {'rope_scaling': {'type': 'longrope'} | LONG | {'long_factor': [1.0] * 3}},
      ['long_factor is 3 numbers', '4'],
    ),
    (
      {'rope_scaling': {'type': 'longrope'} | LONG | {'long_factor': [1.0, 0, 1, 1]}},
      ['long_factor[1] is 0'],
    ),
    (
      {'rope_scaling': {'type': 'yarn', 'original_max_position_embeddings': 1}},
      ['original_max_position_embeddings is 1'],
    ),
    ({'rope_parameters': {'full_attention': {}}}, ['full_attention', 'kind of layer']),
  ],
)
def test_other_rotations_are_refused(fields, words):
  with pytest.raises(InputError) as error:
    read(fields)
  assert str(error.value).startswith('config.json') and '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_nested_objects_are_checked():
  def both(raw):
    return read_ropes(raw, 'config.json', 8, 256, base=1e6, local_base=1e4)

  with pytest.raises(InputError, match="rope_parameters has 'rope_theta' where full_attention"):
    both({'rope_parameters': {'rope_theta': 5.0}})
  with pytest.raises(InputError, match='rope_parameters: sliding_attention is 3'):
    both({'rope_parameters': {'sliding_attention': 3}})
  with pytest.raises(InputError, match="rope_parameters.sliding_attention asks .* 'x'"):
    both({'rope_parameters': {'sliding_attention': {'type': 'x'}}})
