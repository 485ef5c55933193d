"""The last layers alone, and layers that start to move one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, models, optim, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
SIZES = {'vocabulary': 9, 'width': 4, 'hidden': 4, 'layers': 3, 'heads': 2}
T5 = models.EncoderDecoderConfig(**SIZES, decoder_layers=2, head_width=2, buckets=4)


def ones(config):
  return jax.tree.map(lambda x: jnp.ones(x.shape), models.build(config).shapes())


def trained(params):
  return {route.path for route in tree.routing(params.rules, params) if route.value}


def places(params):
  """The segments with something to train, and what else trains."""
  return {'/'.join(path.split('/')[: 1 + tree.is_stacked(path)]) for path in trained(params)}


@pytest.mark.parametrize(
  'config, layers, want',
  [
    (models.DecoderConfig(**SIZES), 2, {'decoder/1-2', 'norm'}),
    (models.DecoderConfig(**SIZES, outputs=2), 3, {'decoder/0-2', 'norm', 'head'}),
    (models.EncoderConfig(**SIZES, positions=4, outputs=2), 1, {'encoder/2-2', 'pooler', 'head'}),
    (T5, 1, {'decoder/1-1', 'decoder_norm'}),
  ],
)
def test_last_layers_and_what_is_behind_them(config, layers, want):
  params = adapt.last_layers(KEY, ones(config), layers)
  assert places(params) == want
  if config is T5:
    assert list(params['encoder']) == ['0-2']
  segment = max(name for name in want if 'coder/' in name)
  inside = {path for path in tree.paths(params) if path.startswith(f'{segment}/')}
  assert inside <= trained(params)
  config = models.DecoderConfig(**SIZES, tied=False)
  assert 'head' not in places(adapt.last_layers(KEY, ones(config), also=None))


def test_what_is_below_the_cut_is_not_differentiated():
  params = adapt.last_layers(KEY, ones(models.DecoderConfig(**SIZES)), 1)
  trainable, frozen = adapt.trainable(params)
  model = models.decoder(models.DecoderConfig(**SIZES))

  def loss(trainable):
    return model.apply(tree.combine(trainable, frozen), np.ones((1, 2), int)).sum()

  scans = [e for e in jax.make_jaxpr(jax.grad(loss))(trainable).eqns if e.primitive.name == 'scan']
  assert [scan.params['length'] for scan in scans] == [2, 1, 1]  # forward twice, backward once


def test_methods_go_on_top_of_it_and_not_under_it():
  config = models.DecoderConfig(**SIZES)
  top = adapt.lora(KEY, adapt.last_layers(KEY, ones(config), 1), 2, select='2-2/attn/q$')
  names = {path for path in trained(top) if '/attn/q' in path}
  assert names == {'decoder/2-2/attn/q/a', 'decoder/2-2/attn/q/b'}
  assert 'decoder/2-2/mlp/up' in trained(top)
  with pytest.raises(InputError, match='decoder/2-2/attn/q is a LoRA already'):
    adapt.last_layers(KEY, adapt.lora(KEY, ones(config), 2, select='attn/q$'), 1)
  rules = (('decoder/0-2/attn/q$', True), ('', False))
  with pytest.raises(InputError, match='name segments of the stack that are cut here'):
    adapt.last_layers(KEY, adapt.freeze(KEY, ones(config), rules), 1)
  norms = adapt.last_layers(KEY, adapt.norms(KEY, ones(config)), 1)
  assert 'decoder/0-1/mlp_norm/scale' in trained(norms)


def test_layers_that_are_not_there():
  config = models.DecoderConfig(**SIZES)
  for layers in (0, 4):
    with pytest.raises(InputError, match=f'layers is {layers}, but the decoder has 3.*from 1 to 3'):
      adapt.last_layers(KEY, ones(config), layers)
  with pytest.raises(InputError, match='no stack of layers; name what trains with freeze'):
    adapt.last_layers(KEY, {'a': {'kernel': jnp.ones((2, 2))}})


def test_gradual_unfreezing_against_a_loop_over_layers():
  """Adam per layer in float64, whose step is left out before the layer's time."""
  steps, updates, rate = 2, 9, 0.1
  params = {
    'embed': {'tokens': np.float32([[0.5, -1]])},
    'decoder': {'0-1': {'q': np.float32([[1.0], [2.0]])}, '2-2': {'q': np.float32([[3.0]])}},
    'norm': {'scale': np.float32([4.0])},
  }
  starts = {'embed': 4, 'decoder': (3, 2, 1), 'norm': 0}  # in units of `steps`
  rule = optax.chain(optim.create('adam', rate), adapt.unfreeze_gradually(steps))
  rng = np.random.default_rng(0)
  gradients = [jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), params)
               for _ in range(updates)]  # fmt: skip

  @jax.jit
  def step(params, state, gradient):
    update, state = rule.update(gradient, state, params)
    return optax.apply_updates(params, update), state

  now = jax.tree.map(jnp.asarray, params)
  state = rule.init(now)
  for gradient in gradients:
    now, state = step(now, state, gradient)
  assert step._cache_size() == 1

  def flat(tree):
    """`[D + L + 1]`: the embedding, each layer, the norm."""
    stack = tree['decoder']
    parts = tree['embed']['tokens'], stack['0-1']['q'], stack['2-2']['q'], tree['norm']['scale']
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)

  want = flat(params)
  first = steps * np.array([starts['embed']] * 2 + list(starts['decoder']) + [starts['norm']])
  m, v = np.zeros_like(want), np.zeros_like(want)
  for n, gradient in enumerate(map(flat, gradients)):
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    adam = m / (1 - 0.9 ** (n + 1)) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-8)
    want = want - rate * adam * (n >= first)
  np.testing.assert_allclose(flat(now), want, rtol=1e-5)


def test_an_encoder_comes_after_its_decoder_and_fields_go_with_their_layer():
  params, trainable = adapt.lora(KEY, ones(T5), 1, select='attn/q$'), {}
  trainable, _ = adapt.trainable(params)
  rule = adapt.unfreeze_gradually(1)
  state, moved = rule.init(trainable), []
  for _ in range(6):
    update, state = jax.jit(rule.update)(trainable, state)
    encoder, decoder = (
      update[name][seg]['attn']['q'].a[:, 0, 0] != 0
      for name, seg in (('encoder', '0-2'), ('decoder', '0-1'))
    )
    moved.append([*map(int, encoder), *map(int, decoder)])
  assert moved == [
    [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1],
    [0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1],
  ]  # fmt: skip


def test_unfreezing_needs_steps_and_layers():
  with pytest.raises(InputError, match='steps is 0; give a whole number'):
    adapt.unfreeze_gradually(0)
  with pytest.raises(InputError, match="no parameter has the number of a layer.* is 'a'"):
    adapt.unfreeze_gradually(1).init({'a': jnp.ones(2)})
