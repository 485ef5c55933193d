"""Path rules: first match wins, nothing is uncovered, and splitting is undone by combining."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import tree
from jaxtune.typing import InputError, is_weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
  """The smallest weight leaf: a base, perhaps a leaf itself, and one more field."""

  base: Any
  a: jax.Array

  @property
  def shape(self):
    return self.base.shape

  def materialize(self):
    return self.base


def leaf(shape=(2,), dtype=jnp.float32):
  return jnp.zeros(shape, dtype)


PARAMS = {
  'embed': {'tokens': leaf((5, 2))},
  'layer': {'attn': {'q': Pair(leaf((2, 2)), leaf((2, 1))), 'k': leaf((2, 2))}},
}


def test_paths_name_arrays_and_whole_weights():
  assert [path for path, _ in tree.named_weights(PARAMS)] == [
    'embed/tokens',
    'layer/attn/k',
    'layer/attn/q',
  ]
  assert isinstance(dict(tree.named_weights(PARAMS))['layer/attn/q'], Pair)
  seen = tree.map_weights(lambda path, value: (path, is_weight(value)), PARAMS)
  assert seen['layer']['attn'] == {'q': ('layer/attn/q', True), 'k': ('layer/attn/k', False)}


def test_first_match_wins():
  rules = [('attn/k', 1), ('attn', 2), ('', 3), ('embed', 4)]
  values = tree.match(rules, PARAMS)
  assert values['embed']['tokens'] == 3
  assert values['layer']['attn']['k'] == 1
  assert values['layer']['attn']['q'] == Pair(2, 2)
  assert tree.label(PARAMS, rules) == values


def test_fields_follow_their_own_path_or_that_of_their_weight():
  by_weight = tree.match([(r'attn/q$', 'weight'), ('', 'rest')], PARAMS)
  assert by_weight['layer']['attn']['q'] == Pair('weight', 'weight')
  by_field = tree.match([(r'attn/q/a$', 'field'), (r'attn/q$', 'weight'), ('', 'rest')], PARAMS)
  assert by_field['layer']['attn']['q'] == Pair('weight', 'field')


def test_the_fields_of_a_leaf_in_a_leaf_are_reached():
  params = {'q': Pair(Pair(leaf((2, 2)), leaf()), leaf())}
  values = tree.match([(r'^q/base/a$', 'inner'), (r'^q/a$', 'outer'), ('', 'rest')], params)
  assert values['q'] == Pair(Pair('rest', 'inner'), 'outer')


def test_an_uncovered_parameter_is_named():
  with pytest.raises(InputError, match="no rule covers the parameter 'layer/attn/k'"):
    tree.match([('embed', 1), ('attn/q', 1)], PARAMS)
  with pytest.raises(InputError, match='layer/attn/q/base'):
    tree.partition(PARAMS, [('embed|attn/k', True), ('q/a$', True)])


@pytest.mark.parametrize('dtype', ['int8', 'uint4', 'bool'])
def test_codes_without_a_gradient_cannot_be_trained(dtype):
  params = {'q': Pair(leaf((2, 2), dtype), leaf())}
  with pytest.raises(InputError, match=rf"'q\$' makes 'q/base' trainable.*{dtype}"):
    tree.partition(params, [('q$', True)])
  trainable, frozen = tree.partition(params, [('/a$', True), ('', False)])
  assert trainable['q'].base is None and frozen['q'].a is None


def test_low_precision_floats_can_be_trained():
  params = {'w': leaf((2,), jnp.bfloat16)}
  assert tree.partition(params, [('', True)])[0]['w'] is params['w']


def test_shapes_are_enough():
  shapes = jax.eval_shape(lambda: PARAMS)
  trainable, frozen = tree.partition(shapes, [('embed', True), ('', False)])
  assert trainable['embed']['tokens'].shape == (5, 2)
  assert frozen['embed']['tokens'] is None


def test_routing_is_a_table_that_can_be_read():
  routes = tree.routing([('attn/q', True), ('', False)], PARAMS)
  assert routes[0] == tree.Route('embed/tokens', (5, 2), 'float32', '', False)
  lines = tree.format_routing(routes).split('\n')
  assert lines[0].split() == ['parameter', 'shape', 'dtype', 'rule', 'value']
  assert lines[1].split() == ['embed/tokens', '5x2', 'float32', 'False']
  assert lines[3].split() == ['layer/attn/q/base', '2x2', 'float32', 'attn/q', 'True']
  assert len(lines) == 5
  starts = {line.index('float32') for line in lines[1:]}
  assert starts == {lines[0].index('dtype')}


def test_scalars_have_a_shape_in_the_table():
  table = tree.format_routing(tree.routing([('', 1)], {'scale': leaf(())}))
  assert table.split('\n')[1].split() == ['scale', '-', 'float32', '1']


def test_sizes():
  assert tree.count(PARAMS) == 10 + 4 + 4 + 2
  assert tree.size({'w': leaf((3,), jnp.bfloat16), 'v': leaf((2,))}) == 6 + 8


@pytest.mark.parametrize(
  ('path', 'stacked'),
  [
    ('decoder/0-29/attn/q', True),
    ('0-3/w', True),
    ('embed/tokens', False),
    ('model/block-0-1x/w', False),
    ('decoder/0-29', False),
  ],
)
def test_a_stacked_leaf_is_known_by_its_path(path, stacked):
  assert tree.is_stacked(path) is stacked


keys = st.text('abq', min_size=1, max_size=2)
arrays = st.tuples(st.integers(1, 2), st.integers(1, 2)).map(np.zeros)
weights = st.recursive(arrays, lambda inner: st.builds(Pair, base=inner, a=arrays), max_leaves=3)
trees = st.dictionaries(
  keys,
  st.recursive(weights, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8),
  max_size=4,
)
patterns = st.one_of(keys, keys.map(lambda k: f'{k}$'), keys.map(lambda k: f'^{k}/'))
tables = st.lists(st.tuples(patterns, st.booleans()), max_size=4)


@settings(deadline=None)
@given(trees, tables, st.booleans())
def test_combine_undoes_partition(params, rules, last):
  rules = [*rules, ('', last)]
  trainable, frozen = tree.partition(params, rules)
  whole = tree.combine(trainable, frozen)
  assert jax.tree.structure(whole) == jax.tree.structure(params)
  assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True))
  sides = jax.tree.map(
    lambda a, b: (a is None) != (b is None), trainable, frozen, is_leaf=lambda x: x is None
  )
  assert all(jax.tree.leaves(sides))


@settings(deadline=None)
@given(trees, tables, st.booleans())
def test_match_is_the_first_rule_that_knows_either_path(params, rules, last):
  rules = [*rules, ('', last)]
  expected = []
  for weight, value in tree.named_weights(params):
    for path, _ in jax.tree_util.tree_flatten_with_path(value)[0]:
      field = '/'.join([weight, *(tree.path_name(path),) * bool(path)])
      expected.append(next(v for p, v in rules if re.search(p, field) or re.search(p, weight)))
  assert jax.tree.leaves(tree.match(rules, params)) == expected
  assert [route.value for route in tree.routing(rules, params)] == expected


# States that hold leaves of a tree of parameters.


def test_owners_are_found_by_the_longest_path():
  params = {'w': leaf(), 'layer': {'w': leaf((3,))}, 'nu': leaf()}
  state = {
    'count': leaf(()),
    'mu': params,
    'nu': {'w': {'codes': leaf(), 'scales': leaf((1,))}, 'layer': None, 'nu': leaf()},
  }
  found = {
    tree.path_name(path): owner
    for (path, _), owner in zip(
      jax.tree_util.tree_flatten_with_path(state)[0], tree.owners(state, params), strict=True
    )
  }
  assert found == {
    'count': None,
    'mu/layer/w': tree.Owner('mu', 0, ''),
    'mu/nu': tree.Owner('mu', 1, ''),
    'mu/w': tree.Owner('mu', 2, ''),
    'nu/nu': tree.Owner('nu', 1, ''),
    'nu/w/codes': tree.Owner('nu', 2, 'codes'),
    'nu/w/scales': tree.Owner('nu', 2, 'scales'),
  }


def test_owners_in_a_tuple_are_not_taken_for_places_in_a_chain():
  params = (leaf(), leaf((3,)))
  state = ({'count': leaf(()), 'mu': params}, leaf(()))
  owners = tree.owners(state, params)
  assert [o and (o.state, o.position) for o in owners[1:3]] == [('0/mu', 0), ('0/mu', 1)]


@settings(deadline=None)
@given(trees)
def test_a_copy_of_the_parameters_is_owned_by_them(params):
  owners = tree.owners({'opt': [{'mu': params}]}, params)
  assert owners == [tree.Owner('opt/0/mu', i, '') for i in range(len(owners))]


def test_the_first_difference_is_told():
  assert tree.difference(PARAMS, jax.eval_shape(lambda: PARAMS)) is None
  assert tree.difference({'a': leaf()}, {}) == "'a' of float32[2] is missing"
  assert tree.difference({}, {'a': leaf()}) == "'a' of float32[2] is not wanted"
  other = {'a': leaf((2,), jnp.int32)}
  assert tree.difference({'a': leaf()}, other) == "'a' is int32[2] where float32[2] is wanted"
