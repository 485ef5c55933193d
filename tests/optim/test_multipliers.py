"""Tables of learning-rate multipliers: their numbers, and that they cover the tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import optim, tree
from jaxtune.optim.multipliers import complete_p, layerwise_decay, lora_plus, lora_plus_rates, mup
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


def model(width=8, hidden=16, layers=((0, 3), (4, 5)), vocabulary=20):
  """A decoder as built-in models have it, its layers in segments."""
  ones = jnp.ones

  def segment(n):
    return {
      'attn': {'q': ones((n, width, width)), 'q_bias': ones((n, width))},
      'attn_norm': {'scale': ones((n, width))},
      'mlp': {'up': ones((n, width, hidden)), 'down': ones((n, hidden, width))},
    }

  return {
    'embed': {'tokens': ones((vocabulary, width)), 'norm': {'scale': ones(width)}},
    'decoder': {f'{i}-{j}': segment(j - i + 1) for i, j in layers},
    'norm': {'scale': ones(width)},
    'head': {'dense': ones((width, vocabulary)), 'dense_bias': ones(vocabulary)},
  }


def multiplied(table, params):
  """What each entry of a tree of ones becomes, by path."""
  tx = optim.multiply_by_rules(table)
  updates, _ = tx.update(params, tx.init(params))
  routes, leaves = tree.routing([('', None)], updates), jax.tree.leaves(updates)
  return {r.path: np.asarray(x) for r, x in zip(routes, leaves, strict=True)}


def of_layers(x):
  """The one number of each layer of a stacked leaf."""
  rows = x.reshape(len(x), -1)
  assert (rows == rows[:, :1]).all()
  return rows[:, 0]


def test_layerwise_decay():
  got = multiplied(layerwise_decay(model(), 0.5), model())
  for name in ('attn/q', 'attn/q_bias', 'attn_norm/scale', 'mlp/down'):
    np.testing.assert_allclose(of_layers(got[f'decoder/0-3/{name}']), 0.5 ** np.arange(6, 2, -1))
    np.testing.assert_allclose(of_layers(got[f'decoder/4-5/{name}']), [0.25, 0.5])
  np.testing.assert_allclose(got['embed/tokens'], 0.5**7)
  np.testing.assert_allclose(got['embed/norm/scale'], 0.5**7)
  for path in ('norm/scale', 'head/dense', 'head/dense_bias'):
    np.testing.assert_array_equal(got[path], 1)


def test_layerwise_decay_of_layers_apart_and_of_two_stacks():
  """T5-like: the depths of encoder and decoder are their own; deeper numbers are no layers."""
  one = jnp.ones(2)
  params = {'encoder': {'0': {'w': one}, '1': {'experts': [one, one]}}, 'shared_embedding': one}
  params['decoder'] = {'0-1': {'w': one}, '2-2': {'w': jnp.ones(1)}}
  got = multiplied(layerwise_decay(params, 0.5), params)
  assert [got['encoder/0/w'][0], got['encoder/1/experts/0'][0]] == [0.25, 0.5]
  assert [*got['decoder/0-1/w'], *got['decoder/2-2/w']] == [0.125, 0.25, 0.5]
  assert got['shared_embedding'][0] == 0.5**4


def test_layerwise_decay_of_the_trainable_part_keeps_the_numbers_of_its_layers():
  params = model()
  rules = [('decoder/4-5/attn/', True), ('', False)]
  trainable, _ = tree.partition(params, rules)
  got = multiplied(layerwise_decay(params, 0.5), trainable)
  assert sorted(got) == ['decoder/4-5/attn/q', 'decoder/4-5/attn/q_bias']
  np.testing.assert_allclose(of_layers(got['decoder/4-5/attn/q']), [0.25, 0.5])
  assert multiplied(layerwise_decay(trainable, 0.5), trainable).keys() == got.keys()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.floats(0.1, 1.0))
def test_tables_cover_the_tree_and_rates_rise_with_the_layer(sizes, rate):
  """However the stack is cut into segments."""
  ends = np.cumsum(sizes)
  params = model(2, 3, [(int(e - n), int(e - 1)) for n, e in zip(sizes, ends, strict=True)], 4)
  for table in (complete_p(int(ends[-1]), 2, 0.5), lora_plus_rates(), mup(params, params)):
    assert len(tree.routing(table, params)) == len(jax.tree.leaves(params))
  got = multiplied(layerwise_decay(params, rate), params)
  stacks = [f'decoder/{e - n}-{e - 1}/attn/q' for n, e in zip(sizes, ends, strict=True)]
  all_layers = np.concatenate([of_layers(got[s]) for s in stacks])
  np.testing.assert_allclose(all_layers, rate ** np.arange(ends[-1], 0, -1.0), rtol=1e-5)
  assert got['embed/tokens'][0, 0] <= all_layers[0]


def test_mup():
  """The Adam column of Table 3 of arXiv 2203.03466: 1 / fan-in, against the base's."""
  params = model(width=32, hidden=128, vocabulary=20)
  table = mup(params, jax.eval_shape(lambda: model(width=8, hidden=16, vocabulary=20)))
  got = {path: np.unique(x) for path, x in multiplied(table, params).items()}
  expected = {'attn/q': 1 / 4, 'mlp/up': 1 / 4, 'mlp/down': 1 / 8, 'head/dense': 1 / 4}
  for path, values in got.items():
    tail = path.split('decoder/')[-1].split('-')[-1].split('/', 1)[-1]
    tail = path if path.startswith(('head', 'embed', 'norm')) else tail
    np.testing.assert_allclose(values, [expected.get(tail, 1.0)], err_msg=path)
  assert len(got) == len(jax.tree.leaves(params))


