"""The encoder beside float64 NumPy, and what padding and dropout must not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxtune import models, ops, tree
from jaxtune.typing import InputError

CONFIG = models.EncoderConfig(
  vocabulary=20, width=8, hidden=12, layers=3, heads=2, positions=12, epsilon=1e-5, init_scale=0.3
)
MODEL = models.encoder(CONFIG)
APPLY = jax.jit(MODEL.apply)


@pytest.fixture(scope='module')
def params():
  """Every leaf random, so that a bias or scale left out would show."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.2, 0.6, leaf.shape).astype(np.float32), MODEL.shapes()
  )


def oracle(params, tokens):
  """Devlin et al. 2018 for one text `[T]`, layer by layer, head by head."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.epsilon) * p['scale'] + p['bias']

  def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)

  embed = params['embed']
  x = embed['tokens'][tokens] + embed['positions'][: len(tokens)] + embed['types'][0]
  x = norm(x, embed['norm'])
  width = CONFIG.width // CONFIG.heads
  for number in range(CONFIG.layers):
    layer = jax.tree.map(lambda x, n=number: x[n], params['encoder']['0-2'])
    attn, mlp = layer['attn'], layer['mlp']
    q, k, v = (x @ attn[n] + attn[f'{n}_bias'] for n in 'qkv')
    heads = []
    for h in range(CONFIG.heads):
      part = slice(h * width, (h + 1) * width)
      heads.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(width)) @ v[:, part])
    x = norm(x + np.concatenate(heads, -1) @ attn['o'] + attn['o_bias'], layer['attn_norm'])
    up = x @ mlp['up'] + mlp['up_bias']
    up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
    x = norm(x + up @ mlp['down'] + mlp['down_bias'], layer['mlp_norm'])
  return x


def test_hidden_states_are_the_oracle(params):
  tokens = np.random.default_rng(1).integers(0, 20, (2, 7))
  got = APPLY(params, tokens)
  assert got.shape == (2, 7, 8)
  for row, text in zip(got, tokens, strict=True):
    np.testing.assert_allclose(row, oracle(params, text), atol=5e-5)


def test_padding_changes_nothing(params):
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 20, (2, 9))
  mask = np.arange(9)[None] < np.array([[5], [5]])
  padded = APPLY(params, tokens, mask)
  np.testing.assert_allclose(padded[:, :5], APPLY(params, tokens[:, :5]), atol=2e-5)
  other = np.where(mask, tokens, (tokens + 1) % 20)
  np.testing.assert_array_equal(APPLY(params, other, mask)[:, :5], padded[:, :5])
  assert np.abs(APPLY(params, tokens)[:, :5] - padded[:, :5]).max() > 5e-3


def test_packed_texts_do_not_see_each_other(params):
  tokens = np.random.default_rng(3).integers(0, 20, (1, 7))
  segments = np.array([[1, 1, 1, 2, 2, 2, 2]])
  positions = np.array([[0, 1, 2, 0, 1, 2, 3]])
  packed = APPLY(params, tokens, positions=positions, segments=segments)
  np.testing.assert_allclose(packed[:, :3], APPLY(params, tokens[:, :3]), atol=2e-5)
  np.testing.assert_allclose(packed[:, 3:], APPLY(params, tokens[:, 3:]), atol=2e-5)


def test_dropout_needs_a_key_and_a_rate(params):
  tokens = np.arange(6)[None]
  model = models.encoder(dataclasses.replace(CONFIG, dropout=0.5))
  apply = jax.jit(model.apply)
  quiet = APPLY(params, tokens)
  np.testing.assert_allclose(apply(params, tokens), quiet, atol=1e-5)
  np.testing.assert_allclose(APPLY(params, tokens, key=jax.random.key(0)), quiet, atol=1e-5)
  one = apply(params, tokens, key=jax.random.key(0))
  two = apply(params, tokens, key=jax.random.key(1))
  assert np.abs(one - two).max() > 0.1
  np.testing.assert_array_equal(one, apply(params, tokens, key=jax.random.key(0)))


def test_dropout_is_the_same_however_the_stack_is_cut_and_recomputed(params):
  tokens = np.arange(6)[None]
  config = dataclasses.replace(CONFIG, dropout=0.5)

  @functools.partial(jax.jit, static_argnums=1)
  def apply(params, remat):
    model = models.encoder(dataclasses.replace(config, remat=remat))
    return model.apply(params, tokens, key=jax.random.key(3))

  cut = {**params, 'encoder': models.cut(params['encoder'], 2)}
  np.testing.assert_allclose(apply(cut, 'full'), apply(params, 'none'), atol=1e-5)


def test_bfloat16_parameters_give_bfloat16_states(params):
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  tokens = np.arange(6)[None]
  got = APPLY(low, tokens)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), APPLY(params, tokens), atol=0.2)


def test_texts_longer_than_the_positions_are_refused(params):
  with pytest.raises(InputError, match='13 tokens a row, but the model has 12 positions'):
    MODEL.apply(params, np.zeros((1, 13), np.int32))


def test_an_unknown_activation_is_refused(params):
  model = models.encoder(dataclasses.replace(CONFIG, activation='mish'))
  with pytest.raises(InputError, match="unknown activation 'mish'; known: gelu"):
    model.apply(params, np.zeros((1, 2), np.int32))


def filled(model, seed=0):
  """Every parameter random."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(0.1, 0.5, x.shape).astype(np.float32), model.shapes())


