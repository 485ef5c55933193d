"""The examples of docs/optim.md run as written, one after the other."""

import pathlib
import re

import numpy as np


def test_examples(capsys):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'optim.md'
  blocks = re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
  names: dict = {}
  for block in blocks:
    exec(compile(block, str(page), 'exec'), names)
  printed = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in printed] == ['parameter', 'bias', 'w']
  values = names['optim'].hyperparameters(names['lanes'])
  assert values['learning_rate'].shape == (3,)
  np.testing.assert_allclose(names['shape'](60), 1.0)
  names['rule'].init(names['params'])
