"""Tables of names: every parameter has its tensors, and every tensor its parameter."""

import collections

import numpy as np
import pytest
import safetensors

from jaxtune import interop, models, tree
from jaxtune.interop.families import FAMILIES
from jaxtune.interop.names import bare_name, full_name, tensors_of

BERT, LLAMA = FAMILIES['bert'], FAMILIES['llama']
ENCODER = models.EncoderConfig(vocabulary=8, width=8, hidden=8, layers=3, heads=2, outputs=2)
DECODER = models.DecoderConfig(
  vocabulary=8, width=8, hidden=8, layers=3, heads=2, kv_heads=1, head_width=4, tied=False
)


def located(family, config):
  leaves = tree.named_weights(models.build(config).shapes())
  return {path: tensors_of(family.names(config), path, leaf.shape) for path, leaf in leaves}


@pytest.mark.parametrize('family, config', [(BERT, ENCODER), (LLAMA, DECODER)])
def test_every_parameter_has_a_tensor_of_its_own(family, config):
  found = [name for where in located(family, config).values() for name in where.names]
  assert len(set(found)) == len(found)
  assert not any('{' in name for name in found)


@pytest.mark.parametrize('family, config', [(BERT, ENCODER), (LLAMA, DECODER)])
def test_only_matrices_are_transposed(family, config):
  for path, where in located(family, config).items():
    matrix = len(where.rest) == 2 and not path.startswith('embed/')
    assert where.row.transpose == matrix, path
    assert where.matrix == (where.rest[::-1] if matrix else where.rest)


@pytest.mark.parametrize('model_type', ['phi3', 'gpt2', 'gpt_neox'])
def test_parts_of_a_tensor_are_all_of_it_once(model_type):
  family = FAMILIES[model_type]
  same_heads = model_type != 'phi3'
  config = models.DecoderConfig(
    model_type=model_type, vocabulary=8, width=8, hidden=12, layers=2, heads=2,
    kv_heads=2 if same_heads else 1, head_width=4, qkv_bias=same_heads, gated=not same_heads,
  )  # fmt: skip
  parts = collections.defaultdict(list)
  for where in located(family, config).values():
    if where.row.part is not None:
      assert len(where.row.part) == where.matrix[where.out_axis]
      for name in where.names:
        parts[name] += list(where.row.part)
  assert parts
  for name, entries in parts.items():
    np.testing.assert_array_equal(np.sort(entries), np.arange(len(entries)), err_msg=name)


def test_segments_name_their_own_layers():
  where = tensors_of(LLAMA.names(DECODER), 'decoder/10-11/attn/q', (2, 8, 8))
  assert where.names == (
    'model.layers.10.self_attn.q_proj.weight',
    'model.layers.11.self_attn.q_proj.weight',
  )


def test_experts_are_counted_within_layers():
  names = FAMILIES['mixtral'].names(DECODER)
  where = tensors_of(names, 'decoder/1-2/experts/up', (2, 3, 8, 4))
  assert where.lead == (2, 3) and where.rest == (8, 4) and where.total == 6
  numbers = [tuple(int(n) for n in name.split('.') if n.isdigit()) for name in where.names]
  assert numbers == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
  assert where.name((1, 2)) == where.names[-1]


def test_the_prefix_is_the_bodys():
  for family, config in ((BERT, ENCODER), (LLAMA, DECODER)):
    for name in family.names(config):
      bare = full_name(family, 'features', name.theirs)
      assert bare == bare_name(family, name.theirs) == bare_name(family, bare)
      assert full_name(family, 'classification', name.theirs) == name.theirs
      body = not name.ours.startswith(('head/', 'mlm/'))
      assert name.theirs.startswith(family.prefix) == body
  assert bare_name(BERT, 'bert.embeddings.LayerNorm.gamma') == 'embeddings.LayerNorm.weight'


def test_every_tensor_of_a_real_model_has_a_name(minilm):
  with safetensors.safe_open(minilm / 'model.safetensors', 'numpy') as file:
    theirs = set(file.keys()) - {'embeddings.position_ids'}
  model, params = interop.load(minilm)
  table = BERT.names(model.config)
  ours = [
    bare_name(BERT, n)
    for p, x in tree.named_weights(params)
    for n in tensors_of(table, p, x.shape).names
  ]
  assert set(ours) == theirs and len(ours) == len(theirs)


def test_a_parameter_without_a_name_is_refused():
  with pytest.raises(ValueError, match="'encoder/0-1/mine' has no name"):
    tensors_of(BERT.names(ENCODER), 'encoder/0-1/mine', (2, 8))
