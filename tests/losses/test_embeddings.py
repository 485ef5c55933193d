"""Objectives on embeddings beside float64, and what of a batch must not change them."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune import losses, models
from jaxtune.losses import embedding
from jaxtune.typing import InputError
from scripts import golden_embeddings

B, T, D = 4, 6, 8
RNG = np.random.default_rng(0)
PARAMS = {'table': RNG.normal(size=(20, D)).astype(np.float32)}


def features(params, tokens, mask=None, key=None):
  """Of each token what it is, and a little of the first: a model that compiles at once."""
  del mask, key
  states = jnp.asarray(params['table'])[tokens]
  return states + 0.3 * states[:, :1]


MODEL = types.SimpleNamespace(features=features)
X, Y, Z = (RNG.normal(size=(B, D)) for _ in range(3))
LABELS = np.array([0.1, 0.9, 0.9, -0.3])


def part():
  tokens = RNG.integers(0, 20, (B, T)).astype(np.int32)
  return {'tokens': tokens, 'mask': np.arange(T)[None] < RNG.integers(1, T + 1, (B, 1))}


BATCH = {
  'anchor': part(),
  'positive': part(),
  'negative': part(),
  'label': LABELS.astype(np.float32),
  'weight': np.array([1, 0.5, 1, 0], np.float32),
}
GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'embeddings.npz')
NAMES = ('info_nce', 'triplet', 'cosine_similarity', 'cosent')
names = pytest.mark.parametrize('name', NAMES)


@functools.cache
def built(name, **options):
  """(gradient, loss) of a batch, compiled."""
  objective = losses.OBJECTIVES[name](MODEL, **options)

  def total(params, batch):
    loss = objective(params, batch, None)
    return loss.total, loss

  return jax.jit(jax.grad(total, has_aux=True))


def run(name, batch, **options):
  return built(name, **options)(PARAMS, batch)


def close(got, want, atol=3e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax_nats(scores):
  """Of the diagonal."""
  return np.log(np.exp(scores).sum(1)) - np.diagonal(scores)


@pytest.mark.parametrize('name', golden_embeddings.CASES)
def test_losses_and_gradients_are_those_of_sentence_transformers(name):
  """On given embeddings: the model looks each text up, and has no other text like it."""
  objective, options, parts = golden_embeddings.CASES[name]
  rows = golden_embeddings.ROWS
  tables = {'table': np.concatenate([GOLDEN[part] for part in parts])}
  lookup = types.SimpleNamespace(features=lambda p, tokens, mask, key=None: p['table'][tokens])
  ids = np.arange(len(parts) * rows, dtype=np.int32).reshape(len(parts), rows, 1)
  batch = {part: {'tokens': x} for part, x in zip(parts, ids, strict=True)}
  made = losses.OBJECTIVES[objective](lookup, **options)

  def mean(tables):
    loss = made(tables, {**batch, 'label': GOLDEN['label']}, None)
    return loss.total / loss.weight

  value, gradient = jax.jit(jax.value_and_grad(mean))(tables)
  np.testing.assert_allclose(value, GOLDEN[f'{name}/loss'], rtol=1e-5)
  want = np.concatenate([GOLDEN[f'{name}/{part}'] for part in parts])
  np.testing.assert_allclose(gradient['table'], want, rtol=1e-5, atol=1e-5)


def test_info_nce_is_the_oracle():
  scores = X @ np.concatenate([Y, Z]).T / 0.7
  got = losses.info_nce_loss(X, np.concatenate([Y, Z]), 0.7)
  np.testing.assert_allclose(got, softmax_nats(scores), rtol=1e-5)
  both = losses.info_nce_loss(X, np.concatenate([Y, Z]), 0.7, symmetric=True)
  want = (softmax_nats(scores) + softmax_nats(scores[:, :B].T)) / 2
  np.testing.assert_allclose(both, want, rtol=1e-5)


def test_an_excluded_candidate_is_as_good_as_absent():
  excluded = np.zeros((B, 2 * B), bool)
  excluded[:, B:] = True
  got = losses.info_nce_loss(X, np.concatenate([Y, Z]), 0.7, excluded)
  np.testing.assert_allclose(got, losses.info_nce_loss(X, Y, 0.7), rtol=1e-6)


def test_triplet_is_the_oracle():
  euclidean = np.linalg.norm(X - Y, axis=1) - np.linalg.norm(X - Z, axis=1)
  cosine = np.sum(unit(X) * (unit(Z) - unit(Y)), axis=1)
  for distance, difference in (('euclidean', euclidean), ('cosine', cosine)):
    got = losses.triplet_loss(X, Y, Z, distance, 0.4)
    np.testing.assert_allclose(got, np.maximum(0, difference + 0.4), rtol=1e-5, atol=1e-6)


def test_one_text_as_its_own_positive_has_a_gradient():
  for distance in ('cosine', 'euclidean'):
    loss = jax.jit(lambda x, d=distance: losses.triplet_loss(x, X, Z, d, 9.0).sum())
    got = jax.grad(loss)(jnp.array(X))
    assert np.all(np.isfinite(got)) and np.any(got != 0)


def test_cosent_is_the_oracle():
  s = RNG.normal(size=B)
  terms = [np.exp((s[j] - s[i]) / 0.5) for i in range(B) for j in range(B) if LABELS[i] > LABELS[j]]
  assert len(terms) == 5  # of six pairs one has equal labels
  got = losses.cosent_loss(s, LABELS, 0.5)
  np.testing.assert_allclose(got, np.log1p(np.sum(terms)), rtol=1e-5)


@functools.partial(jax.jit, static_argnames='normalize')
def embed(tokens, mask, normalize=True):
  return models.embed(MODEL, PARAMS, tokens, mask, 'mean', normalize)


def embeddings(batch=BATCH, normalize=True):
  return {
    name: np.float64(embed(batch[name]['tokens'], batch[name]['mask'], normalize))
    for name in embedding.PARTS
    if name in batch
  }


def test_one_forward_embeds_every_part():
  short = {**BATCH, 'anchor': {name: x[:, :4] for name, x in BATCH['anchor'].items()}}
  got = losses.embed_parts(MODEL, PARAMS, short, normalize=False)
  close(got, embeddings(short, normalize=False))


def test_padding_changes_nothing_in_a_real_encoder():
  config = models.EncoderConfig(vocabulary=20, width=D, hidden=8, layers=1, heads=2, positions=8)
  model = models.encoder(config)
  params = jax.tree.map(lambda x: RNG.normal(0, 0.7, x.shape).astype(np.float32), model.shapes())
  found = jax.jit(lambda batch: losses.embed_parts(model, params, batch))(BATCH)
  for name, x in found.items():
    tokens = np.where(BATCH[name]['mask'], BATCH[name]['tokens'], 7)
    close(jax.jit(models.embed, static_argnums=0)(model, params, tokens, BATCH[name]['mask']), x)


def test_objectives_are_formulas_on_the_models_embeddings():
  x, y, z = embeddings().values()
  w = BATCH['weight']
  candidates = np.concatenate([y, z])[[0, 1, 2, 4, 5, 6]]  # the last row only fills the batch
  scores = x[:3] @ candidates.T / 0.05
  cosines = np.sum(x * y, axis=1)
  wanted = {
    'info_nce': (w[:3] @ softmax_nats(scores), w[:3] @ (scores.argmax(1) == np.arange(3))),
    'triplet': (
      w @ np.maximum(0, np.sum(x * (z - y), axis=1) + 0.2),
      w @ (np.sum(x * (y - z), axis=1) > 0),
    ),
    'cosine_similarity': (w @ (cosines - LABELS) ** 2, w @ np.abs(cosines - LABELS)),
    'cosent': (w.sum() * losses.cosent_loss(cosines[:3], LABELS[:3], 0.05),),
  }
  for name, (total, *metric) in wanted.items():
    loss = run(name, BATCH)[1]
    np.testing.assert_allclose(loss.total, total, rtol=1e-4, err_msg=name)
    assert loss.weight == w.sum()
    np.testing.assert_allclose(list(loss.metrics.values()), metric, rtol=1e-4, err_msg=name)


@names
def test_rows_without_weight_contribute_nothing(name):
  other = jax.tree.map(np.copy, BATCH)
  for part in embedding.PARTS:
    other[part]['tokens'][3] = (other[part]['tokens'][3] + 1) % 20
  other['label'][3] = 5
  close(run(name, other), run(name, BATCH))
  if name == 'info_nce':  # whose rows are candidates of the others, and then on both sides
    close(run(name, other, symmetric=True), run(name, BATCH, symmetric=True))


@names
def test_a_batch_spread_over_devices_is_one_batch(name):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  placed = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec('data')))
  close(run(name, placed), run(name, BATCH))


@pytest.mark.parametrize('symmetric', [False, True])
def test_copies_of_a_text_are_no_negatives(symmetric):
  """A second row with the same positive, or the same anchor, changes no other row's loss."""
  copied = jax.tree.map(np.copy, {name: BATCH[name] for name in ('anchor', 'positive')})
  for name in ('tokens', 'mask'):
    copied['positive'][name][1] = copied['positive'][name][0]
    copied['anchor'][name][3] = copied['anchor'][name][2]
  x, y = embeddings(copied).values()
  alike = np.zeros((B, B), bool)
  alike[0, 1] = alike[1, 0] = alike[2, 3] = alike[3, 2] = True
  want = losses.info_nce_loss(x, y, 0.05, alike, symmetric)
  got = run('info_nce', copied, symmetric=symmetric)[1]
  np.testing.assert_allclose(got.total, want.sum(), rtol=1e-5)


