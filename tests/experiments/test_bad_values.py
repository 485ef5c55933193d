"""Values, keys, rows and places that cannot be used, and losses that are no numbers: one line."""

import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import base
from experiments import keys, objective, start, tuned, workdir
from jaxtune import report, train
from jaxtune.typing import InputError


def assert_one_line(error):
  message = str(error.value)
  assert message and '\n' not in message and len(message) < 800, message


NUMBERS = [
  (name, value)
  for name, value in keys.flatten(base.get_config())
  if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith('mesh')
]
ZERO_IS_A_CHOICE = {
  *(
    'seed',
    'data.seed',
    'data.valid',
    'data.test',
    'train.steps',
    'train.epochs',
    'train.eval_every',
  ),
  *('train.save_every', 'train.chunk', 'optim.warmup', 'optim.weight_decay', 'optim.clip_norm'),
  *('train.patience', 'train.rollback', 'optim.skip_spikes'),
  *('optim.average', 'objective.kl', 'objective.l2_sp', 'objective.neftune'),
  *('layers', 'rollout.overlong', 'rollout.kl', 'tune.steps', 'tune.minutes'),
  *('evaluate.rows', 'evaluate.shots', 'evaluate.seed'),
}


@pytest.mark.parametrize('name, default', NUMBERS)
def test_a_number_that_makes_no_sense(name, default, configure, launch, tmp_path):
  values = [-1, 0] if isinstance(default, int) else [-1.0, 0.0, math.nan, math.inf, -math.inf]
  for value in values:
    if (value == 0 and name in ZERO_IS_A_CHOICE) or (name, value) == ('data.seed', -1):
      continue
    with pytest.raises(InputError, match=rf'^{name} is {value};') as caught:
      launch(configure(values={name: value}), tmp_path / 'run')
    assert_one_line(caught)
  assert not (tmp_path / 'run').exists()


def test_numbers_of_the_optimizer(configure, launch, tmp_path):
  for value in (-0.1, 1.0, math.nan):
    config = configure()
    config.optim.hyperparameters.b2 = value
    with pytest.raises(InputError, match='b2 is'):
      launch(config, tmp_path / 'run')
  config = configure()
  config.optim.hyperparameters.beta2 = 0.9
  with pytest.raises(InputError, match="no hyperparameter 'beta2'; did you mean 'b2'"):
    launch(config, tmp_path / 'run')


def test_a_quantized_base(configure, launch, tmp_path):
  with pytest.raises(InputError, match="method.quantize is 'nf3'; choose one of nf4, int4, int8"):
    launch(configure(values={'method.quantize': 'nf3'}), tmp_path / 'run')
  values = {'method.quantize': 'nf4', 'method.name': 'full'}
  with pytest.raises(InputError, match='uint8 has no gradient; freeze it') as caught:
    launch(configure(values=values), tmp_path / 'run')
  assert_one_line(caught)


def test_decoder_heads_that_do_not_divide(configure, launch, tmp_path):
  for values in ({'decoder.heads': 3}, {'decoder.kv_heads': 3}):
    with pytest.raises(InputError, match='must divide'):
      launch(configure('causal_lm', {'model': ''} | values), tmp_path / 'run')


def test_a_key_that_no_configuration_has(configure, launch, tmp_path):
  config = configure()
  with config.unlocked():
    config.train.stps = 3
  with pytest.raises(InputError, match="unknown config key 'train.stps'; did you mean 'train.ste"):
    launch(config, tmp_path / 'run')
  config = configure()
  with config.unlocked():
    del config.optim.lr
  with pytest.raises(InputError, match="has no 'optim.lr'; start it from configs/base.py"):
    launch(config, tmp_path / 'run')


def test_no_folder_for_the_run(configure, launch):
  with pytest.raises(InputError, match='--workdir is missing'):
    launch(configure(), None)


def test_the_wrong_script(configure):
  with pytest.raises(InputError, match='use experiments.finetune'):
    start.start(configure(), 'run', dry_run=False, pretrained=False)
  with pytest.raises(InputError, match='model is empty.*experiments.pretrain'):
    start.start(configure(values={'model': ''}), 'run', dry_run=False, pretrained=True)


