"""The usual values to start from."""

import pytest

from jaxtune import plan


def advised(method='lora', rule='adamw', width=2000, steps=1000, task='classification'):
  found = plan.starting_point(method, rule, width=width, steps=steps, task=task)
  assert all(one.reason and one.source for one in found)
  return {one.key: one.value for one in found}


@pytest.mark.parametrize(
  'options, rate',
  [
    ({}, 5e-4),
    ({'steps': 99}, 7.5e-4),
    ({'method': 'full'}, 5e-5),
    ({'width': 384}, 1.8e-3),
    ({'width': 4096}, 2.9e-4),
    ({'rule': 'lion'}, 1e-4),
    ({'task': 'preference'}, 5e-6),
    ({'task': 'preference', 'method': 'full'}, 1e-6),
    ({'method': 'prompt'}, None),  # rates of another scale
    ({'rule': 'sgd'}, None),
  ],
)
def test_learning_rates(options, rate):
  assert advised(**options).get('optim.lr') == rate


def test_capacity_is_of_adapters():
  assert advised()['method.rank'] == 16 and advised(task='causal_lm')['method.rank'] == 32
  assert advised()['method.alpha'] == 32.0 and advised()['method.options.dropout'] == 0.0
  assert set(advised(method='full')) == {'optim.lr', 'optim.warmup'}
