"""The scripts as a shell runs them: what they print, where, and their exit codes."""

import itertools
import json

import pytest


def assert_one_line_on_stderr(done):
  assert done.code == 1
  assert 'Traceback' not in done.err and done.err.count('\n') == 1, done.err
  assert done.err.startswith('error: ')


def test_a_misspelt_key_is_refused_with_a_suggestion(shell, tmp_path):
  done = shell(
    'finetune', '--config=configs/quickstart.py', f'--workdir={tmp_path}/w', '--config.train.stps=3'
  )
  assert_one_line_on_stderr(done)
  assert "unknown config key 'train.stps'; did you mean 'train.steps'?" in done.err
  assert not (tmp_path / 'w').exists()


def test_options_of_a_method_need_no_key_in_the_file(shell, tmp_path):
  options = ['--config.method.name=prompt', '--config.method.options.toknes=4']
  done = shell('finetune', '--config=configs/quickstart.py', f'--workdir={tmp_path}/w', *options)
  assert_one_line_on_stderr(done)
  assert "the method prompt has no option 'toknes'; it has tokens, start, also" in done.err


def test_help_names_the_flags(shell):
  done = shell('finetune', '--help')
  for flag in ('--config', '--workdir', '--[no]dry_run'):
    assert flag in done.out
  assert 'python -m experiments.finetune --config=configs/quickstart.py' in done.out
  assert 'Traceback' not in done.err


def test_predict_without_a_run(shell, tmp_path):
  done = shell('predict', f'--workdir={tmp_path}/w', f'--input={tmp_path}/new.csv')
  assert_one_line_on_stderr(done)
  assert f'{tmp_path}/w holds no run' in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
  'arguments, match',
  [
    (['--config=configs/quickstat.py', '--workdir=w'], 'quickstat.py'),
    (['--config=configs/quickstart.py', '--workdir=w', '--wrkdir=v'], 'Unknown command line flag'),
    (['--config=configs/quickstart.py', '--workdir=w', 'extra'], "unknown argument 'extra'"),
    (['--config=configs/quickstart.py', '--config.train.steps=many'], 'many'),
    (['--config=configs/quickstart.py', '--config.train.steps=-3'], 'train.steps is -3'),
    (['--config=configs/quickstart.py', '--config.train=3'], "unknown config key 'train'"),
    (['--config=configs/quickstart.py'], '--workdir is missing'),
    (['--workdir=w'], 'config'),
    (['--config=configs/quickstart.py', '--workdir=README.md/w'], 'README.md'),
  ],
)
def test_bad_arguments(shell, arguments, match):
  done = shell('finetune', *arguments)
  assert_one_line_on_stderr(done)
  assert match in done.err


@pytest.mark.slow
def test_a_configuration_file_with_an_error(shell, tmp_path):
  for text in ('def get_config(:\n', 'import no_such_module\n', 'x = 1\n'):
    (tmp_path / 'mine.py').write_text(text)
    assert_one_line_on_stderr(shell('finetune', f'--config={tmp_path}/mine.py', '--workdir=w'))
  (tmp_path / 'mine.py').write_text(
    'from configs import base\n\n\ndef get_config():\n  config = base.get_config()\n'
    '  config.trian = 3\n  return config\n'
  )
  done = shell('finetune', f'--config={tmp_path}/mine.py', '--workdir=w')
  assert_one_line_on_stderr(done)
  assert 'trian' in done.err


@pytest.mark.slow
def test_quickstart_shortened(shell, tmp_path):
  arguments = ['--config=configs/quickstart.py', f'--workdir={tmp_path}/w']
  arguments += ['--config.train.steps=20', '--config.data.valid=64', '--config.data.test=64']
  done = shell('finetune', *arguments)
  assert done.code == 0, done.err
  last = done.out.rstrip().splitlines()
  assert 'held-out test rows went from' in last[-3]
  assert 'report.html' in last[-2] and 'export' in last[-1]
  log = (tmp_path / 'w' / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in log.splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == list(range(1, 21))
  for name in ('report.html', 'checkpoints/20', 'export/adapter_config.json'):
    assert (tmp_path / 'w' / name).exists()
  assert (tmp_path / 'w' / 'export' / 'adapter_model.safetensors').exists()
  done = shell('finetune', *arguments)
  assert done.code == 0 and 'nothing to do' in done.out


@pytest.fixture
def few(reviews, tmp_path):
  """A file of some short reviews, which is read in no time."""
  path = tmp_path / 'few.csv'
  with reviews.open() as rows:
    short = (row for row in rows if len(row) < 200)  # the names of the columns among them
    path.write_text(''.join(itertools.islice(short, 400)))
  return path


@pytest.mark.slow
def test_sft_smollm2_for_two_steps(shell, tmp_path, few):
  done = shell(
    'finetune',
    '--config=configs/sft_smollm2.py',
    f'--workdir={tmp_path}/w',
    f'--config.data.path={few}',
    '--config.train.steps=2',
    '--config.data.valid=8',
    '--config.data.test=8',
  )
  assert done.code == 0, done.err
  assert 'Loss on' in done.out
  assert (tmp_path / 'w' / 'export' / 'adapter_model.safetensors').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, script', [('regression', 'finetune'), ('pretrain_tiny', 'pretrain')]
)
def test_the_other_configurations_for_two_steps(shell, tmp_path, few, name, script):
  done = shell(
    script,
    f'--config=configs/{name}.py',
    f'--workdir={tmp_path}/w',
    f'--config.data.path={few}',
    '--config.train.steps=2',
    '--config.data.valid=8',
    '--config.data.test=8',
  )
  assert done.code == 0, done.err
  assert (tmp_path / 'w' / 'result.json').exists()