def test_no_place_to_write(configure, launch, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('mine')
  for folder in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(OSError, match='file') as caught:
      launch(configure(), folder)
    assert_one_line(caught)
  assert (tmp_path / 'file').read_text() == 'mine'

  def full(path, data):
    raise OSError(28, 'No space left on device', str(path))

  monkeypatch.setattr(report, 'replace_file', full)
  with pytest.raises(OSError, match='No space left on device.*run'):
    launch(configure(), tmp_path / 'run')
  assert not (tmp_path / 'run' / workdir.RUN).exists()


@pytest.mark.parametrize('script', ['predict', 'evaluate'])
@pytest.mark.parametrize(
  'name, content, match',
  [
    ('gone.csv', None, r'gone\.csv: no such file'),
    ('new.csv', '', r'new\.csv: no records in the file, which is empty'),
    ('new.csv', 'review,label\na,good\n', r'text.*review, label'),
    ('new.csv', 'text,label\n,good\n', r"column 'text' is empty in all 1 rows"),
    ('new.jsonl', '{"text": "a", "label": "good"}\n{"text"\n', r'new\.jsonl: line 2: not JSON'),
    ('new.jsonl', '{"text": 5, "label": "good"}\n', r"line 1: '?text'? is 5, which is not a "),
    ('new.xlsx', 'PK', r"cannot read '\.xlsx'; use \.csv"),
  ],
)
def test_rows_of_ones_own(script, name, content, match, finished, command, tmp_path):
  if content is not None:
    (tmp_path / name).write_text(content)
  target = tmp_path / {'predict': 'out.csv', 'evaluate': 'out.json'}[script]
  with pytest.raises(InputError, match=match) as caught:
    command(script, workdir=finished, input=tmp_path / name, data=tmp_path / name, output=target)
  assert_one_line(caught)
  assert not target.exists()


def test_a_label_never_seen_in_training(finished, command, tmp_path):
  (tmp_path / 'new.csv').write_text('text,label\nso so,middling\n')
  with pytest.raises(InputError, match=r"line 2: .*'middling'.*\(bad, good\)"):
    command('evaluate', workdir=finished, data=tmp_path / 'new.csv')
  assert command('predict', workdir=finished, input=tmp_path / 'new.csv') == 0  # it is no input


def test_a_damaged_export(finished, command, files, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  weights = folder / 'export' / 'adapter_model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-40])
  with pytest.raises(InputError, match=r'adapter_model\.safetensors: is damaged or cut short'):
    command('predict', workdir=folder, input=files / 'films.csv')


@pytest.mark.slow
def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(configure, launch, tmp_path):
  # A rate far too high: the loss grows until it overflows, some steps after the start.
  values = {
    'method.name': 'full',
    'optim.name': 'gradient_descent',
    'optim.lr': 30.0,
    'optim.schedule': 'constant',
    'optim.clip_norm': 0.0,
    'train.steps': 200,
    'train.eval_every': 0,
  }
  folder = tmp_path / 'run'
  with pytest.raises(InputError, match=r'(loss|gradient).* is (nan|inf) at step \d+') as caught:
    launch(configure('regression', values), folder)
  assert_one_line(caught)
  assert 'lower optim.lr' in str(caught.value)
  lines = report.read_metrics(folder / 'metrics.jsonl')
  assert all(line['loss'] is not None for line in lines if 'loss' in line)
  assert not (folder / 'export').exists() and not (folder / 'result.json').exists()
  kept = train.open_checkpoints(folder / 'checkpoints').steps[-1]
  assert f'the last good checkpoint is that of step {kept}' in str(caught.value)
  saved = ocp.StandardCheckpointer().restore(folder / 'checkpoints' / str(kept) / 'state')
  values = [leaf for leaf in jax.tree.leaves(saved) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  assert values and all(np.isfinite(leaf).all() for leaf in values)


@pytest.mark.parametrize(
  'task, values, options, match',
  [
    ('classification', {'rollout.group': 4}, {}, 'rollout.group is set, but task classification'),
    ('classification', {'data.supervise': 'last'}, {}, 'data.supervise is .*of task causal_lm'),
    ('classification', {'objective.kl': 0.1}, {}, 'objective.kl is 0.1, .*task causal_lm'),
    ('classification', {'objective.reference': 'cached'}, {}, 'compares with no reference'),
    ('classification', {'objective.teacher': 'runs/x'}, {}, 'the objective has no teacher'),
    ('classification', {'objective.name': 'distillation'}, {}, 'objective.teacher is empty'),
    ('classification', {'train.chunk': 8}, {}, 'train.chunk is 8, .*holds no logits'),
    ('classification', {'data.completion': 'label'}, {}, 'data.prompt is empty; set both'),
    ('classification', {'data.buckets': ('8',)}, {}, 'data.buckets is .*give whole numbers'),
    ('classification', {'layers': 1, 'model': ''}, {}, 'layers is of a pretrained model'),
    (
      'classification',
      {'method.name': 'full', 'method.select': 'x'},
      {},
      'full selects no weights',
    ),
    ('preference', {}, {'reference': 'me'}, 'reference follows from objective.reference'),
    ('reinforcement', {'objective.reference': 'cached'}, {'beta': 0.1}, 'nothing to compute once'),
    ('reinforcement', {}, {'temperature': 0.5}, 'follows from rollout.temperature; set that'),
    (
      'reinforcement',
      {'rollout.updates': 3},
      {},
      'train.steps is 4; .* multiple of rollout.updates',
    ),
    (
      'reinforcement',
      {'objective.name': 'rloo', 'rollout.scale': 'none'},
      {},
      "rloo's advantages have no scale",
    ),
  ],
)
def test_a_choice_that_nothing_would_look_at(task, values, options, match, configure):
  config = configure(task, values)
  config.objective.options.update(options)
  with pytest.raises(InputError, match=match) as caught:
    keys.check(config)
  assert_one_line(caught)


@pytest.mark.parametrize(
  'name, row, match',
  [
    ('triplet', ('anchor', 'positive'), "the rows have no 'negative'"),
    ('cosent', ('anchor', 'positive'), "the rows have no 'label'"),
    ('', ('anchor', 'positive', 'label'), 'scores, which the objective info_nce does not look at'),
  ],
)
def test_rows_that_an_embedding_cannot_learn_from(name, row, match, configure):
  config = configure('embedding', {'objective.name': name})
  with pytest.raises(InputError, match=match):
    objective.check_example(config, dict.fromkeys(row))


OWN = """
def plain(model, factor):
  from jaxtune import losses
  real = losses.classification(model)

  def objective(params, batch, key=None):
    loss = real(params, batch, key)
    return losses.Loss(loss.total * factor, loss.weight, {})

  return objective
"""


@pytest.mark.slow
def test_an_objective_of_ones_own_needs_no_metrics(configure, launch, tmp_path):
  (tmp_path / 'mine.py').write_text(OWN)
  config = configure(values={'objective.name': f'{tmp_path / "mine.py"}:plain'})
  with pytest.raises(InputError, match='objective.options.factor is missing; it has no default'):
    launch(config, tmp_path / 'run')
  config.objective.options.factor = 2.0
  assert launch(config, tmp_path / 'run') == 0
  assert workdir.result(tmp_path / 'run')['headline'].startswith('Loss on 16 held-out test rows')


@pytest.mark.parametrize('script', ['predict', 'evaluate'])
def test_a_run_that_a_script_cannot_serve(script, configure, command, monkeypatch):
  run = SimpleNamespace(config=configure('multi_label'))
  run._replace = lambda config: run
  monkeypatch.setattr(tuned, 'open_run', lambda folder: run)
  with pytest.raises(InputError, match='runs/x holds a run for multi_label; ') as caught:
    command(script, workdir='runs/x', input='new.csv')
  assert_one_line(caught)


BAD_ROOT = """
import jax.numpy as jnp
from jaxtune import losses


def bad_root(model, factor=0.0):
  real = losses.classification(model)

  def objective(params, batch, key=None):
    # Finite in value, and not in the derivative: sqrt(0).
    zero = jnp.sqrt(jnp.sum(params['head']['dense_bias']) * factor)
    loss = real(params, batch, key)
    return loss._replace(total=loss.total + zero)

  return objective
"""


def test_a_gradient_that_is_no_number_is_not_saved(configure, launch, tmp_path):
  (tmp_path / 'mine.py').write_text(BAD_ROOT)
  values = {'objective.name': f'{tmp_path / "mine.py"}:bad_root'}
  with pytest.raises(InputError, match=r'grad_norm is nan at step 1; nothing was saved'):
    launch(configure(values=values), tmp_path / 'run')
