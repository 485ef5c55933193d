"""The encoder-decoder beside float64 NumPy, and what masks, cuts and adapters must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, tree
from jaxtune.models.encoder_decoder import relative_bias
from jaxtune.typing import InputError

CONFIG = models.EncoderDecoderConfig(
  vocabulary=20,
  width=8,
  hidden=12,
  layers=2,
  decoder_layers=2,
  heads=2,
  head_width=6,
  epsilon=1e-3,
  activation='gelu_new',
  gated=True,
  tied=False,
  scaled=False,
  buckets=8,
  distance=6,
  start=3,
)
MODEL = models.encoder_decoder(CONFIG)
APPLY = jax.jit(MODEL.apply)
RNG = np.random.default_rng(0)
TOKENS, TARGETS = RNG.integers(0, 20, (2, 9)), RNG.integers(0, 20, (2, 7))
MASK = np.array([[1] * 9, [0, 0, 1, 1, 1, 1, 1, 0, 0]], bool)
TARGET_MASK = np.array([[1] * 7, [0, 1, 1, 1, 1, 0, 0]], bool)


@pytest.fixture(scope='module')
def params():
  """Every leaf random, so that a table or scale left out would show."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.2, 0.4, leaf.shape).astype(np.float32), MODEL.shapes()
  )


def bucket(ahead, rows, distance, causal):
  """Raffel et al. 2019, section 2.1: by the definition, one distance at a time."""
  first, far = 0, abs(ahead)
  if causal:
    far = max(-ahead, 0)
  else:
    rows //= 2
    first = rows if ahead > 0 else 0
  near = rows // 2
  if far < near:
    return first + far
  # The larger half of the rows: equal steps of the logarithm from `near` to `distance`.
  step = np.log(far / near) / np.log(distance / near) * (rows - near)
  return first + min(near + int(step + 1e-9), rows - 1)


def biases(table, length, causal):
  return np.array(
    [
      [table[bucket(j - i, CONFIG.buckets, CONFIG.distance, causal)] for j in range(length)]
      for i in range(length)
    ]
  ).transpose(2, 0, 1)