def test_mup_of_heads_apart_of_convolutions_and_with_another_form_of_the_head():
  def params(width, heads):
    return {
      'q': jnp.ones((width, heads, 4)),
      'o': jnp.ones((heads, 4, width)),
      'kv': jnp.ones((width, 2, 4)),
      'conv': jnp.ones((3, 3, width, 2 * width)),
      'stem': jnp.ones((3, 3, 1, width)),
      'head': jnp.ones((width, 10)),
    }

  mine, base = params(12, 6), params(4, 2)
  got = {k: x.flat[0] for k, x in multiplied(mup(mine, base), mine).items()}
  third = pytest.approx(1 / 3)
  expected = {'q': third, 'o': third, 'kv': third, 'conv': third, 'head': third, 'stem': 1}
  assert got == expected
  table8 = multiplied([('^head', 1.0), *mup(mine, base)], mine)
  assert table8['head'].flat[0] == 1 and table8['q'].flat[0] == third


def test_complete_p():
  params = model()
  got = multiplied(complete_p(depth=64, base_depth=4, alpha=0.5), params)
  for path, x in got.items():
    np.testing.assert_allclose(x, 0.25 if path.startswith('decoder/') else 1.0)
  for x in multiplied(complete_p(64, 4), params).values():  # alpha = 1, CompleteP itself
    np.testing.assert_array_equal(x, 1)


def adapted():
  q = Adapter(None, jnp.ones((3, 4, 2)), jnp.ones((3, 2, 5)), None)
  return {
    'decoder': {'0-2': {'attn': {'q': q}}},
    'other': {'lora_A': {'kernel': jnp.ones((4, 2))}, 'lora_B': {'kernel': jnp.ones((2, 5))}},
    'head': {'dense': jnp.ones((5, 2)), 'bias': jnp.ones(2)},
  }


SECONDS = ['decoder/0-2/attn/q/b', 'other/lora_B/kernel']


def test_lora_plus_rates():
  got = multiplied(lora_plus_rates(8.0), adapted())
  assert [path for path, x in got.items() if (x == 8).all()] == SECONDS
  assert all((x == 1).all() for path, x in got.items() if path not in SECONDS)


def test_lora_plus_is_adamw_with_a_faster_b():
  """20 steps in float64 against two AdamW of NumPy."""
  rate, ratio, b1, b2, eps, decay = 0.01, 7.0, 0.9, 0.95, 1e-6, 0.3
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    start = jax.tree.map(lambda x: rng.standard_normal(x.shape), adapted())
    gradients = [jax.tree.map(lambda x: rng.standard_normal(x.shape), start) for _ in range(20)]
    tx = lora_plus(rate, ratio, b1, b2, eps, weight_decay=decay)
    params, state, step = start, tx.init(start), jax.jit(tx.update)
    for g in gradients:
      updates, state = step(g, state, params)
      params = optax.apply_updates(params, updates)
  for i, route in enumerate(tree.routing([('', None)], start)):
    x, m, v = jax.tree.leaves(start)[i], 0.0, 0.0
    own = rate * (ratio if route.path in SECONDS else 1)
    for t, g in enumerate(gradients, 1):
      g = jax.tree.leaves(g)[i]
      m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
      u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
      x = x - own * (u + (not route.path.endswith('bias')) * decay * x)
    np.testing.assert_allclose(jax.tree.leaves(params)[i], x, rtol=1e-9)


def test_the_ratio_may_be_traced_and_leaves_a_bias_of_that_name_alone():
  params = {**adapted(), 'linear': {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}}

  def first(ratio):
    tx = lora_plus(1.0, ratio)
    return tx.update(params, tx.init(params), params)[0]

  lanes = jax.vmap(first)(jnp.asarray([1.0, 4.0]))
  np.testing.assert_allclose(lanes['other']['lora_B']['kernel'][1], -4, rtol=1e-5)
  np.testing.assert_allclose(lanes['linear']['b'][1], -1, rtol=1e-5)


@pytest.mark.parametrize(
  ('make', 'says'),
  [
    (lambda: layerwise_decay(model(), 0.0), 'rate is 0.0'),
    (lambda: layerwise_decay(model(), 1.5), 'rate is 1.5'),
    (lambda: layerwise_decay({'dense_1': {'w': jnp.ones(2)}}, 0.9), "the first is 'dense_1/w'"),
    (lambda: layerwise_decay({}, 0.9), 'the first is None'),
    (lambda: mup(model(), model(layers=[(0, 5)])), "where the base model has 'decoder/0-5/"),
    (lambda: mup(model(), {'embed': model()['embed']}), '.* where the base|16 parameters'),
    (lambda: mup({'w': jnp.ones((2, 4, 6))}, {'w': jnp.ones((1, 2, 3))}), 'over two axes'),
    (lambda: mup({'w': jnp.ones(2)}, {'w': jnp.ones((2, 1))}), 'differs in width alone'),
    (lambda: complete_p(0, 4), 'depth is 0'),
    (lambda: complete_p(8, 4, 0.1), 'alpha 0.1'),
    (lambda: lora_plus(1e-3).init(model()), 'adapt.lora'),
  ],
)
def test_bad_input(make, says):
  with pytest.raises(InputError, match=says) as e:
    make()
  assert '\n' not in str(e.value)
