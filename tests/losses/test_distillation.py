"""Distillation beside float64, torch and TRL, whatever the task, and however a batch is cut."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import losses
from jaxtune.losses.divergence import largest_and_rest
from jaxtune.typing import InputError
from scripts import golden_distillation

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'distillation.npz')
B, T, D, V = 3, 6, 4, 7
RNG = np.random.default_rng(0)


def normal(*shape):
  return np.float32(RNG.normal(size=shape))


PARAMS = {
  **{'table': normal(V, D), 'out': normal(D, V)},
  'teacher': {'table': normal(V, D), 'out': normal(D, V)},
}
BATCH = {
  'tokens': RNG.integers(0, V, (B, T)).astype(np.int32),
  'mask': np.arange(T)[None] < np.array([[6], [4], [5]]),
  'supervised': np.arange(T)[None] >= np.array([[2], [1], [3]]),
  'tags': np.where(RNG.random((B, T)) < 0.4, -100, RNG.integers(0, V, (B, T))).astype(np.int32),
  'label': RNG.integers(0, V, B).astype(np.int32),
  'weight': np.array([1, 0.5, 0], np.float32),
}


def model_of(task, noisy=False):
  """What a token is, and a little of those before: a model that compiles at once."""

  def features(params, tokens, mask=None, *, key=None, positions=None, segments=None):
    assert noisy or key is None
    x = jnp.asarray(params['table'])[tokens]
    return x + 0.2 * jnp.cumsum(x, axis=1)

  def head(params, features, mask=None):
    x = jnp.sum(features * mask[:, :, None], axis=1) if task == 'classification' else features
    return x @ params['out']

  config = types.SimpleNamespace(vocabulary=V)
  return types.SimpleNamespace(task=task, features=features, head=head, config=config)


def both(params):
  return {k: x for k, x in params.items() if k != 'teacher'}, params['teacher']


@functools.cache
def built(task, **options):
  """(gradient, loss) of a batch, compiled."""
  if task == 'masked_lm':
    options = {'mask_token': 3, 'probability': 0.5, **options}
  objective = losses.distillation(model_of(task), **{'teacher': both, **options})

  def total(params, batch):
    loss = objective(params, batch, None)
    return loss.total, loss

  return jax.jit(jax.grad(total, has_aux=True))


def run(task, batch=BATCH, **options):
  return built(task, **options)(PARAMS, batch)


def close(got, want, atol=2e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


def log_softmax(x):
  x = np.float64(x)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def predictions(task):
  """Student's and teacher's logits, labels and weights of what is predicted, in float64."""
  model, weight, tokens = model_of(task), BATCH['weight'], BATCH['tokens']
  both_said = [
    np.float64(model.head(p, model.features(p, tokens), BATCH['mask']))
    for p in (PARAMS, PARAMS['teacher'])
  ]
  if task == 'classification':
    return *both_said, BATCH['label'], weight
  if task == 'token_classification':
    learned = BATCH['mask'] & (BATCH['tags'] >= 0)
    return *both_said, np.maximum(BATCH['tags'], 0), learned * weight[:, None]
  learned = (BATCH['mask'] & BATCH['supervised'])[:, 1:]
  return *(x[:, :-1] for x in both_said), tokens[:, 1:], learned * weight[:, None]


@pytest.mark.parametrize('name', golden_distillation.CASES)
def test_divergences_are_those_of_torch_and_trl(name):
  kind, beta, temperature = golden_distillation.CASES[name]

  @jax.jit
  def total(student):
    q, p = (jax.nn.log_softmax(x / temperature) for x in (student, GOLDEN['teacher']))
    return jnp.sum(losses.divergence(q, p, kind, beta) * GOLDEN['learned'])

  np.testing.assert_allclose(total(GOLDEN['student']), GOLDEN[f'{name}/trl'], rtol=1e-5)
  gradient = jax.grad(total)(GOLDEN['student'])
  np.testing.assert_allclose(gradient, GOLDEN[f'{name}/trl_gradient'], rtol=1e-5, atol=1e-6)
  if f'{name}/torch' in GOLDEN:
    np.testing.assert_allclose(total(GOLDEN['student']), GOLDEN[f'{name}/torch'], rtol=1e-5)


@pytest.mark.parametrize('kind', ['forward', 'reverse', 'js'])
def test_a_divergence_is_zero_of_the_same_and_finite_of_the_impossible(kind):
  p = log_softmax(normal(3, V))
  np.testing.assert_allclose(losses.divergence(p, p, kind), 0, atol=1e-6)
  possible = np.array([[0.3, 0.7, 0.0]])
  with np.errstate(divide='ignore'):
    q = np.log(possible)
  logits = jnp.array([[0.5, 0.2, -jnp.inf]])
  slope = jax.grad(lambda x: losses.divergence(jax.nn.log_softmax(x), q, kind).sum())(logits)
  assert np.all(np.isfinite(slope))


def test_what_is_left_of_the_most_probable_is_one_class():
  p = log_softmax(normal(4, V))
  indices = np.argsort(-p, axis=1)[:, :3]
  got = np.float64(largest_and_rest(p, indices))
  np.testing.assert_allclose(np.exp(got).sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(got[:, :3], np.take_along_axis(p, indices, 1), rtol=1e-6)
  q = log_softmax(normal(4, V))
  for kind in ('forward', 'reverse', 'js'):
    few = losses.divergence(largest_and_rest(q, indices), got, kind)
    assert np.all(few <= losses.divergence(q, p, kind) + 1e-6)


@pytest.mark.parametrize('task', ['classification', 'token_classification', 'causal_lm'])
def test_the_loss_is_the_oracle(task):
  student, teacher, labels, weights = predictions(task)
  q, p, hard = log_softmax(student / 2), log_softmax(teacher / 2), log_softmax(student)
  apart = np.sum(np.exp(p) * (p - q), -1)
  nats = -np.take_along_axis(hard, labels[..., None], -1)[..., 0]
  loss = run(task, alpha=0.3)[1]
  np.testing.assert_allclose(loss.weight, weights.sum())
  np.testing.assert_allclose(
    loss.total, np.sum(weights * (0.3 * 4 * apart + 0.7 * nats)), rtol=1e-4
  )
  want = {
    'divergence': apart,
    'agreement': student.argmax(-1) == teacher.argmax(-1),
    'accuracy': student.argmax(-1) == labels,
    'nats': nats,
  }
  assert set(loss.metrics) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(loss.metrics[name], np.sum(weights * value), rtol=1e-4)


def test_a_masked_model_and_its_teacher_have_the_same_tokens_hidden():
  kept = {name: BATCH[name] for name in ('tokens', 'mask', 'weight')}
  hidden = losses.mask_tokens(jax.random.key(0), kept, 3, V, 0.5)
  model = model_of('masked_lm')
  q, p = (log_softmax(model.head(x, model.features(x, hidden.tokens))) for x in both(PARAMS))
  weights = hidden.hidden * BATCH['weight'][:, None]
  got = run('masked_lm', kept, alpha=1.0, temperature=1.0, chunk=4)[1]
  assert got.weight == weights.sum() > 2
  np.testing.assert_allclose(
    got.total, np.sum(weights * np.sum(np.exp(p) * (p - q), -1)), rtol=1e-4
  )


def test_chunks_change_neither_loss_nor_gradient():
  close(run('causal_lm', hidden=0.7, chunk=4), run('causal_lm', hidden=0.7))


def test_the_parts_of_a_batch_add_up():
  first = np.arange(B) < 1
  parts = [run('causal_lm', {**BATCH, 'weight': BATCH['weight'] * m}) for m in (first, ~first)]
  close(jax.tree.map(lambda a, b: a + b, *parts), run('causal_lm'))


def test_hidden_states_are_compared_where_something_is_predicted():
  model = model_of('causal_lm')
  own, wanted = (np.float64(model.features(p, BATCH['tokens'])) for p in both(PARAMS))
  errors = np.mean((own - wanted) ** 2, axis=-1)
  weights = predictions('causal_lm')[3]
  got = run('causal_lm', hidden=0.7)[1]
  np.testing.assert_allclose(got.metrics['hidden_error'], np.sum(weights * errors[:, :-1]), 1e-4)
  np.testing.assert_allclose(
    got.total - run('causal_lm')[1].total, 0.7 * got.metrics['hidden_error'], rtol=1e-3
  )
  rows = np.sum(errors * BATCH['mask'], axis=1) / BATCH['mask'].sum(1)
  got = run('classification', hidden=0.7)[1].metrics['hidden_error']
  np.testing.assert_allclose(got, BATCH['weight'] @ rows, rtol=1e-4)


def test_the_teacher_is_not_taught():
  for task in ('classification', 'causal_lm'):
    gradient = run(task, hidden=0.7)[0]
    assert not any(np.any(x) for x in jax.tree.leaves(gradient['teacher']))
    assert np.any(gradient['table']) and np.any(gradient['out'])


def test_dropout_is_the_students_alone():
  teacher = model_of('classification')  # refuses a key
  objective = losses.distillation(model_of('classification', noisy=True), both, teacher)
  assert objective(PARAMS, BATCH, jax.random.key(0)).total > 0


def test_a_cache_of_all_tokens_is_the_teacher():
  """One class is left over, so nothing is cut."""
  model, own = model_of('causal_lm'), PARAMS['teacher']
  said = log_softmax(np.float64(model.head(own, model.features(own, BATCH['tokens']))) / 2)
  order = np.argsort(-said, axis=-1)
  values = np.take_along_axis(said, order, -1)
  cached = {
    'teacher_indices': order[..., :-1].astype(np.int32),
    'teacher_values': np.float32(values),
    'teacher_temperature': np.full(B, 2.0, np.float32),
  }
  ones = np.ones((B, T), bool)
  whole = {**BATCH, 'mask': ones, 'supervised': ones, 'weight': np.ones(B, np.float32)}
  # In the second case the last chunk is filled up, and has something to learn.
  for batch, chunk in ((BATCH, 4), (whole, 7)):
    got = run('causal_lm', {**batch, **cached}, teacher=None, temperature=9.0, chunk=chunk)
    want = run('causal_lm', batch)
    close({**got[0], 'teacher': 0}, {**want[0], 'teacher': 0})
    close(got[1], want[1])


def test_a_cache_of_a_classifier_is_the_teacher():
  model, own = model_of('classification'), PARAMS['teacher']
  logits = model.head(own, model.features(own, BATCH['tokens']), BATCH['mask'])
  unlabelled = {k: x for k, x in BATCH.items() if k != 'label'} | {'teacher_logits': logits}
  got = run('classification', unlabelled, teacher=None, alpha=1.0)[1]
  want = run('classification', alpha=1.0)[1]
  np.testing.assert_allclose(got.total, want.total, rtol=1e-5)
  assert set(got.metrics) == {'divergence', 'agreement'}


@pytest.mark.parametrize(
  'options, message',
  [
    ({'kind': 'backward'}, "kind is 'backward'; known: forward, reverse, js"),
    ({'temperature': 0}, 'temperature is 0; it must be a positive number'),
    ({'alpha': 1.5}, 'alpha is 1.5; it must be from 0 to 1'),
    ({'beta': 0.0}, "beta is 0.0; .* the kinds are 'forward' and 'reverse'"),
    ({'hidden': -1.0}, 'hidden is -1.0; it must be a number of at least 0'),
    ({'hidden': 1.0, 'teacher': None}, 'hidden states are not cached'),
  ],
)
def test_options_that_cannot_be_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    losses.distillation(model_of('causal_lm'), **{'teacher': both, **options})


def test_models_and_batches_that_do_not_fit_are_refused():
  with pytest.raises(InputError, match='this model for features'):
    losses.distillation(model_of('features'), both)
  with pytest.raises(InputError, match='needs mask_token'):
    losses.distillation(model_of('masked_lm'), both)
  with pytest.raises(InputError, match='neither the parameters nor the batch hold a teacher'):
    losses.distillation(model_of('causal_lm'))(PARAMS, BATCH, None)
  unlabelled = {k: x for k, x in BATCH.items() if k != 'label'}
  with pytest.raises(InputError, match="no 'label', which an alpha below 1 needs"):
    losses.distillation(model_of('classification'), both)(PARAMS, unlabelled, None)
  other = {**PARAMS, 'teacher': {'table': normal(V, D + 1), 'out': normal(D + 1, V + 1)}}
  with pytest.raises(InputError, match='the student has 7 outputs and the teacher 8'):
    losses.distillation(model_of('causal_lm'), both)(other, BATCH, None)
  with pytest.raises(InputError, match="the student are 4 wide and the teacher's 5"):
    losses.distillation(model_of('causal_lm'), both, hidden=1.0)(other, BATCH, None)