def oracle(params, tokens, targets):
  """T5 for one pair of texts, layer by layer, head by head."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.epsilon) * scale['scale']

  def attend(x, source, p, bias):
    heads = []
    for h in range(CONFIG.heads):
      part = slice(h * CONFIG.head_width, (h + 1) * CONFIG.head_width)
      scores = (x @ p['q'][:, part]) @ (source @ p['k'][:, part]).T + bias[h]
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ source @ p['v'][:, part])
    return np.concatenate(heads, -1) @ p['o']

  def feed(x, p):
    gate = x @ p['gate']
    gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gate * (x @ p['up'])) @ p['down']

  x = params['embed']['tokens'][tokens]
  bias = biases(params['encoder_bias'], len(tokens), False)
  for n in range(CONFIG.layers):
    p = jax.tree.map(lambda x, n=n: x[n], params['encoder']['0-1'])
    y = norm(x, p['attn_norm'])
    x = x + attend(y, y, p['attn'], bias)
    x = x + feed(norm(x, p['mlp_norm']), p['mlp'])
  states = norm(x, params['encoder_norm'])

  x = params['embed']['tokens'][targets]
  bias = biases(params['decoder_bias'], len(targets), True)
  bias = bias + np.where(np.tri(len(targets)), 0, -np.inf)
  for n in range(CONFIG.decoder_layers):
    p = jax.tree.map(lambda x, n=n: x[n], params['decoder']['0-1'])
    y = norm(x, p['attn_norm'])
    x = x + attend(y, y, p['attn'], bias)
    x = x + attend(norm(x, p['cross_norm']), states, p['cross'], np.zeros(CONFIG.heads))
    x = x + feed(norm(x, p['mlp_norm']), p['mlp'])
  return norm(x, params['decoder_norm']) @ params['head']['dense']


def test_logits_are_the_oracle(params):
  got = APPLY(params, TOKENS, targets=TARGETS)
  assert got.shape == (2, 7, 20)
  for row, tokens, targets in zip(got, TOKENS, TARGETS, strict=True):
    want = oracle(params, tokens, targets)
    assert np.abs(row - want).max() < 1e-4 * want.std()


def test_tied_heads_are_the_embedding_and_may_be_scaled(params):
  features = np.asarray(RNG.normal(size=(2, 3, 8)), np.float32)
  want = features @ params['embed']['tokens'].T
  for scaled, factor in ((True, 8**-0.5), (False, 1.0)):
    model = models.encoder_decoder(dataclasses.replace(CONFIG, tied=True, scaled=scaled))
    assert 'head' not in model.shapes()
    np.testing.assert_allclose(model.head(params, features), want * factor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('length', [1, 2, 17])
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize(('rows', 'distance'), [(4, 7), (8, 20), (32, 128)])
def test_relative_biases_are_the_definition(length, causal, rows, distance):
  table = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
  got = relative_bias(table, length, distance, causal)
  assert got.shape == (1, 2, length, length) and got.dtype == jnp.float32
  for i in range(length):
    for j in range(length):
      np.testing.assert_array_equal(got[0, :, i, j], table[bucket(j - i, rows, distance, causal)])


def test_padding_changes_nothing(params):
  """On both sides of both texts; the second row alone is padded."""
  padded = APPLY(params, TOKENS, MASK, targets=TARGETS, target_mask=TARGET_MASK)
  short = APPLY(params, TOKENS[1:, 2:7], targets=TARGETS[1:, 1:5])
  np.testing.assert_allclose(padded[1, 1:5], short[0], atol=2e-4)
  np.testing.assert_allclose(padded[0], APPLY(params, TOKENS, targets=TARGETS)[0], atol=2e-4)
  other = np.where(MASK, TOKENS, (TOKENS + 1) % 20)
  others = np.where(TARGET_MASK, TARGETS, (TARGETS + 1) % 20)
  same = APPLY(params, other, MASK, targets=others, target_mask=TARGET_MASK)
  np.testing.assert_array_equal(same[1, 1:5], padded[1, 1:5])


def test_the_decoder_looks_backwards_alone_and_the_encoder_everywhere(params):
  whole = APPLY(params, TOKENS, targets=TARGETS)
  later = APPLY(params, TOKENS, targets=np.where(np.arange(7) < 4, TARGETS, 0))
  np.testing.assert_array_equal(whole[:, :4], later[:, :4])
  last = APPLY(params, np.where(np.arange(9) < 8, TOKENS, (TOKENS + 1) % 20), targets=TARGETS)
  assert np.abs(whole[:, 0] - last[:, 0]).max() > 1e-3


def test_the_start_token_goes_first():
  got = models.shift_right(CONFIG, jnp.asarray(TARGETS))
  np.testing.assert_array_equal(got[:, 0], [3, 3])
  np.testing.assert_array_equal(got[:, 1:], TARGETS[:, :-1])


def test_an_encoder_alone_returns_its_states(params):
  alone = models.encoder_decoder(dataclasses.replace(CONFIG, decoder_layers=0))
  assert alone.task == 'features' and not {'decoder', 'head'} & set(alone.shapes())
  states = alone.apply(params, TOKENS, MASK)
  assert states.shape == (2, 9, 8)
  short = alone.apply(params, TOKENS[1:, 2:7])
  np.testing.assert_allclose(states[1, 2:7], short[0], atol=2e-4)


@pytest.mark.slow
def test_cutting_and_recomputing_change_neither_values_nor_gradients(params):
  def gradient(model):
    def total(params):
      return jnp.sum(model.features(params, TOKENS, MASK, targets=TARGETS)[..., 0] ** 3)

    return jax.jit(jax.value_and_grad(total))

  value, want = gradient(MODEL)(params)
  cut = {**params, 'decoder': models.cut(params['decoder'], 1)}
  again = models.encoder_decoder(dataclasses.replace(CONFIG, remat='full'))
  other, got = gradient(again)(cut)
  np.testing.assert_allclose(other, value, rtol=1e-4)
  want = {**want, 'decoder': models.cut(want['decoder'], 1)}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, want)
  # All but the head of the model serves the features.
  assert all(np.abs(x).max() > 0 for k, x in tree.named_weights(got) if k != 'head/dense')


def test_every_leaf_has_one_name_an_axis_and_every_layer_matrix_an_adapter(params):
  adapted = adapt.lora(jax.random.key(0), params, 2)
  for tree_ in (params, adapted):
    axes = MODEL.axes(tree_)
    jax.tree.map(lambda leaf, names: None if leaf.ndim == len(names) else 1 / 0, tree_, axes)
  lora = {path for path, leaf in tree.named_weights(adapted) if isinstance(leaf, adapt.LoRA)}
  assert lora == {
    path for path, leaf in tree.named_weights(params) if tree.is_stacked(path) and leaf.ndim == 3
  }
  np.testing.assert_allclose(
    APPLY(adapted, TOKENS, targets=TARGETS), APPLY(params, TOKENS, targets=TARGETS), atol=1e-5
  )


@pytest.mark.slow
def test_lanes_are_models_of_their_own(params):
  two = jax.tree.map(lambda x: np.stack([x, 0.9 * x]), params)
  got = jax.vmap(lambda p: MODEL.apply(p, TOKENS, targets=TARGETS))(two)
  want = APPLY(jax.tree.map(lambda x: x[1], two), TOKENS, targets=TARGETS)
  np.testing.assert_allclose(got[1], want, rtol=1e-3, atol=1e-3)


def test_dropout_needs_a_key_and_a_rate(params):
  model = models.encoder_decoder(dataclasses.replace(CONFIG, dropout=0.5))
  apply = jax.jit(model.apply)
  quiet = APPLY(params, TOKENS, targets=TARGETS)
  np.testing.assert_allclose(apply(params, TOKENS, targets=TARGETS), quiet, atol=1e-5)
  one, same, two = (
    apply(params, TOKENS, targets=TARGETS, key=jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert min(np.abs(one - two).max(), np.abs(one - quiet).max()) > 0.1


def test_bfloat16_parameters_give_bfloat16_logits(params):
  low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  assert jax.eval_shape(MODEL.apply, low, TOKENS, MASK, targets=TARGETS).dtype == jnp.bfloat16


def test_an_answer_is_the_most_probable_token_after_each_other():
  rng = np.random.default_rng(4)  # of which the answers differ from row to row and token to token
  own = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), MODEL.shapes())
  got = np.asarray(models.answer(MODEL, own, TOKENS, MASK, max_tokens=6, eos=20))
  assert len(set(got[0])) > 4 and not np.array_equal(got[0], got[1])
  read = models.shift_right(CONFIG, jnp.asarray(got))
  want = np.argmax(APPLY(own, TOKENS, MASK, targets=read), axis=-1)
  np.testing.assert_array_equal(got, want)  # each follows from those before it
  ended = np.asarray(models.answer(MODEL, own, TOKENS, MASK, max_tokens=6, eos=int(got[0, 2])))
  np.testing.assert_array_equal(ended[0], [*got[0, :3], *[got[0, 2]] * 3])
  np.testing.assert_array_equal(ended[1], got[1])


def test_what_it_lacks_is_refused(params):
  alone = models.encoder_decoder(dataclasses.replace(CONFIG, decoder_layers=0))
  with pytest.raises(InputError, match='has no decoder that answers'):
    models.answer(alone, params, TOKENS)
  with pytest.raises(InputError, match='max_tokens is 0'):
    models.answer(MODEL, params, TOKENS, max_tokens=0)
  with pytest.raises(InputError, match='nothing to read: give `targets`'):
    MODEL.apply(params, TOKENS)
  with pytest.raises(InputError, match='t5 has no classifier'):
    models.classifier(jax.random.key(0), MODEL, params, 2)
