"""Stacked leaves: a rule sees one layer at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.typing import InputError


def tree_of(rng):
  draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)  # noqa: E731
  segments = {'0-1': {'w': draw(2, 4, 3), 'g': draw(2, 3)}, '2-4': {'w': draw(3, 4, 3)}}
  return {'decoder': segments, 'head': draw(4, 2), 'hole': None}


def test_block_clipping_is_per_layer():
  rng = np.random.default_rng(0)
  g = tree_of(rng)
  tx = optim.per_layer(optax.clip_by_block_rms(0.5))
  state = tx.init(g)
  assert sorted(state) == ['2', '3', 'single']
  clipped, _ = jax.jit(tx.update)(g, state)
  assert jax.tree.structure(clipped) == jax.tree.structure(g)
  stacks = [(g['decoder'][s]['w'], clipped['decoder'][s]['w']) for s in ('0-1', '2-4')]
  for before, after in [*stacks, (g['head'][None], clipped['head'][None])]:
    for x, y in zip(before, after, strict=True):
      rms = np.sqrt(np.mean(np.square(x)))
      np.testing.assert_allclose(y, np.asarray(x) / max(1.0, rms / 0.5), rtol=1e-5)


def test_two_stacked_axes():
  x = {'experts': jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 4, 5)), jnp.float32)}
  tx = optim.per_layer(optax.scale_by_trust_ratio(), axes=[('experts', 2)])
  updates, _ = tx.update(x, tx.init(x), jax.tree.map(lambda v: 2 * v, x))
  np.testing.assert_allclose(updates['experts'], 2 * x['experts'], rtol=1e-5)
  params = {'experts': x['experts'] * jnp.arange(1.0, 7).reshape(2, 3, 1, 1)}
  updates, state = tx.update(x, tx.init(x), params)
  np.testing.assert_allclose(updates['experts'], params['experts'], rtol=1e-5)
  assert list(state) == ['2x3']


def test_path_rules_inside_still_work():
  """LAMB's decay mask goes by path, and the tree that it sees keeps the paths."""
  params = tree_of(np.random.default_rng(2))
  rules = [('head', True), ('', False)]
  tx = optim.create('lamb', 1.0, weight_decay=0.5, decay_rules=rules)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zero, jax.jit(tx.init)(params), params)
  assert not np.any(updates['decoder']['0-1']['w'])
  assert np.all(updates['head'] != 0)


@pytest.mark.parametrize('count', [-1, 4])
def test_more_axes_than_a_leaf_has(count):
  params = tree_of(np.random.default_rng(3))
  with pytest.raises(InputError, match=r'decoder/0-1/g.*give 0 to 2'):
    optim.per_layer(optax.identity(), axes=[('', count)]).init(params)


def test_adafactor_factors_the_matrix_of_a_layer():
  """Over a whole stack `[L, D]` of norms it would factor the layers against the width."""
  params = {'decoder': {'0-3': {'norm': {'scale': jnp.ones((4, 8))}, 'w': jnp.ones((4, 8, 6))}}}
  tx = optim.create('adafactor', 1e-3, min_dim_size_to_factor=2)
  sizes = {x.shape for x in jax.tree.leaves(tx.init(params))}
  assert (4, 8) in sizes and (4, 6) in sizes  # rows and columns of w, and the norms unfactored
  assert (4, 8, 6) not in sizes
