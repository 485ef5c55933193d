"""The divergence from the reference, as a penalty and as a measure."""

import jax
import numpy as np
import pytest

from jaxtune import losses
from jaxtune.typing import InputError
from tests.losses.bigram import bigram

RNG = np.random.default_rng(0)
MODEL = bigram()
PARAMS = {
  'table': np.float32(RNG.normal(size=(5, 5))),
  'start': np.float32(RNG.normal(size=(5, 5))),
}
BATCH = {
  'tokens': RNG.integers(0, 5, (4, 8)).astype(np.int32),
  'supervised': RNG.random((4, 8)) < 0.7,
  'segments': np.sort(RNG.integers(1, 3, (4, 8)), axis=1).astype(np.int32),
  'weight': np.array([1, 0.5, 0, 1], np.float32),
}


def reference(params):
  return {'table': params['table']}, {'table': params['start']}


def expected(weight):
  p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in map(np.float64, PARAMS.values()))
  tokens, segments = BATCH['tokens'], BATCH['segments']
  learned = BATCH['supervised'][:, 1:] & (segments[:, 1:] == segments[:, :-1])
  weights = learned * BATCH['weight'][:, None]
  kl = (weights * (np.exp(p) * (p - q)).sum(-1)[tokens[:, :-1]]).sum()
  nll = -(weights * p[tokens[:, :-1], tokens[:, 1:]]).sum()
  return nll + weight * kl, kl, weights.sum()


@pytest.mark.parametrize('chunk', [None, 5])
def test_it_is_exact_over_the_vocabulary_and_by_token(chunk):
  objective = losses.kl_to_reference(losses.causal_lm(MODEL), MODEL, reference, 0.3, chunk)
  loss = jax.jit(objective)(PARAMS, BATCH, None)
  total, kl, weight = expected(0.3)
  np.testing.assert_allclose(loss.total, total, rtol=1e-5)
  np.testing.assert_allclose(loss.metrics['kl'], kl, rtol=1e-5)
  np.testing.assert_allclose(loss.weight, weight)
  assert 'accuracy' in loss.metrics


def test_the_policy_moves_and_the_reference_does_not():
  objective = losses.kl_to_reference(losses.causal_lm(MODEL), MODEL, reference, 1e4, 5)

  @jax.jit
  def compute(params):
    def loss(params):
      found = objective(params, BATCH, None)
      return found.total, found.metrics['kl']

    return jax.value_and_grad(loss, has_aux=True)(params)

  (_, before), gradient = compute(PARAMS)
  assert not gradient['start'].any()
  (_, after), _ = compute({**PARAMS, 'table': PARAMS['table'] - 1e-7 * gradient['table']})
  assert after < before


def test_without_weight_it_measures():
  inner = losses.causal_lm(MODEL)
  plain = jax.jit(inner)({'table': PARAMS['table']}, BATCH)
  loss = jax.jit(losses.kl_to_reference(inner, MODEL, reference, 0.0))(PARAMS, BATCH)
  np.testing.assert_allclose(loss.total, plain.total, rtol=1e-6)
  assert loss.metrics['kl'] > 0


def test_what_is_measured_on_a_split_stays():
  def outputs(params, batch):
    assert set(params) == {'table'}
    return {'weight': batch['weight']}

  inner = losses.measured(losses.causal_lm(MODEL), outputs, lambda rows: {'rows': len(rows)})
  objective = losses.kl_to_reference(inner, MODEL, reference)
  assert isinstance(objective, losses.Measured)
  assert objective.outputs(PARAMS, BATCH)['weight'] is BATCH['weight']
  assert objective.measure is inner.measure


def test_bad_input():
  with pytest.raises(InputError, match='weight is -1'):
    losses.kl_to_reference(losses.causal_lm(MODEL), MODEL, reference, -1)
  objective = losses.kl_to_reference(losses.simpo(MODEL), MODEL, reference)
  with pytest.raises(InputError, match='the batch has chosen, rejected and no tokens of its own'):
    objective(PARAMS, {'chosen': BATCH, 'rejected': BATCH}, None)
