"""What is advised for a model, its data and a machine."""

import pytest

from jaxtune import adapt, optim, plan

SMALL = plan.Model(parameters=22_700_000, width=384, per_rank=42_000, generates=False)
LARGE = plan.Model(parameters=8_000_000_000, width=4096, per_rank=2_600_000, generates=True)
LABELS = plan.Data('classification', 5_760, 1.0)
CHATS = plan.Data('causal_lm', 10_000, 300.0)
GIB = 2**30


def keys(*given, **options):
  found = plan.advise(*given, **options)
  assert all(one.reason and one.source for one in found)
  assert len({one.key for one in found}) == len(found)
  return {one.key: one.value for one in found}


def test_a_whole_setting():
  found = keys(SMALL, LABELS, 16 * GIB)
  assert found == {
    'method.name': 'lora',
    'optim.name': 'adamw',
    'train.batch_size': 16,
    'train.epochs': 2.0,
    'optim.schedule': 'cosine',
    'optim.lr': 1.8e-3,
    'optim.warmup': 0.06,
    'method.rank': 16,
    'method.alpha': 32.0,
    'method.options.dropout': 0.0,
  }
  assert found['method.name'] in adapt.METHODS and found['optim.name'] in optim.names()


@pytest.mark.parametrize(
  'model, data, memory, platform, method, bits',
  [
    (LARGE, CHATS._replace(rows=0), 80 * GIB, 'cuda', 'zero_shot', None),
    (LARGE, CHATS._replace(rows=8), 80 * GIB, 'cuda', 'few_shot', None),
    (SMALL, LABELS._replace(rows=8), 80 * GIB, 'cpu', 'probe', None),
    (LARGE, CHATS, 80 * GIB, 'cuda', 'lora', None),
    (LARGE, CHATS, 16 * GIB, 'tpu', 'lora', 'nf4'),
    (LARGE, CHATS._replace(rows=10_000_000), 640 * GIB, 'cuda', 'full', None),
    (LARGE, CHATS._replace(rows=10_000_000), 80 * GIB, 'cuda', 'lora', None),
  ],
)
def test_strategies(model, data, memory, platform, method, bits):
  found = keys(model, data, memory, platform)
  assert found['method.name'] == method and found.get('method.quantize') == bits
  assert ('optim.lr' in found) == (method not in ('zero_shot', 'few_shot', 'probe'))


def test_the_rank_holds_what_the_rows_say():
  """1.5M tokens are 1.5 Mbit, 750k parameters at 2 bits: rank 32 has them to spare; 100 times as
  many do not fit, nor into the largest rank the most."""
  tiny = LARGE._replace(per_rank=10_000)
  assert keys(tiny, CHATS._replace(rows=1_000), 80 * GIB, 'cuda')['method.rank'] == 32
  assert keys(tiny, CHATS, 80 * GIB, 'cuda')['method.rank'] == 256
  assert plan.rank_for(tiny, CHATS._replace(rows=1_000)) == 16


def test_a_budget_of_steps_counts():
  found = keys(SMALL, LABELS, 16 * GIB, steps=50)
  assert found['train.steps'] == 50 and 'train.epochs' not in found
  assert found['optim.lr'] == 2.7e-3  # of a short run
