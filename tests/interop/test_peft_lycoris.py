"""LoHa, LoKr and AdaLoRA in PEFT's files without PEFT: parts of tensors, and what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, tree
from jaxtune.interop.peft.lokr import _expressible
from jaxtune.typing import InputError
from tests.interop.test_peft import fused

KEY = jax.random.key(0)
GOLDEN = pathlib.Path(__file__).parent / 'golden'


def moved(adapted):
  """Every field that trains as training might have left it."""
  rng = np.random.default_rng(0)
  trainable, frozen = adapt.trainable(adapted)
  return tree.combine(
    jax.tree.map(lambda x: np.float32(x + rng.normal(0, 0.3, x.shape)), trainable), frozen
  )


@pytest.mark.parametrize('method', ['loha', 'adalora'])
def test_parts_of_a_tensor_share_one_adapter(method, tmp_path):
  model, params = fused('phi3')
  rules = (('attn/q$', {'rank': 3, 'alpha': 5}), (r'attn/v$|mlp/up', True), ('', False))
  tuned = moved(adapt.create(method, KEY, params, rank=2, select=rules))
  interop.save_peft(tmp_path / 'a', model, tuned, 'someone/base')
  again = interop.load_peft(tmp_path / 'a', model, params)
  for path in ('attn/q', 'attn/v', 'mlp/up', 'attn/k'):
    block, name = path.split('/')
    a, b = (np.asarray(adapt.merge(p['decoder']['0-1'][block][name])) for p in (tuned, again))
    np.testing.assert_allclose(a, b, atol=1e-5)
  config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
  assert config['target_modules'] == ['gate_up_proj', 'qkv_proj']
  if method == 'adalora':  # ranks 5 and 2 under one scale
    assert config['init_r'] == 5 and config['total_step'] == 1
    kept = config['rank_pattern']['model.layers.1.mlp.gate_up_proj.lora_E']
    assert kept == [True, True, False, False, False]


def test_what_peft_has_no_such_adapter_for(tmp_path):
  model, params = fused('phi3')

  def refused(words, adapted):
    with pytest.raises(InputError, match=words):
      interop.save_peft(tmp_path / 'a', model, adapted, 'someone/base')

  refused('is a part of .*qkv_proj', adapt.lokr(KEY, params, 1, select='attn/q$'))
  for method in ('lokr', 'adalora'):
    adapted = adapt.create(method, KEY, params, rank=1, select='embed/tokens')
    refused('embed/tokens. is an embedding, on which PEFT has no', adapted)
  model, params = interop.load(GOLDEN / 'gpt2')
  for method in ('loha', 'lokr'):
    adapted = adapt.create(method, KEY, params, rank=1, select='attn/o$')
    refused('attn/o. is a Conv1D there', adapted)


def test_kronecker_factors_are_multiplied_out_where_pefts_rule_wants_it():
  """Its r, `decompose_both` and `decompose_factor` say which factors a module has."""
  params = {'attn': {'q': np.zeros((16, 24), 'f'), 'k': np.zeros((16, 24), 'f')}}

  def leaves(**options):
    made = adapt.lokr(KEY, params, **options)
    return [jax.tree.map(np.asarray, made['attn'][name]) for name in 'qk']

  thin = leaves(rank=1, decompose_both=True)
  same, ranks, both = _expressible(thin)
  assert both and ranks == [1, 1] and same == thin
  # One of them has W1 whole: then all have.
  mixed, ranks, both = _expressible([thin[0], *leaves(rank=2)])
  assert not both and ranks == [1, 2, 2]
  assert all(leaf.w1 is not None and leaf.w2 is None for leaf in mixed)
  # A rank of 2 padded to 4, by which PEFT would expect W2 whole.
  (leaf,), (rank,), _ = _expressible(
    [jax.tree.map(lambda x: np.pad(x, 1) if 2 in x.shape else x, leaves(rank=2)[0])]
  )
  assert leaf.w2.shape[0] and rank == 4 and leaf.w2_a is None
  whole, ranks, _ = _expressible(leaves(rank=9))
  assert ranks == [3, 3] and whole[0].w2 is not None


def test_factors_cut_in_two_ways(tmp_path):
  model, params = fused('phi3')
  rules = (('attn/o', {'decompose_factor': 2}), ('mlp/down', {'decompose_factor': 4}), ('', False))
  adapted = adapt.lokr(KEY, params, 1, select=rules)
  with pytest.raises(InputError, match='by more than one decompose_factor'):
    interop.save_peft(tmp_path / 'a', model, moved(adapted), 'someone/base')
