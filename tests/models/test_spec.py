"""What a ModelSpec says of its parameters without making them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, tree

ENCODER = models.EncoderConfig(vocabulary=20, width=8, hidden=12, layers=2, heads=2, positions=8)
DECODER = models.DecoderConfig(
  vocabulary=20, width=8, hidden=12, layers=2, heads=2, kv_heads=1, head_width=4
)
SPECS = {
  'encoder': models.encoder(ENCODER),
  'classifier': models.build(models.EncoderConfig(**{**vars(ENCODER), 'outputs': 3})),
  'decoder': models.decoder(DECODER),
  'untied': models.build(models.DecoderConfig(**{**vars(DECODER), 'tied': False})),
}
PATHS = {
  'encoder': [
    *('embed/norm/bias', 'embed/norm/scale', 'embed/positions', 'embed/tokens', 'embed/types'),
    *(f'encoder/0-1/attn/{n}{b}' for n in 'koqv' for b in ('', '_bias')),
    *(f'encoder/0-1/{n}_norm/{s}' for n in ('attn', 'mlp') for s in ('bias', 'scale')),
    *(f'encoder/0-1/mlp/{n}{b}' for n in ('down', 'up') for b in ('', '_bias')),
    *('pooler/dense', 'pooler/dense_bias'),
  ],
  'decoder': [
    *(f'decoder/0-1/attn/{n}' for n in 'koqv'),
    *('decoder/0-1/attn_norm/scale', 'decoder/0-1/mlp_norm/scale'),
    *(f'decoder/0-1/mlp/{n}' for n in ('down', 'gate', 'up')),
    *('embed/tokens', 'norm/scale'),
  ],
}
PATHS['classifier'] = [*PATHS['encoder'], 'head/dense', 'head/dense_bias']
PATHS['untied'] = [*PATHS['decoder'], 'head/dense']
TASKS = {
  'encoder': 'features',
  'classifier': 'classification',
  'decoder': 'causal_lm',
  'untied': 'causal_lm',
}


@pytest.mark.parametrize('name', SPECS)
def test_parameters_have_the_agreed_names_and_shapes(name):
  model = SPECS[name]
  shapes = model.shapes()
  assert [path for path, _ in tree.named_weights(shapes)] == sorted(PATHS[name])
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
  assert model.task == TASKS[name]


@pytest.mark.parametrize('name', SPECS)
def test_every_leaf_has_one_name_an_axis(name):
  shapes = SPECS[name].shapes()
  adapted = jax.eval_shape(lambda p: adapt.lora(jax.random.key(0), p, 2), shapes)
  for params in (shapes, adapted):
    axes = SPECS[name].axes(params)
    ranks = jax.tree.map(lambda leaf, names: len(leaf.shape) == len(names), params, axes)
    assert all(jax.tree.leaves(ranks))


def test_axes_of_weights_and_of_adapters():
  shapes = SPECS['decoder'].shapes()
  axes = SPECS['decoder'].axes(shapes)
  layer = axes['decoder']['0-1']
  assert layer['attn']['q'] == ('layers', 'embed', 'heads')
  assert layer['mlp']['down'] == ('layers', 'mlp', 'embed')
  assert axes['embed']['tokens'] == ('vocab', 'embed')

  def twice(params):
    once = adapt.lora(jax.random.key(0), params, 2, select='attn/q$')
    return adapt.lora(jax.random.key(1), once, 2, select='attn/q$')

  q = SPECS['decoder'].axes(jax.eval_shape(twice, shapes))['decoder']['0-1']['attn']['q']
  assert q.a == ('layers', 'embed', None)
  assert q.b == ('layers', None, 'heads')
  assert q.scale == ('layers',)
  assert q.base.base == layer['attn']['q']
  assert q.base.a == q.a


def test_one_seed_one_model():
  @jax.jit
  def init(key):
    params = SPECS['decoder'].init(key)
    return params['embed']['tokens'], params['decoder']['0-1']['attn']

  (tokens, attn), (same, _), (other, _) = (init(jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(tokens, same)
  assert not np.array_equal(tokens, other)
  np.testing.assert_allclose(np.std(tokens), DECODER.init_scale, rtol=0.3)
  assert not np.array_equal(attn['q'][0], attn['q'][1])
  assert not np.array_equal(attn['k'], attn['v'])