def test_matryoshka_is_the_sum_over_prefixes():
  x, y = (embeddings()[name] for name in ('anchor', 'positive'))
  pairs = {name: BATCH[name] for name in ('anchor', 'positive')}
  want = sum(
    factor * np.sum(losses.info_nce_loss(unit(x[:, :d]), unit(y[:, :d]), 0.05))
    for d, factor in ((8, 1.0), (4, 0.5))
  )
  got = run('info_nce', pairs, dimensions=(8, 4), dimension_weights=(1.0, 0.5))[1]
  np.testing.assert_allclose(got.total, want, rtol=1e-4)
  whole = run('info_nce', pairs)[1]
  assert got.metrics['accuracy'] == whole.metrics['accuracy']


def test_retrieval_is_over_all_rows_and_counts_a_text_once():
  anchors = np.eye(5)[[0, 1, 2, 3]]
  positives = np.eye(5)[[0, 0, 2, 4]]
  text = np.array([[7, 7], [7, 7], [8, -1], [9, 9]])
  got = embedding.retrieval({'anchor': anchors, 'positive': positives, 'text': text})
  # The second looks for the first's document among three, to all of which it is orthogonal, and so
  # does the last: of equal ones, the own comes last.
  assert got['recall_at_1'] == 0.5 and got['recall_at_5'] == 1
  np.testing.assert_allclose(got['mrr'], np.mean([1, 1 / 3, 1, 1 / 3]))


