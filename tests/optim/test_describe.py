"""What a rule keeps, read off shapes: it agrees with the states that are really made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxtune import optim, tree
from jaxtune.optim.describe import check_state, describe, state_bytes, state_sharding
from jaxtune.optim.matrices import for_matrices
from jaxtune.optim.quantize import adamw_8bit
from jaxtune.typing import InputError


def shapes():
  leaf = jax.ShapeDtypeStruct
  return {
    'decoder': {
      '0-1': {'w': leaf((2, 8, 512), jnp.float32), 'norm': {'scale': leaf((2, 8), jnp.float32)}}
    },
    'embed': leaf((64, 8), jnp.bfloat16),
    'frozen': None,
  }


def parameters():
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes())


RULES = {
  'sgd': optim.create('sgd', 1e-2),
  'adamw': optim.create('adamw', 1e-2, clip_norm=1.0),
  'adafactor': optim.create('adafactor', 1e-2, min_dim_size_to_factor=4),
  'lamb': optim.create('lamb', 1e-2),
  'matrices': for_matrices(optax.trace(0.9), optax.scale_by_adam()),
  'partition': optim.by_rules([('embed', optax.sgd(1e-2)), ('', optax.adam(1e-3))]),
  '8-bit': adamw_8bit(1e-2),
}
each = pytest.mark.parametrize('name', RULES)


def cells(table):
  lines = [line.split() for line in table.split('\n')]
  return {line[0]: line for line in lines}


@each
def test_the_bytes_are_those_of_the_state(name):
  state = RULES[name].init(parameters())
  assert state_bytes(RULES[name], shapes()) == sum(x.nbytes for x in jax.tree.leaves(state))
  table = describe(RULES[name], shapes())
  rows = [line.split() for line in table.split('\n')[1:]]
  sizes = [
    int(row[3 if row[0].startswith('(') else 2 if row[0] != 'total' else 1].replace(',', ''))
    for row in rows
  ]
  assert sum(sizes[:-1]) == sizes[-1] == state_bytes(RULES[name], shapes())


def test_the_table_says_which_state_holds_a_parameter():
  table = describe(RULES['matrices'], shapes())
  lines = table.split('\n')
  assert lines[0].split() == ['parameter', 'shape', 'bytes', 'each', 'states']
  rows = cells(table)
  assert rows['decoder/0-1/w'][1:] == ['2x8x512', '32,768', '4.00', 'matrices/trace', 'float32']
  assert rows['embed'][1:4] == ['64x8', '2,048', '4.00']
  assert lines[3].endswith('rest/mu bfloat16, rest/nu bfloat16')
  assert lines[4].startswith('(of no parameter)') and lines[4].endswith('rest/count int32')
  assert len(lines) == 6
  assert 'frozen' not in table
  quantized = describe(RULES['8-bit'], shapes()).split('\n')
  assert quantized[2].endswith(
    '0/inner/mu codes uint8, 0/inner/mu scales float32, '
    '0/inner/nu codes uint8, 0/inner/nu scales float32'
  )
  assert quantized[1].endswith('0/inner/mu float32, 0/inner/nu float32')


def test_rules_without_state_and_trees_without_leaves():
  table = describe(optax.sgd(1.0), {'w': jnp.zeros(3)})
  assert table.split('\n')[1].split() == ['w', '3', '0', '0.00', '-']
  assert state_bytes(optax.sgd(1.0), {}) == 0
  assert describe(optax.adam(1.0), {}).split('\n')[-1].split() == ['total', '4', '-']


def mesh():
  return jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


SPECS = {
  'decoder': {'0-1': {'w': P(None, 'fsdp', 'data'), 'norm': {'scale': P()}}},
  'embed': P('fsdp', None),
  'frozen': None,
}


def places():
  grid = mesh()
  return jax.tree.map(lambda s: NamedSharding(grid, s), SPECS)


@each
def test_states_lie_as_they_are_said_to(name):
  shardings = state_sharding(RULES[name], shapes(), places())
  state = jax.jit(RULES[name].init, out_shardings=shardings)(parameters())
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  for (path, leaf), owner in zip(leaves, tree.owners(state, shapes()), strict=True):
    spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
    if tree.path_name(path).endswith(('decoder/0-1/w', 'w/codes')) and leaf.shape == (2, 8, 512):
      assert spec == (None, 'fsdp', 'data')
    elif tree.path_name(path).endswith('w/scales') or leaf.shape == (2, 8):
      wide = owner.position == 0  # the norms are replicated
      assert spec[:2] == (None, None if wide else 'fsdp')
    elif owner is None:
      assert leaf.sharding.is_fully_replicated


def test_a_leaf_of_another_shape_keeps_the_axes_in_common():
  state = jax.eval_shape(RULES['adafactor'].init, shapes())
  shardings = state_sharding(RULES['adafactor'], shapes(), places())
  found = {
    tree.path_name(path): (leaf.shape, tuple(s.spec))
    for (path, leaf), s in zip(
      jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(shardings), strict=True
    )
  }
  shape, spec = next(v for k, v in found.items() if k.endswith('v_row/decoder/0-1/w'))
  assert (shape, spec) == ((2, 8), (None, 'fsdp'))
  shape, spec = next(v for k, v in found.items() if k.endswith('v_col/decoder/0-1/w'))
  assert (shape, spec) == ((2, 512), (None,))


def test_shardings_that_do_not_tell():
  one = SingleDeviceSharding(jax.devices()[0])
  with pytest.raises(InputError, match='param_sharding holds SingleDeviceSharding'):
    state_sharding(optax.adam(1.0), {'w': jnp.zeros(3)}, {'w': one})
  with pytest.raises(InputError, match='param_sharding holds nothing'):
    state_sharding(optax.adam(1.0), {}, {})
  some = {'v': NamedSharding(mesh(), P())}
  with pytest.raises(InputError, match="have none for the parameter 'w'"):
    state_sharding(optax.adam(1.0), {'w': jnp.zeros(3)}, some)


@each
def test_a_state_fits_its_own_rule(name):
  check_state(RULES[name], shapes(), RULES[name].init(parameters()))
  check_state(RULES[name], shapes(), jax.eval_shape(RULES[name].init, shapes()))


def test_a_state_of_another_rule_or_tree_is_told_apart():
  """One line that names the first difference."""
  adam = optax.adam(1e-3)
  state = adam.init(parameters())
  wider = {**parameters(), 'embed': jnp.zeros((64, 9), jnp.bfloat16)}
  more = {**parameters(), 'head': jnp.zeros(3)}
  precise = jax.tree.map(lambda x: x.astype(jnp.float32), parameters())
  for rule, params, found in (
    (adamw_8bit(1e-3), parameters(), "'0/step' of int32[] is missing"),
    (optax.sgd(1e-3), parameters(), "'0/count' of int32[] is not wanted"),
    (adam, wider, "'0/mu/embed' is bfloat16[64, 8] where bfloat16[64, 9] is wanted"),
    (adam, more, "'0/mu/head' of float32[3] is missing"),
    (adam, precise, "'0/mu/embed' is bfloat16[64, 8] where float32[64, 8] is wanted"),
  ):
    with pytest.raises(InputError) as error:
      check_state(rule, params, state)
    assert str(error.value).startswith(
      f'the optimizer state comes from a different rule or tree: {found}; use the rule'
    )
    assert '\n' not in str(error.value)


def test_nothing_runs():
  """A tree that no machine holds is described from its shapes."""
  params = {'0-9': {'w': jax.ShapeDtypeStruct((10, 2**20, 2**20), jnp.bfloat16)}}
  assert state_bytes(adamw_8bit(1e-3), params) == int((2 + 8 / 256) * 10 * 2**40) + 8
  assert '2.03' in describe(adamw_8bit(1e-3), params)
  np.testing.assert_equal(len(describe(adamw_8bit(1e-3), params).split('\n')), 4)
