"""Losses on labels, and their gradients, beside golden values of TRL, transformers and torch."""

import pathlib

import jax
import numpy as np
import pytest

from jaxtune import losses
from jaxtune.models import ModelSpec
from scripts.golden_supervised import CASES

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / 'golden' / 'supervised.npz'))


def given(objective):
  """The model whose parameters are what its head says."""

  def features(params, tokens, mask=None, **_):
    return params['logits']

  def head(params, features, mask=None):
    if objective in ('causal_lm', 'masked_lm', 'token_classification'):
      return features
    outputs = features[:, 0]
    return outputs[:, :1] if objective in ('mean_squared_error', 'huber') else outputs

  return ModelSpec('given', None, objective, init=None, features=features, head=head)


def batch_of(objective, found):
  batch = {key: found[key] for key in ('tokens', 'mask')}
  own = {
    'causal_lm': {'supervised': found['supervised']},
    'classification': {'label': found['classes']},
    'multi_label': {'label': found['several']},
    'token_classification': {'tags': found['tags'].astype(np.int32)},
  }
  return batch | own.get(objective, {'label': found['numbers']})


def compare(name, found, loss, gradient):
  objective, options = CASES[name]
  function = getattr(losses, objective)(given(objective), **options)

  def mean(params):
    sums = function(params, batch_of(objective, found), None)
    return sums.total / sums.weight

  got, own = jax.jit(jax.value_and_grad(mean))({'logits': found['logits']})
  np.testing.assert_allclose(got, loss, rtol=1e-5)
  np.testing.assert_allclose(own['logits'], gradient, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize('name', CASES)
def test_golden_values(name):
  compare(name, GOLDEN, GOLDEN[f'{name}_loss'], GOLDEN[f'{name}_gradient'])