def test_types_are_zero_unless_given(params):
  tokens = np.random.default_rng(4).integers(0, 20, (2, 5))
  types = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
  plain = APPLY(params, tokens)
  np.testing.assert_allclose(APPLY(params, tokens, types=0 * types), plain, atol=1e-6)
  # A type is one more vector that is added to a token's, as another token's would be.
  embed = params['embed']
  moved = embed['tokens'] + (embed['types'][1] - embed['types'][0])
  both = np.concatenate([embed['tokens'], moved])
  longer = models.encoder(dataclasses.replace(CONFIG, vocabulary=40))
  want = longer.apply({**params, 'embed': {**embed, 'tokens': both}}, tokens + 20 * types)
  np.testing.assert_allclose(APPLY(params, tokens, types=types), want, atol=1e-5)
  assert np.abs(plain - want).max() > 0.01
  without = models.encoder(dataclasses.replace(CONFIG, types=0, model_type='distilbert'))
  with pytest.raises(InputError, match='distilbert has no types of tokens'):
    without.apply(params, tokens, types=types)


def test_positions_behind_that_of_padding_are_counted_without_it():
  """RoBERTa: a text has the same states wherever the padding is, and the table two rows more."""
  config = dataclasses.replace(CONFIG, first_position=2, positions=9)
  model = models.encoder(config)
  params = filled(model)
  assert params['embed']['positions'].shape == (11, 8)
  apply = jax.jit(model.apply)
  tokens = np.random.default_rng(5).integers(2, 20, (1, 5))
  mask = np.ones((1, 5), bool)
  alone = apply(params, tokens)
  table = {**params['embed'], 'positions': params['embed']['positions'][2:]}
  plain = dataclasses.replace(config, first_position=0)
  want = models.encoder(plain).apply({**params, 'embed': table}, tokens)
  np.testing.assert_allclose(alone, want, atol=1e-5)
  for before, after in ((3, 0), (0, 2), (2, 1)):
    pad = ((0, 0), (before, after))
    padded = apply(params, np.pad(tokens, pad, constant_values=1), np.pad(mask, pad))
    np.testing.assert_allclose(padded[:, before : before + 5], alone, atol=2e-5)
  with pytest.raises(InputError, match='10 tokens a row, but the model has 9 positions'):
    model.apply(params, np.zeros((1, 10), np.int32))


MODERN = dataclasses.replace(
  CONFIG,
  model_type='modernbert',
  order='pre',
  first_norm=False,
  norm_bias=False,
  gated=True,
  qkv_bias=False,
  o_bias=False,
  mlp_bias=False,
  rope=ops.Rope(100.0),
  local_rope=ops.Rope(10.0),
  window=2,
  local=(False, True, True),
  types=0,
  learned_positions=False,
  pooler=False,
)


def test_windows_look_both_ways_and_positions_are_relative():
  config = dataclasses.replace(MODERN, layers=1, local=())
  model = models.encoder(config)
  params = filled(model)
  apply = jax.jit(model.apply)
  tokens = np.random.default_rng(6).integers(0, 19, (1, 9))
  base = apply(params, tokens)
  changed = np.abs(apply(params, np.where(np.arange(9) == 4, 19, tokens)) - base).max(axis=(0, 2))
  assert (changed[2:7] > 1e-3).all() and not changed[:2].any() and not changed[7:].any()
  later = apply(params, tokens, positions=np.arange(9)[None] + 100)
  np.testing.assert_allclose(later, base, atol=2e-5)