@names
def test_what_is_measured_comes_from_the_same_forward(name):
  objective = losses.OBJECTIVES[name](MODEL, dimensions=(8, 4))
  found = jax.jit(objective.outputs)(PARAMS, BATCH)
  assert all(len(x) == B for x in found.values())
  got = objective.measure(jax.tree.map(lambda x: np.asarray(x)[:3], found))
  plain = {'spearman', 'pearson'} if name in NAMES[2:] else {'mrr', *_recalls()}
  assert set(got) == plain | {f'{metric}_4' for metric in plain}


def _recalls():
  return [f'recall_at_{k}' for k in (1, 5, 10)]


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('info_nce', {'temperature': 0.0}, 'temperature is 0.0; it must be a positive number'),
    ('cosent', {'temperature': -1.0}, 'temperature is -1.0; it must be a positive number'),
    ('info_nce', {'pooling': 'max'}, "pooling is 'max'; known: mean, first, last"),
    ('triplet', {'distance': 'manhattan'}, "distance is 'manhattan'; known: cosine, euclidean"),
    ('info_nce', {'dimensions': (0,)}, 'each must be at least 1'),
    ('info_nce', {'dimensions': (4,), 'dimension_weights': (1, 2)}, '2 dimension_weights for 1'),
    ('info_nce', {'dimension_weights': (1,)}, 'dimension_weights without dimensions'),
  ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
  with pytest.raises(InputError, match=message):
    losses.OBJECTIVES[name](MODEL, **options)


def test_batches_that_cannot_be_are_refused():
  with pytest.raises(InputError, match="no 'negative'; this objective needs anchor, positive, neg"):
    losses.triplet(MODEL)(PARAMS, {name: BATCH[name] for name in ('anchor', 'positive')}, None)
  with pytest.raises(InputError, match='dimensions are .16., but embeddings have 8'):
    losses.info_nce(MODEL, dimensions=(16,))(PARAMS, BATCH, None)
