"""Which leaves a matrix rule takes, over which axes, and what becomes of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import tree
from jaxtune.optim import matrices
from jaxtune.optim.matrices import MATRICES, Matrix, for_matrices, matrix_chain
from jaxtune.typing import InputError


def seen(shapes):
  """A rule that notes the shapes of what it gets and doubles the updates."""

  def update(updates, state, params=None, **extra):
    del params, extra
    shapes.append(jax.tree.map(jnp.shape, updates))
    return jax.tree.map(lambda g: 2 * g, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize(
  ('path', 'shape', 'taken'),
  [
    ('decoder/0-3/attn/q', (4, 8, 8), True),
    ('decoder/0-3/attn/q_bias', (4, 8), False),
    ('decoder/0-3/attn_norm/scale', (4, 8), False),
    ('decoder/0-3/mlp/up/a', (4, 8, 2), True),
    ('embed/tokens', (9, 8), False),
    ('head/dense', (8, 2), False),
    ('pooler/dense', (8, 8), True),
    ('Dense_0/kernel', (8, 8), True),
    ('Conv_0/kernel', (3, 3, 8, 8), False),
    ('LayerNorm_0/scale', (8,), False),
    ('Embed_0/embedding', (9, 8), False),
    ('lm_head/kernel', (8, 9), False),
    ('wte', (9, 8), False),
    ('w', (8, 8), True),
    ('w', (8,), False),
  ],
)
def test_by_default_neither_embeddings_heads_norms_nor_biases(path, shape, taken):
  params = jnp.zeros(shape)
  for part in reversed(path.split('/')):
    params = {part: params}
  state = for_matrices(optax.trace(0.9), optax.scale_by_adam()).init(params)
  assert bool(jax.tree.leaves(state.matrices)) is taken
  assert ('mu' in str(jax.tree_util.tree_flatten_with_path(state.rest)[0])) is not taken


def test_each_rule_sees_its_own_leaves_and_the_updates_come_back_in_place():
  params = {
    'decoder': {'0-2': {'w': jnp.ones((3, 4, 5)), 'norm': {'scale': jnp.ones((3, 5)), 'x': None}}},
    'qkv': jnp.arange(48.0).reshape(4, 12),
    'heads': jnp.arange(24.0).reshape(2, 3, 4),
  }
  table = [
    ('qkv', Matrix(cut=(4, 4, 4), cut_rows=(1, 3))),
    ('heads', Matrix(rows=2)),
    *MATRICES,
  ]
  mine, theirs = [], []
  rule = for_matrices(seen(mine), seen(theirs), matrices=table)
  updates, _ = rule.update(params, rule.init(params))
  doubled = jax.tree.map(lambda x: 2 * x, params)
  assert jax.tree.structure(updates) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, updates, doubled)
  assert mine[0]['decoder']['0-2']['w'] == (3, 4, 5)
  assert mine[0]['qkv'] == ((1, 4), (1, 4), (1, 4), (3, 4), (3, 4), (3, 4))
  assert mine[0]['heads'] == (6, 4)
  assert theirs[0]['decoder']['0-2']['norm']['scale'] == (3, 5)
  assert theirs[0]['qkv'] == optax.MaskedNode()


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@given(cut=sizes, cut_rows=sizes, stack=st.integers(1, 3))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_cutting_is_undone(cut, cut_rows, stack):
  shape = (stack, sum(cut_rows), sum(cut))
  leaf = jnp.arange(float(np.prod(shape))).reshape(shape)
  view = matrices._View((stack,), Matrix(cut=cut, cut_rows=cut_rows))
  parts = matrices._open(view, leaf)
  assert [p.shape for p in parts] == [(stack, r, c) for r in cut_rows for c in cut]
  np.testing.assert_array_equal(matrices._close(view, parts, leaf.shape), leaf)


def test_the_rest_of_a_ready_chain_is_adamw():
  params = {'w': jnp.ones((3, 3)), 'bias': jnp.ones(3), 'embed': jnp.ones((4, 3))}
  chain = matrix_chain(optax.identity(), 1e-2, weight_decay=0.1)
  adamw = optax.adamw(1e-2, weight_decay=0.1, mask={'w': True, 'bias': False, 'embed': True})
  ours, theirs, a, b = params, params, chain.init(params), adamw.init(params)
  for i in range(3):
    g = jax.tree.map(lambda x, i=i: jnp.cos(x + i), params)
    u, a = chain.update(g, a, ours)
    v, b = adamw.update(g, b, theirs)
    np.testing.assert_allclose(u['w'], -1e-2 * (g['w'] + 0.1 * ours['w']), rtol=1e-6)
    ours, theirs = optax.apply_updates(ours, u), optax.apply_updates(theirs, v)
  for name in ('bias', 'embed'):
    np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(
  ('table', 'says'),
  [
    ([('w', Matrix())], "no rule covers the parameter 'bias'"),
    ([('', Matrix())], r"makes 'bias' a Matrix.*\(3,\).*False for the other rule"),
    ([('w', Matrix(cut=(2, 2))), ('', False)], r"makes 'w' a Matrix.*\(3, 3\)"),
    ([('w', Matrix(cut_rows=(0, 3))), ('', False)], "makes 'w' a Matrix"),
    ([('w', Matrix(rows=2)), ('', False)], "makes 'w' a Matrix"),
    ([('w', 1), ('', False)], 'give True, False or a Matrix'),
  ],
)
def test_tables_that_do_not_fit(table, says):
  params = {'w': jnp.ones((3, 3)), 'bias': jnp.ones(3)}
  with pytest.raises(InputError, match=says):
    for_matrices(optax.identity(), optax.identity(), matrices=table).init(params)


def test_routing_prints():
  text = tree.format_routing(tree.routing(MATRICES, {'w': jnp.ones((3, 3)), 'bias': jnp.ones(3)}))
  assert [line.split()[-1] for line in text.splitlines()] == ['value', 'False', 'True']
