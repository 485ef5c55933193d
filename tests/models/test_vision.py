"""The image model beside float64 NumPy, its heads, and images in a loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from jaxtune import adapt, losses, models, optim, tree
from jaxtune.typing import InputError

CONFIG = models.VisionConfig(
  width=8,
  hidden=12,
  layers=2,
  heads=2,
  epsilon=1e-3,
  image=(10, 8),  # the last two rows of pixels are not seen
  patch=(4, 2),
  channels=3,
)
CLIP = dataclasses.replace(
  CONFIG, patch_bias=False, embed_norm=True, late_norm=True, pooler='', projection=5
)
MODELS = {'vit': models.vision(CONFIG), 'clip': models.vision(CLIP)}
IMAGES = np.random.default_rng(0).normal(size=(2, 10, 8, 3)).astype(np.float32)
KEY = jax.random.key(0)


def random(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.2, 0.4, leaf.shape).astype(np.float32), model.shapes()
  )


@pytest.fixture(scope='module')
def params():
  return {name: random(model) for name, model in MODELS.items()}


def oracle(config, params, image):
  """Dosovitskiy et al. 2020, eq. 1 to 4, for one image: states before and after the final norm."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.epsilon) * p['scale'] + p['bias']

  embed = params['embed']
  # The kernel of a convolution, [channels, height, width, D].
  kernel = embed['patches'].reshape(3, 4, 2, config.width)
  rows = [embed['class']]
  for top in (0, 4):
    for left in (0, 2, 4, 6):
      patch = image[top : top + 4, left : left + 2]
      rows.append(np.einsum('hwc,chwd->d', patch, kernel) + embed.get('patches_bias', 0.0))
  x = np.stack(rows) + embed['positions']
  x = norm(x, embed['norm']) if config.embed_norm else x
  width = config.width // config.heads
  for number in range(config.layers):
    layer = jax.tree.map(lambda x, n=number: x[n], params['encoder']['0-1'])
    attn, mlp = layer['attn'], layer['mlp']
    y = norm(x, layer['attn_norm'])
    q, k, v = (y @ attn[n] + attn[f'{n}_bias'] for n in 'qkv')
    heads = []
    for h in range(config.heads):
      part = slice(h * width, (h + 1) * width)
      scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
      heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
    x = x + np.concatenate(heads, -1) @ attn['o'] + attn['o_bias']
    up = norm(x, layer['mlp_norm']) @ mlp['up'] + mlp['up_bias']
    x = x + (up / 2 * (1 + erf(up / np.sqrt(2)))) @ mlp['down'] + mlp['down_bias']
  return x, norm(x, params['norm'])


def test_vit_is_the_oracle(params):
  model, own = MODELS['vit'], params['vit']
  got = jax.jit(model.apply)(own, IMAGES)
  assert got.shape == (2, 9, 8)
  pooled = models.pool_image(CONFIG, own, got)
  for row, vector, image in zip(got, pooled, IMAGES, strict=True):
    want = oracle(CONFIG, own, image)[1]
    np.testing.assert_allclose(row, want, atol=5e-5)
    want = np.tanh(want[0] @ own['pooler']['dense'] + own['pooler']['dense_bias'])
    np.testing.assert_allclose(vector, want, atol=5e-5)


def test_the_tower_of_clip_is_the_oracle(params):
  model, own = MODELS['clip'], params['clip']
  features = model.features(own, IMAGES)
  got = model.head(own, features)
  assert got.shape == (2, 5)
  for row, vector, image in zip(features, got, IMAGES, strict=True):
    states, normed = oracle(CLIP, own, image)
    np.testing.assert_allclose(row, states, atol=5e-5)
    np.testing.assert_allclose(vector, normed[0] @ own['projection']['dense'], atol=1e-4)


def test_hidden_patches_are_not_seen(params):
  model, own = MODELS['vit'], params['vit']
  mask = np.arange(9)[None] < 5
  other = IMAGES.copy()
  other[:, 4:] = 3.0
  seen = model.apply(own, IMAGES, mask)[:, :5]
  np.testing.assert_array_equal(seen, model.apply(own, other, mask)[:, :5])
  assert np.abs(seen - model.apply(own, IMAGES)[:, :5]).max() > 1e-3


