"""Leaves out of tensors: parts, experts, other orders and shapes, copies; whole and on a mesh."""

import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune import interop, models, shard
from jaxtune.interop.check import check, without_copies
from jaxtune.interop.fill import fill
from jaxtune.interop.names import Name
from jaxtune.interop.tensors import open_safetensors
from jaxtune.typing import InputError


def numbered(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def written(tmp_path, **tensors):
  tensors = {name.replace('_', '.'): np.array(x, order='C') for name, x in tensors.items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  return open_safetensors(tmp_path / 'x.safetensors')


def shapes(**leaves):
  return {name: jax.ShapeDtypeStruct(shape, 'float32') for name, shape in leaves.items()}


def spread(wanted):
  """The first axis that 4 divides over 4 devices, two replicas each; the rest whole."""
  mesh = shard.mesh({'data': 2, 'fsdp': 4})

  def one(leaf):
    axes = [None] * len(leaf.shape)
    even = [i for i, size in enumerate(leaf.shape) if size % 4 == 0]
    if even:
      axes[even[-1]] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(one, wanted)


def filled(wanted, names, tensors):
  check(wanted, names, tensors)
  whole, parts = fill(wanted, names, tensors), fill(wanted, names, tensors, None, spread(wanted))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  return whole


@pytest.mark.parametrize('block', [1, 100, 4 << 20])
def test_parts_and_orders(tmp_path, monkeypatch, block):
  """Of [out, in], of [in, out] and of a vector; a run of rows and scattered ones."""
  monkeypatch.setattr('jaxtune.interop.tensors._BLOCK', block)
  fused, order = numbered(12, 4), np.array([7, 4, 11, 8])
  rest = np.setdiff1d(np.arange(12), order)
  tensors = written(tmp_path, a=fused, b=fused.T, c=numbered(12))
  names = [
    Name(f'{theirs}{i}', theirs, theirs == 'a', part)
    for theirs in 'abc'
    for i, part in enumerate((order, rest))
  ]
  wanted = shapes(**{n.ours: (4, len(n.part)) if n.theirs != 'c' else n.part.shape for n in names})
  params = filled(wanted, names, tensors)
  for theirs in 'ab':
    np.testing.assert_array_equal(params[f'{theirs}0'], fused[order].T)
    np.testing.assert_array_equal(params[f'{theirs}1'], fused[rest].T)
  np.testing.assert_array_equal(params['c0'], numbered(12)[order])
  with pytest.raises(InputError, match=r'tensor a has the shape \[12, 4\].* makes it \[4, 4\]'):
    check({'a0': wanted['a0']}, names, tensors)


def test_other_shapes(tmp_path):
  """A convolution's kernel, a table with an axis more, a scalar."""
  kernel, scalar = numbered(8, 3, 2, 2), np.array(7.0, np.float32)
  tensors = written(tmp_path, kernel=kernel, table=numbered(1, 5, 4), scalar=scalar)
  names = [
    Name('patches', 'kernel', True, shape=(8, 3, 2, 2)),
    Name('positions', 'table', shape=(1, 5, 4)),
    Name('scale', 'scalar'),
  ]
  params = filled(shapes(patches=(12, 8), positions=(5, 4), scale=()), names, tensors)
  np.testing.assert_array_equal(params['patches'], kernel.reshape(8, 12).T)
  np.testing.assert_array_equal(params['positions'], numbered(5, 4))
  assert params['scale'] == 7
  with pytest.raises(InputError, match=r'shape \[8, 3, 2, 2\].* makes it \[8, 3, 4, 1\]'):
    check(shapes(patches=(12, 8)), [names[0]._replace(shape=(8, 3, 4, 1))], tensors)


def test_experts_in_tensors_of_their_own_and_in_one(tmp_path):
  each = {f'l{i}_e{j}': numbered(4, 8) + 100 * i + 10 * j for i in range(2) for j in range(3)}
  fused = np.stack([each[f'l0_e{j}'] for j in range(3)])
  tensors = written(tmp_path, **each, fused=fused)
  names = [Name('s/{layer}/w', 'l{layer}.e{expert}', True), Name('one', 'fused', True)]
  wanted = {'s': {'0-1': shapes(w=(2, 3, 8, 4))}, **shapes(one=(3, 8, 4))}
  params = filled(wanted, names, tensors)
  for i in range(2):
    for j in range(3):
      np.testing.assert_array_equal(params['s']['0-1']['w'][i, j], each[f'l{i}_e{j}'].T)
  np.testing.assert_array_equal(params['one'], params['s']['0-1']['w'][0])


def test_copies_must_be_copies(tmp_path):
  names = [Name('a', 'first'), Name('a', 'second'), Name('b', 'other')]
  wanted = shapes(a=(3, 2), b=(3, 2))
  x = numbered(3, 2)
  both = written(tmp_path, first=x, second=x, other=x)
  assert set(without_copies(wanted, names, both)) == {'first', 'other'}
  only = without_copies(wanted, names, written(tmp_path, second=x, other=x))
  np.testing.assert_array_equal(fill(wanted, names, only)['a'], x)
  for changed in (x + 1, x.T, x.astype(np.int32)):
    with pytest.raises(InputError, match='second differs from first'):
      without_copies(wanted, names, written(tmp_path, first=x, second=changed, other=x))


def test_missing_names_come_with_the_nearest(tmp_path):
  tensors = written(tmp_path, model_layer_query=numbered(2), zzz=numbered(2))
  names = [Name(n, f'{n}.layer.query') for n in ('modle', 'b', 'c', 'd')]
  with pytest.raises(InputError) as error:
    check(shapes(modle=(2,), b=(2,), c=(2,), d=(2,)), names, tensors)
  assert 'b.layer.query (the nearest is model.layer.query)' in str(error.value)
  assert 'and 1 more' in str(error.value) and '\n' not in str(error.value)
  names = [Name('s/{layer}/w', 'l{layer}')]
  with pytest.raises(InputError, match='holds 2 tensors, but the config asks for 1000000000 like'):
    check({'s': {'0-999999999': shapes(w=(10**9, 3))}}, names, tensors)


@pytest.mark.parametrize('model_type', ['phi3', 'mixtral', 'gpt2', 'gpt_neox'])
def test_fused_and_mixed_families_round_trip(tmp_path, model_type):
  """What is written is read again, whole and spread, in files of several tensors each."""
  biased = model_type in ('gpt2', 'gpt_neox')
  config = models.DecoderConfig(
    model_type=model_type, vocabulary=12, width=8, hidden=12, layers=3, heads=2, head_width=4,
    kv_heads=2 if biased else 1, qkv_bias=biased, o_bias=biased, mlp_bias=biased,
    norm='layer' if biased else 'rms', norm_bias=biased, gated=not biased, tied=False,
    activation='gelu' if biased else 'silu', learned_positions=model_type == 'gpt2', positions=16,
    order='parallel' if model_type == 'gpt_neox' else 'pre',
    experts=3 * (model_type == 'mixtral'), expert_hidden=12,
  )  # fmt: skip
  model = models.build(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), model.shapes())
  interop.save_hf(tmp_path / 'out', model, params, max_shard_bytes=1000)
  assert len(list((tmp_path / 'out').glob('model-*.safetensors'))) > 3
  mesh = shard.mesh({'data': 2, 'fsdp': 4})

  def places(model, wanted):
    return shard.param_shardings(mesh, wanted, model.axes(wanted))

  for options in ({}, {'shardings': places}):
    read = interop.load(tmp_path / 'out', **options)[1]
    jax.tree.map(np.testing.assert_array_equal, params, read)
  interop.save_hf(tmp_path / 'again', model, read, max_shard_bytes=1000)  # from several devices
  for file in (tmp_path / 'out').iterdir():
    assert (tmp_path / 'again' / file.name).read_bytes() == file.read_bytes()
  layer = jax.tree.map(lambda x: x[1], params['decoder']['0-2'])
  held = {
    name: tensor.read()
    for file in (tmp_path / 'out').glob('*.safetensors')
    for name, tensor in open_safetensors(file).items()
  }
  for name, want in EXPECTED[model_type](layer):
    np.testing.assert_array_equal(held[name], want, err_msg=name)


def interleaved(a):
  """GPT-NeoX: q, k and v of a head beside each other."""
  parts = [a[n].reshape(8, 2, 4) for n in 'qkv']
  return np.stack(parts, 2).reshape(8, 24).T


EXPECTED = types.SimpleNamespace(
  phi3=lambda p: [
    ('model.layers.1.self_attn.qkv_proj.weight', np.concatenate([p['attn'][n].T for n in 'qkv'])),
    (
      'model.layers.1.mlp.gate_up_proj.weight',
      np.concatenate([p['mlp'][n].T for n in ('gate', 'up')]),
    ),
  ],
  mixtral=lambda p: [
    (f'model.layers.1.block_sparse_moe.experts.{i}.w2.weight', p['experts']['down'][i].T)
    for i in range(3)
  ],
  gpt2=lambda p: [
    ('transformer.h.1.attn.c_attn.weight', np.concatenate([p['attn'][n] for n in 'qkv'], 1)),
    ('transformer.h.1.attn.c_attn.bias', np.concatenate([p['attn'][f'{n}_bias'] for n in 'qkv'])),
  ],
  gpt_neox=lambda p: [
    ('gpt_neox.layers.1.attention.query_key_value.weight', interleaved(p['attn'])),
  ],
).__dict__
