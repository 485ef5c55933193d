"""Tables of names: every parameter has one tensor, and every tensor one parameter."""

import pytest
import safetensors

from jaxtune import interop, models, tree
from jaxtune.interop.bert import BERT
from jaxtune.interop.llama import GGUF, LLAMA
from jaxtune.interop.names import bare_name, full_name, tensors_of

ENCODER = models.EncoderConfig(vocabulary=8, width=8, hidden=8, layers=3, heads=2, outputs=2)
DECODER = models.DecoderConfig(
  vocabulary=8, width=8, hidden=8, layers=3, heads=2, kv_heads=1, head_width=4, tied=False
)


@pytest.mark.parametrize(
  'table, config',
  [(BERT.names(ENCODER), ENCODER), (LLAMA.names(DECODER), DECODER), (GGUF, DECODER)],
)
def test_tables_are_bijective(table, config):
  leaves = tree.named_weights(models.build(config).shapes())
  assert {name.ours for name in table} == {p.replace('0-2', '{layer}') for p, _ in leaves}
  assert len({name.theirs for name in table}) == len(table) == len(leaves)
  found = [name for path, _ in leaves for name in tensors_of(table, path).names]
  stacked = sum('{layer}' in name.ours for name in table)
  assert len(set(found)) == len(found) == 3 * stacked + len(table) - stacked


def test_only_matrices_are_transposed():
  for table, config in ((BERT.names(ENCODER), ENCODER), (LLAMA.names(DECODER), DECODER)):
    for path, leaf in tree.named_weights(models.build(config).shapes()):
      where = tensors_of(table, path)
      matrix = len(leaf.shape) - where.stacked == 2
      assert where.transpose == (matrix and not path.startswith('embed/')), path


def test_segments_name_their_own_layers():
  where = tensors_of(LLAMA.names(DECODER), 'decoder/10-11/attn/q')
  assert where.names == ('layers.10.self_attn.q_proj.weight', 'layers.11.self_attn.q_proj.weight')


def test_full_and_bare_names_are_inverse():
  for family, config in ((BERT, ENCODER), (LLAMA, DECODER)):
    for name in family.names(config):
      assert bare_name(family, full_name(family, config, name.ours, name.theirs)) == name.theirs
  assert full_name(BERT, ENCODER, 'head/dense', 'classifier.weight') == 'classifier.weight'
  assert full_name(LLAMA, DECODER, 'norm/scale', 'norm.weight') == 'model.norm.weight'


def test_every_tensor_of_a_real_model_has_a_name(minilm):
  with safetensors.safe_open(minilm / 'model.safetensors', 'numpy') as file:
    theirs = set(file.keys()) - {'embeddings.position_ids'}
  _, params = interop.load(minilm)
  ours = [
    n for p, _ in tree.named_weights(params) for n in tensors_of(BERT.names(ENCODER), p).names
  ]
  assert set(ours) == theirs and len(ours) == len(theirs)


def test_a_parameter_without_a_name_is_refused():
  with pytest.raises(ValueError, match="'encoder/0-1/mine' has no name"):
    tensors_of(BERT.names(ENCODER), 'encoder/0-1/mine')
