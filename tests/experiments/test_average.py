"""A run may evaluate and export an average of its weights."""

import numpy as np
import pytest

from experiments import build
from jaxtune.typing import InputError


@pytest.mark.slow
def test_the_export_is_the_average_of_the_steps(configure, launch, exported, tmp_path):
  values = {'optim.schedule': 'constant', 'optim.warmup': 0.0, 'train.eval_every': 0}
  values['train.batch_size'] = 40  # all rows, so that runs of other lengths begin alike

  def run(name, **more):
    more = {key.replace('_', '.', 1): value for key, value in more.items()}
    assert launch(configure(values=values | {'method.name': 'probe'} | more), tmp_path / name) == 0
    return exported(tmp_path / name)

  first, second = run('first', train_steps=1), run('second', train_steps=2)
  average = run('average', train_steps=2, optim_average=0.5)
  for name in first:  # after two steps the last counts 0.5 / (1 - 0.5^2)
    want = first[name] + 2 / 3 * (second[name] - first[name])
    np.testing.assert_allclose(average[name], want, atol=1e-6, err_msg=name)
  assert any(np.any(first[name] != second[name]) for name in first)


@pytest.mark.slow
def test_a_decay_of_one_is_no_average(configure):
  with pytest.raises(InputError, match='decay of average_weights is 1.0'):
    build.averaged(configure(values={'optim.average': 1.0}), None)
