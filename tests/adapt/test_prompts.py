"""Virtual tokens do what the real tokens do whose embeddings, keys and values they are given."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, tree
from jaxtune.models import likelihood
from jaxtune.typing import InputError

KEY = jax.random.key(0)
SIZES = {'vocabulary': 30, 'width': 16, 'hidden': 24, 'layers': 2, 'heads': 4, 'init_scale': 0.4}
DECODERS = {
  'gemma': models.DecoderConfig(
    **SIZES,
    kv_heads=2,
    order='sandwich',
    window=4,
    local=(True, False),
    qk_norm=True,
    embed_scale=4.0,
    positions=20,
  ),
  'gpt2': models.DecoderConfig(
    **SIZES, rope=None, learned_positions=True, norm='layer', norm_bias=True, positions=20
  ),
}
ENCODERS = {
  'bert': models.EncoderConfig(**SIZES, positions=20, outputs=3),
  'roberta': models.EncoderConfig(**SIZES, positions=20, first_position=2, types=0),
  'modernbert': models.EncoderConfig(
    **SIZES,
    positions=20,
    learned_positions=False,
    types=0,
    order='pre',
    window=2,
    local=(True, False),
    outputs=3,
    pooling='mean',
  ),
}
IDS = [7, 3, 11]
P, T = len(IDS), 6
TOKENS = np.random.default_rng(0).integers(3, 30, (2, T)).astype(np.int32)
MASK = np.arange(T)[None] < np.array([[2], [4]])
WHOLE = np.concatenate([np.tile(np.int32(IDS), (2, 1)), TOKENS], axis=1)
ONES = np.ones((2, P), bool)
WHOLE_MASK = np.concatenate([ONES, MASK], axis=1)


@functools.cache
def built(config):
  """`(model, params, features)`, the last compiled once for all tests."""
  model = models.build(config)
  rng = np.random.default_rng(1)

  def random(path, shape):
    offset = 1 if tree.path_name(path).endswith('norm/scale') else 0
    return jnp.asarray(offset + rng.normal(0, 0.4, shape.shape), jnp.float32)

  params = jax.tree_util.tree_map_with_path(random, model.shapes())
  return model, params, jax.jit(model.features)


def decoder(name='gemma'):
  return built(DECODERS[name])


def encoder(name):
  return built(ENCODERS[name])


def prompted(params):
  return adapt.prompt(KEY, params, P, IDS)


def prefixed(model, params):
  """The keys and values that a decoder makes of that prompt."""
  cache = jax.jit(model.start_cache, static_argnums=(1, 2))(prompted(params), 1, 1)
  made = adapt.prefix(KEY, params, P)
  kept = {name: getattr(cache, name)[:, 0, :P] for name in made['prefix']}
  made['prefix'] = {name: x.reshape(made['prefix'][name].shape) for name, x in kept.items()}
  return made


def close(got, want, tolerance=1e-5):
  np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)


slowly = pytest.param('gpt2', marks=pytest.mark.slow)


@pytest.mark.parametrize('name', ['gemma', slowly])
def test_before_a_decoder(name):
  model, params, features = decoder(name)
  want = features(params, WHOLE, WHOLE_MASK)[:, P:]
  for made in (prompted(params), prefixed(model, params)):
    got = features(made, TOKENS, MASK)
    assert got.shape == (2, T, 16)
    close(got[MASK], want[MASK])


@pytest.mark.parametrize('name', ['gemma', slowly])
def test_packed_rows_are_the_texts_alone(name):
  model, params, features = decoder(name)
  packed = np.concatenate([TOKENS[:1, :2], TOKENS[1:, :4]], axis=1)
  segments, positions = np.int32([[1, 1, 2, 2, 2, 2]]), np.int32([[0, 1, 0, 1, 2, 3]])
  for made in (prompted(params), prefixed(model, params))[: 1 if name == 'gemma' else 2]:
    got = features(made, packed, segments=segments, positions=positions)[0]
    close(got, features(made, TOKENS, MASK)[MASK])


@pytest.mark.slow
def test_a_prompt_behind_a_prefix():
  model, params, features = decoder()
  want = features(params, WHOLE, WHOLE_MASK)[:, P:]
  # The prefix is that of the first two, and the prompt what they have read then.
  cache = jax.jit(model.start_cache, static_argnums=(1, 2))(
    adapt.prompt(KEY, params, 2, IDS[:2]), 1, 1
  )
  made = adapt.prefix(KEY, params, 2)
  for name in made['prefix']:
    made['prefix'][name] = getattr(cache, name)[:, 0, :2].reshape(2, 2, -1)
  both = adapt.prompt(KEY, made, 1, IDS[2:])
  close(features(both, TOKENS, MASK)[MASK], want[MASK])
  assert adapt.trainable(both)[0]['prefix']['keys'] is not None


@pytest.mark.parametrize(
  'name', ['bert', *(pytest.param(n, marks=pytest.mark.slow) for n in ('roberta', 'modernbert'))]
)
def test_before_an_encoder(name):
  """A classifier looks at the prompt as at the text that it stands for."""
  model, params, features = encoder(name)
  whole, made = features(params, WHOLE, WHOLE_MASK), features(prompted(params), TOKENS, MASK)
  if model.config.outputs:
    got = model.head(prompted(params), made, MASK)
    close(got, model.head(params, whole, WHOLE_MASK))
    made = made[:, P:]
  assert made.shape == (2, T, 16)
  close(made[MASK], whole[:, P:][MASK])


@pytest.mark.slow
def test_an_embedding_is_of_the_text_alone():
  model, params, features = encoder('bert')
  pooled = models.embed(model, prompted(params), TOKENS, MASK, normalize=False)
  close(pooled[0], features(params, WHOLE, WHOLE_MASK)[0, P : P + 2].mean(0))


@pytest.mark.slow
def test_types_of_the_prompt_are_zero():
  model, params, _ = encoder('bert')
  types = np.ones_like(TOKENS)
  whole = np.concatenate([np.zeros((2, P), np.int32), types], axis=1)
  want = model.apply(params, WHOLE, WHOLE_MASK, types=whole)
  close(model.apply(prompted(params), TOKENS, MASK, types=types), want)


def test_a_prefix_before_an_encoder_is_seen_by_all():
  """Of one layer: attention over the keys, written out in float64."""
  config = dataclasses.replace(ENCODERS['bert'], layers=1, outputs=0, pooler=False)
  _, params, features = built(config)
  params = adapt.prefix(KEY, params, P)
  got = features(params, TOKENS, MASK)

  def wide(x):
    return np.asarray(x, np.float64)

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * wide(p['scale']) + wide(p['bias'])

  embed, layer = params['embed'], jax.tree.map(lambda x: wide(x[0]), params['encoder']['0-0'])
  x = wide(embed['tokens'])[TOKENS] + wide(embed['positions'])[P : P + T] + wide(embed['types'])[0]
  x, a = norm(x, embed['norm']), layer['attn']
  q, k, v = (x @ a[n] + a[f'{n}_bias'] for n in 'qkv')
  k, v = (
    np.concatenate([np.tile(wide(params['prefix'][n]), (2, 1, 1)), y], 1)
    for n, y in (('keys', k), ('values', v))
  )
  q, k, v = (y.reshape(2, -1, 4, 4) for y in (q, k, v))
  scores = np.einsum('bqhk,bthk->bhqt', q, k) / 2
  scores = np.where(WHOLE_MASK[:, None, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  y = np.einsum('bhqt,bthk->bqhk', weights, v).reshape(2, T, 16)
  x = norm(x + y @ a['o'] + a['o_bias'], layer['attn_norm'])
  m = layer['mlp']
  h = wide(jax.nn.gelu(jnp.asarray(x @ m['up'] + m['up_bias']), approximate=False))
  want = norm(x + h @ m['down'] + m['down_bias'], layer['mlp_norm'])
  close(got[MASK], want[MASK], 1e-4)


@pytest.mark.slow
def test_padding_on_the_left_changes_nothing():
  """Under a window, too, which counts real tokens between the prompt and the text."""
  _, params, features = decoder()
  made = prompted(params)
  padded = np.concatenate([np.zeros((1, 5), np.int32), TOKENS[:1]], axis=1)
  mask = np.arange(5 + T)[None] >= 5
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  got = features(made, padded, mask, positions=positions)[:, 5:]
  close(got, features(made, TOKENS[:1]))


@pytest.mark.slow
@pytest.mark.parametrize('name', DECODERS)
def test_the_cache_starts_with_them(name):
  model, params, features = decoder(name)
  extend = jax.jit(model.extend)
  for made in (prompted(params), prefixed(model, params)):
    cache, parts = jax.jit(model.start_cache, static_argnums=(1, 2))(made, 2, T), []
    assert cache.mask.shape == (2, P + T) and cache.positions.tolist() == [P, P]
    for piece in (slice(0, 3), slice(3, T)):
      part, cache = extend(made, TOKENS[:, piece], cache, MASK[:, piece])
      parts.append(part)
    got = np.concatenate(parts, axis=1)
    close(got[MASK], features(made, TOKENS, MASK)[MASK])


@pytest.mark.slow
def test_what_is_written_and_how_likely_it_is():
  model, params, _ = decoder()
  made = prompted(params)
  given = TOKENS[0, :4].tolist()
  (got,) = models.generate(model, made, [given], max_tokens=3)
  apply, row = jax.jit(model.apply), list(given)
  for _ in range(3):
    padded = np.int32([row + [0] * (T - len(row))])
    row.append(int(apply(made, padded)[0, len(row) - 1].argmax()))
  assert list(got.tokens) == row[4:]
  cache = jax.jit(likelihood.remember, static_argnums=(0, 3))(
    model, made, jnp.asarray(TOKENS[0, :2]), 8
  )
  words = jnp.asarray(TOKENS[1:, :2])
  ones = jnp.ones((1, 2), bool)
  nats = jax.jit(likelihood.word_likelihood, static_argnums=0)(
    model, made, cache, jnp.asarray(TOKENS[:1, 2:4]), ones, words, ones
  )
  whole = np.concatenate([TOKENS[:1, :4], TOKENS[1:, :2]], axis=1)
  logits = jax.nn.log_softmax(apply(made, whole)[0, 3:5])
  close(nats[0, 0], logits[np.arange(2), TOKENS[1, :2]].sum(), 1e-4)
  with pytest.raises(InputError, match='has 18 tokens, but the context of the model is 17'):
    models.generate(model, made, [[1] * 18])


@pytest.mark.slow
def test_the_stack_may_be_cut_before_or_after():
  model, params, features = decoder()
  made = adapt.prefix(KEY, params, P)
  cut = {**params, 'decoder': models.cut(params['decoder'], 1)}
  later = {**made, 'decoder': cut['decoder']}
  jax.tree.map(np.testing.assert_array_equal, later, dict(adapt.prefix(KEY, cut, P)))
  close(features(later, TOKENS), features(made, TOKENS))


@pytest.mark.slow
def test_the_largest_logits_count_them():
  model, params, _ = decoder()
  want = models.query_key_maxima(model, params, {'tokens': WHOLE, 'mask': WHOLE_MASK})
  got = models.query_key_maxima(model, prompted(params), {'tokens': TOKENS, 'mask': MASK})
  jax.tree.map(close, got, want)
  # A prefix has no queries of its own.
  got = models.query_key_maxima(model, prefixed(model, params), {'tokens': TOKENS, 'mask': MASK})
  jax.tree.map(lambda a, b: np.testing.assert_array_less(a, b + 1e-5), got, want)


def test_starts():
  params = decoder()[1]
  table = np.asarray(params['embed']['tokens'])
  rows = adapt.prompt(KEY, params, 5)['prompt']['tokens']
  assert all((table == row).all(axis=1).any() for row in np.asarray(rows))
  np.testing.assert_array_equal(
    adapt.prompt(KEY, params, 5, IDS)['prompt']['tokens'], table[[7, 3, 11, 7, 3]]
  )
  rows = adapt.prompt(KEY, params, 400, 'random')['prompt']['tokens']
  close(rows.std() / table.std(), 1.0, 0.05)
  made = adapt.prefix(KEY, params, 4, 'zero')['prefix']
  assert made['keys'].shape == (2, 4, 8) and not made['values'].any()


def test_p_tuning_is_its_mlp_and_merges_into_a_prompt():
  model, params, _ = decoder()
  made = adapt.p_tuning(KEY, params, P)
  leaf = made['prompt']['tokens']
  wide = {f.name: np.float64(getattr(leaf, f.name)) for f in dataclasses.fields(leaf)}
  x = np.maximum(wide['embedding'] @ wide['into'] + wide['into_bias'], 0)
  x = np.maximum(x @ wide['hidden'] + wide['hidden_bias'], 0)
  merged = adapt.merge(made)
  close(merged['prompt']['tokens'], x @ wide['out'] + wide['out_bias'])
  assert len(jax.tree.leaves(adapt.trainable(made)[0])) == 7
  assert model.axes(made)['prompt']['tokens'].out == (None, 'embed')


def test_methods_compose_and_merging_leaves_the_prompt():
  made = prompted(adapt.lora(KEY, decoder()[1], 2, select='attn/q$'))
  trained = [path for path in tree.paths(adapt.trainable(made)[0])]
  assert trained == [
    'decoder/0-1/attn/q/a',
    'decoder/0-1/attn/q/b',
    'prompt/tokens',
  ]
  merged = adapt.merge(made)
  np.testing.assert_array_equal(merged['prompt']['tokens'], made['prompt']['tokens'])


METHODS = {name: adapt.METHODS[name] for name in ('prompt', 'p_tuning', 'prefix')}


@functools.cache
def others():
  config = models.EncoderDecoderConfig(**SIZES)
  image = models.VisionConfig(width=16, hidden=24, layers=1, heads=2)
  return (
    models.build(config).shapes(),
    models.build(dataclasses.replace(config, decoder_layers=0)).shapes(),
    models.build(image).shapes(),
    {'embed': np.ones((3, 2)), 'encoder': {'kernel': np.ones((2, 2))}},
    {'Dense_0': {'kernel': np.ones((2, 2))}},
  )


@pytest.mark.parametrize('name', METHODS)
def test_models_that_know_of_none(name):
  for params in others():
    with pytest.raises(InputError, match=f'{name} puts virtual .* built-in decoders and encoders'):
      METHODS[name](KEY, params)
  params = decoder()[1]
  with pytest.raises(InputError, match='tokens is 0; it must be at least 1'):
    METHODS[name](KEY, params, 0)
  with pytest.raises(InputError, match='have a (prompt|prefix) already'):
    METHODS[name](KEY, METHODS[name](KEY, params))


def test_what_cannot_be():
  model, params, _ = decoder('gpt2')
  made = prompted(params)
  with pytest.raises(InputError, match='18 tokens a row and 3 virtual ones, but .* 20 positions'):
    model.features(made, np.ones((1, 18), np.int32))
  for start, words in [('text', "'vocabulary' or 'random'"), ([30], '0 to 29'), ([], '0 to 29')]:
    with pytest.raises(InputError, match=f'start is .*{words}'):
      adapt.prompt(KEY, params, 3, start)
  with pytest.raises(InputError, match="start is 'ones'; it must be 'random' or 'zero'"):
    adapt.prefix(KEY, params, 3, 'ones')
  with pytest.raises(InputError, match='hidden is -1'):
    adapt.p_tuning(KEY, params, 3, -1)
  model, params, _ = encoder('bert')
  with pytest.raises(InputError, match='packed into one row .* leave packing out'):
    model.features(prompted(params), TOKENS, segments=np.ones_like(TOKENS))
