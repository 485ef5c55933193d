"""Path-rule tables: rules, multipliers and decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim, tree
from jaxtune.typing import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
  """A weight leaf as adapters have it: its frozen base is a hole among the trainable parameters."""

  base: object
  a: object
  b: object
  scale: object
  shape = (3, 4, 5)

  def materialize(self): ...
  def dot(self, x): ...
  def dot_transposed(self, x): ...
  def take(self, ids): ...


def ones(*shape):
  return jnp.ones(shape)


PARAMS = {
  'embed': {'tokens': ones(6, 4), 'norm': {'scale': ones(4), 'bias': ones(4)}},
  'encoder': {
    '0-2': {
      'attn': {'q': Adapter(None, ones(3, 4, 2), ones(3, 2, 5), ones(3)), 'q_bias': ones(3, 5)},
      'attn_norm': {'scale': ones(3, 4)},
      'mlp': {'up': ones(3, 4, 8), 'up_bias': ones(3, 8)},
    }
  },
  'head': {'dense': ones(4, 2), 'dense_bias': ones(2)},
}


def test_the_default_decay():
  chosen = {r.path: r.value for r in tree.routing(optim.DECAY, PARAMS)}
  decayed = {path for path, value in chosen.items() if value}
  attn = 'encoder/0-2/attn/q'
  assert decayed == {
    'embed/tokens',
    f'{attn}/a',
    f'{attn}/b',
    'encoder/0-2/mlp/up',
    'head/dense',
  }


@pytest.mark.parametrize(
  ('path', 'decays'),
  [
    ('Dense_0/kernel', True),
    ('Dense_0/bias', False),
    ('LayerNorm_0/scale', False),
    ('model/layers/3/input_layernorm/weight', False),
    ('model/norm/weight', False),
    ('h/0/ln_1/weight', False),
    ('ln_f/g', False),
    ('BatchNorm_12/mean', False),
    ('mlp/normalizer_free_weight', True),
    ('lnet/w', True),
    ('rescale_net/w', True),
    ('scale_embed/w', True),
    ('linear/w', True),
  ],
)
def test_the_default_decay_of_other_trees(path, decays):
  leaf = ones(2)
  for key in reversed(path.split('/')):
    leaf = {key: leaf}
  assert jax.tree.leaves(optim.decay_mask()(leaf)) == [decays]


def test_adamw_decays_by_rules():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)

  def decayed(**kwargs):
    tx = optim.create('adamw', 1.0, weight_decay=0.5, **kwargs)
    updates, _ = jax.jit(tx.update)(zero, tx.init(PARAMS), PARAMS)
    return [float(x.ravel()[0]) for x in jax.tree.leaves(updates)]

  assert decayed() == [-0.5 * r.value for r in tree.routing(optim.DECAY, PARAMS)]
  only_head = [('head/', True), ('', False)]
  assert decayed(decay_rules=only_head) == [-0.5 * r.value for r in tree.routing(only_head, PARAMS)]
  with pytest.raises(InputError, match="no rule covers the parameter 'embed"):
    decayed(decay_rules=[('head/', True)])


def test_by_rules():
  tx = optim.by_rules(
    [
      ('^head/', optim.create('sgd', 1.0)),
      ('/q$', optim.create('adam', 0.1)),
      ('', optax.set_to_zero()),
    ]
  )
  state = tx.init(PARAMS)
  updates, _ = jax.jit(tx.update)(PARAMS, state, PARAMS)
  assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
  got = {
    r.path: float(x.ravel()[0])
    for r, x in zip(tree.routing([('', 0)], PARAMS), jax.tree.leaves(updates), strict=True)
  }
  assert got.pop('head/dense') == got.pop('head/dense_bias') == -1
  for field in 'a', 'b', 'scale':
    assert np.isclose(got.pop(f'encoder/0-2/attn/q/{field}'), -0.1)
  assert set(got.values()) == {0}
  assert optim.hyperparameters(state.inner_states['1'])['learning_rate'] == np.float32(0.1)
  with pytest.raises(InputError, match='no rule covers'):
    optim.by_rules([('^head/', optax.identity())]).init(PARAMS)


def test_multipliers():
  tx = optim.multiply_by_rules([('/q/b$', 4.0), ('/mlp/', [1, 2, 3]), ('', 0.5)])
  updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
  block = updates['encoder']['0-2']
  assert (block['attn']['q'].b == 4).all() and (block['attn']['q'].a == 0.5).all()
  np.testing.assert_array_equal(block['mlp']['up'][:, 0, 0], [1, 2, 3])
  np.testing.assert_array_equal(block['mlp']['up_bias'][:, 0], [1, 2, 3])
  assert (updates['head']['dense'] == 0.5).all()


@pytest.mark.parametrize(
  ('rules', 'says'),
  [
    ([('', -1.0)], 'is -1.0'),
    ([('', float('nan'))], 'is nan'),
    ([('head', 1.0)], 'no rule covers'),
    ([('mlp', [1, 2]), ('', 1)], r'multipliers of shape \(2,\)'),
  ],
)
def test_bad_multipliers(rules, says):
  with pytest.raises(InputError, match=says) as e:
    tx = optim.multiply_by_rules(rules)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  assert '\n' not in str(e.value)