def test_without_a_mask_nothing_is_masked():
  model = models.encoder(MODERN)
  params = filled(model)
  tokens = np.random.default_rng(7).integers(0, 20, (2, 6))
  whole = jax.jit(model.apply)(params, tokens, np.ones((2, 6), bool))
  np.testing.assert_array_equal(jax.jit(model.apply)(params, tokens), whole)


HIDDEN = models.Head('gelu', norm=True)
BODY = {'embed', 'encoder'}
SPECS = {
  'bert': (CONFIG, {}, 'features', {'pooler/dense', 'pooler/dense_bias'}),
  'modernbert': (MODERN, {}, 'features', {'norm/scale'}),
  'labelled tokens': (
    CONFIG,
    {'outputs': 3, 'each_token': True},
    'token_classification',
    {'head/dense', 'head/dense_bias'},
  ),
  'hidden layer': (
    CONFIG,
    {'outputs': 3, 'text_head': models.Head('tanh', bias=False)},
    'classification',
    {'head/hidden', 'head/dense', 'head/dense_bias'},
  ),
  'tied': (
    CONFIG,
    {'masked_lm': True},
    'masked_lm',
    {
      *('head/hidden', 'head/hidden_bias', 'head/norm/scale', 'head/norm/bias'),
      'head/dense_bias',
    },
  ),
  'untied': (
    MODERN,
    {
      'masked_lm': True,
      'tied': False,
      'masked_head': models.Head('gelu', bias=False, norm=True, output_bias=False),
    },
    'masked_lm',
    {'norm/scale', 'head/hidden', 'head/norm/scale', 'head/dense'},
  ),
}


@pytest.mark.parametrize('name', SPECS)
def test_heads_have_their_parameters_and_every_leaf_its_axes(name):
  config, changes, task, paths = SPECS[name]
  model = models.encoder(dataclasses.replace(config, **changes))
  shapes = model.shapes()
  found = {path for path, _ in tree.named_weights(shapes) if path.split('/')[0] not in BODY}
  assert model.task == task and found == paths
  ranks = jax.tree.map(lambda leaf, axes: len(leaf.shape) == len(axes), shapes, model.axes(shapes))
  assert all(jax.tree.leaves(ranks))
  if config is MODERN:
    segments = shapes['encoder']
    assert set(segments) == {'0-0', '1-2'} and 'attn_norm' not in segments['0-0']
  if name == 'untied':
    assert model.axes(shapes)['head']['dense'] == ('embed', 'vocab')


@pytest.mark.parametrize('tied', [True, False])
def test_masked_tokens_are_the_oracle(tied):
  """`norm(gelu(x W + b)) V + c` of each token, V being the embedding where it is tied."""
  config = dataclasses.replace(CONFIG, masked_lm=True, tied=tied, masked_head=HIDDEN)
  model = models.encoder(config)
  params = filled(model)
  x = np.random.default_rng(8).normal(size=(2, 3, 8)).astype(np.float32)
  head = jax.tree.map(np.float64, params['head'])
  y = x @ head['hidden'] + head['hidden_bias']
  y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
  y = y - y.mean(-1, keepdims=True)
  y = y / np.sqrt((y**2).mean(-1, keepdims=True) + CONFIG.epsilon)
  y = y * head['norm']['scale'] + head['norm']['bias']
  matrix = np.float64(params['embed']['tokens']).T if tied else head['dense']
  want = y @ matrix + head['dense_bias']
  np.testing.assert_allclose(model.head(params, x), want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(model.head(params, x[0]), want[0], rtol=1e-4, atol=1e-4)


def test_a_classifier_of_the_mean():
  config = dataclasses.replace(CONFIG, outputs=2, pooling='mean', pooler=False)
  model = models.encoder(config)
  params = filled(model)
  x = np.random.default_rng(9).normal(size=(2, 4, 8)).astype(np.float32)
  mask = np.array([[True] * 4, [False, True, True, False]])
  means = np.stack([x[0].mean(0), x[1, 1:3].mean(0)])
  want = means @ params['head']['dense'] + params['head']['dense_bias']
  np.testing.assert_allclose(model.head(params, x, mask), want, atol=1e-5)
