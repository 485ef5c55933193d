"""Runs of a method that neither PEFT's files nor merged weights can hold."""

import jax
import numpy as np
import pytest

from experiments import build, tuned
from jaxtune import interop
from jaxtune.typing import InputError

SHORT = {'train.steps': 2, 'train.eval_every': 0, 'train.save_every': 0, 'optim.lr': 0.1}
BOTTLENECK = {'method.name': 'bottleneck', 'method.options': {'width': 4}}


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classification', 'causal_lm'])
def test_a_run_exports_a_file_of_its_own_and_opens_it(configure, launch, tmp_path, task):
  values = SHORT | BOTTLENECK
  if task == 'causal_lm':
    values |= {'data.prompt': '{text} is ', 'data.completion': 'label'}
  assert launch(configure(task, values), tmp_path / 'run') == 0
  assert (tmp_path / 'run' / 'export' / interop.TRAINED).exists()
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'trained.safetensors, which only jaxtune opens' in page
  run = tuned.open_run(str(tmp_path / 'run'))
  job = build.job(configure(task, values))
  tokens, mask = np.arange(24, dtype=np.int32).reshape(2, 12) + 5, np.ones((2, 12), bool)
  apply = jax.jit(run.model.apply)
  before, after = (np.asarray(apply(params, tokens, mask)) for params in (job.params, run.params))
  assert np.abs(after - before).max() > 0.01
  assert run.names == (('bad', 'good') if task == 'classification' else ())


def test_a_model_from_scratch_would_leave_nothing(configure):
  values = BOTTLENECK | {'model': '', 'decoder.vocabulary': 300, 'decoder.width': 32}
  with pytest.raises(InputError, match='method.name is bottleneck, and .*take the method full'):
    build.job(configure('causal_lm', values | {'decoder.hidden': 48, 'decoder.layers': 2}))
