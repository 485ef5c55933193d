"""The examples of docs/optim.md run as written, and docs/optimizers.md says what the code does."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_examples(capsys):
  page = ROOT / 'docs' / 'optim.md'
  blocks = re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
  names: dict = {}
  for block in blocks:
    exec(compile(block, str(page), 'exec'), names)
  printed = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in printed[:3]] == ['parameter', 'bias', 'w']
  assert any('attn/qkv' in line and '4x8x24' in line for line in printed[3:])
  values = names['optim'].hyperparameters(names['lanes'])
  assert values['learning_rate'].shape == (3,)
  np.testing.assert_allclose(names['shape'](60), 1.0)
  names['mine'].init(names['decoder'])
  seen = names['optim'].observations(names['state'])
  assert seen['spikes/skipped'] == 0 and 'update_norm/embeddings' in seen


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of old ones of Optax
def test_the_table_of_rules_is_that_of_the_code():
  spec = importlib.util.spec_from_file_location('table', ROOT / 'scripts' / 'optimizers_table.py')
  table = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(table)
  written = table.PAGE.read_text(encoding='utf-8')
  assert written == table.page(written), 'run: python scripts/optimizers_table.py'
