"""The example of docs/sweep.md runs as it stands."""

import pathlib
import re

import jax
import numpy as np
import pytest

from jaxtune import adapt, losses, optim, sweep

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'sweep.md'


@pytest.mark.slow
def test_the_example_runs(lora):
  example, *_ = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
  key, params = jax.random.key(0), lora.base
  like = adapt.lora(key, params, rank=8)
  other, _ = sweep.run(sweep.fit_ranks(like, like), optim.create('adamw', 1e-3), key)
  names = {'adapt': adapt, 'losses': losses, 'optim': optim, 'key': key, 'params': params}
  names |= {'model': lora.model, 'batch': lora.batch(0), 'other': other}
  names['candidates'] = [(1, 1e-3), (2, 1e-2), (4, 1e-2), (8, 1e-3)]
  exec(example.replace('rank=64', 'rank=8'), names)  # as the matrices of this model allow
  assert np.isfinite(names['metrics']['loss']).all() and names['metrics']['loss'].shape == (4,)
  assert int(names['run'].state.step) == 1
  assert int(sweep.take(names['lanes'], 3).state.step) == 0