@pytest.mark.parametrize('name', MODELS)
def test_a_fresh_head_on_a_pretrained_body(params, name):
  model, tuned = models.classifier(KEY, MODELS[name], params[name], 3)
  assert model.task == 'classification'
  assert jax.tree.structure(tuned) == jax.tree.structure(model.shapes())
  assert not {'pooler', 'projection'} & set(tuned)
  np.testing.assert_array_equal(tuned['embed']['patches'], params[name]['embed']['patches'])
  for row, image in zip(model.apply(tuned, IMAGES), IMAGES, strict=True):
    want = oracle(model.config, tuned, image)[1][0] @ np.asarray(tuned['head']['dense'])
    np.testing.assert_allclose(row, want, atol=5e-5)
  with pytest.raises(InputError, match='labels images, not patches'):
    models.classifier(KEY, model, tuned, 3, each_token=True)


def test_images_are_classified_by_the_loss_for_texts(params):
  """Adapters on every matrix of the layers learn four images by heart."""
  model, tuned = models.classifier(KEY, MODELS['vit'], params['vit'], 2)
  tuned = adapt.lora(KEY, tuned, 2)
  lora = {k for k, leaf in tree.named_weights(tuned) if isinstance(leaf, adapt.LoRA)}
  assert lora == {
    *(f'encoder/0-1/attn/{n}' for n in 'qkvo'),
    *('encoder/0-1/mlp/up', 'encoder/0-1/mlp/down'),
  }
  objective = losses.classification(model)
  batch = {'tokens': np.concatenate([IMAGES, -IMAGES]), 'label': np.array([0, 1, 1, 0], np.int32)}
  trainable, frozen = adapt.trainable(tuned)
  rule = optim.create('adamw', 0.05)

  @jax.jit
  def step(trainable, state):
    def loss(trainable):
      return objective(tree.combine(trainable, frozen), batch, None).total

    value, gradient = jax.value_and_grad(loss)(trainable)
    updates, state = rule.update(gradient, state, trainable)
    return value, optax.apply_updates(trainable, updates), state

  state, values = rule.init(trainable), []
  for _ in range(60):
    value, trainable, state = step(trainable, state)
    values.append(float(value))
  assert values[0] > 2.0 and values[-1] < 0.2, values


@pytest.mark.parametrize('name', MODELS)
def test_every_leaf_has_one_name_an_axis_and_serves(params, name):
  model, own = MODELS[name], params[name]
  axes = model.axes(own)
  jax.tree.map(lambda leaf, names: None if leaf.ndim == len(names) else 1 / 0, own, axes)

  def total(own):
    features = model.features(own, IMAGES)
    return jnp.sum(model.head(own, features)) + jnp.sum(
      models.pool_image(model.config, own, features) ** 3
    )

  gradient = jax.jit(jax.grad(total))(own)
  for path, leaf in tree.named_weights(gradient):
    assert np.abs(leaf).max() > 0, path


def test_cutting_and_lanes_change_nothing(params):
  model, own = MODELS['clip'], params['clip']
  want = jax.jit(model.apply)(own, IMAGES)
  cut = {**own, 'encoder': models.cut(own['encoder'], 1)}
  remat = models.vision(dataclasses.replace(CLIP, remat='full'))
  np.testing.assert_allclose(remat.apply(cut, IMAGES), want, atol=2e-5)
  two = jax.tree.map(lambda x: np.stack([0.9 * x, x]), own)
  got = jax.vmap(model.apply, in_axes=(0, None))(two, IMAGES)
  np.testing.assert_allclose(got[1], want, atol=2e-5)


def test_dropout_needs_a_key_and_a_rate(params):
  model = models.vision(dataclasses.replace(CONFIG, dropout=0.5))
  quiet = MODELS['vit'].apply(params['vit'], IMAGES)
  np.testing.assert_allclose(model.apply(params['vit'], IMAGES), quiet, atol=1e-5)
  loud = model.apply(params['vit'], IMAGES, key=KEY)
  assert np.abs(loud - quiet).max() > 0.1


def test_bfloat16_parameters_give_bfloat16_states(params):
  low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params['vit'])
  assert jax.eval_shape(MODELS['vit'].apply, low, IMAGES).dtype == jnp.bfloat16


def test_images_that_do_not_fit_are_refused(params):
  model, own = MODELS['vit'], params['vit']
  with pytest.raises(InputError, match=r'shape \[8, 8, 3\], but the model takes \[10, 8, 3\]'):
    model.apply(own, IMAGES[:, :8])
  with pytest.raises(InputError, match=r'shape \[10, 8, 1\]'):
    model.apply(own, IMAGES[..., :1])
  with pytest.raises(InputError, match='of type uint8; scale and normalize them'):
    model.apply(own, np.zeros((1, 10, 8, 3), np.uint8))
