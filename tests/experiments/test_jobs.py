"""Every task with every method: it runs, exports, opens again, predicts, evaluates and merges."""

import csv
import io
import json
import re

import jax
import numpy as np
import pytest

import jaxtune as jt
from experiments import build, dataset, finish, tuned
from jaxtune.typing import InputError

SHORT = {'train.steps': 2, 'train.eval_every': 0, 'train.save_every': 0}
PAIRS = {'data.prompt': '{text} is ', 'data.completion': 'label', 'train.chunk': 8}
TINY = {
  'model': '',
  'decoder.vocabulary': 300,
  'decoder.width': 32,
  'decoder.hidden': 48,
  'decoder.layers': 2,
}
JOBS = {
  'classification full': ('classification', {'method.name': 'full'}),
  'probe by epochs': (
    'classification',
    {'method.name': 'probe', 'train.steps': 0, 'train.epochs': 1.1},  # on cached features
  ),
  'regression lora': ('regression', {'method.quantize': 'nf4'}),
  'regression full': (
    'regression',
    {'method.name': 'full', 'train.accumulate': 2, 'train.batch_size': 16},
  ),
  'pairs lora': ('causal_lm', PAIRS),
  'pairs full': (
    'causal_lm',
    PAIRS | {'method.name': 'full', 'train.remat': 'full', 'train.dtype': 'bfloat16'},
  ),
  'packed text lora': (
    'causal_lm',
    {
      'data.pack': 'first_fit',
      'data.max_length': 48,
      'optim.name': 'lora_rite',
      'method.quantize': 'int8',
    },
  ),
  'from scratch': (
    'causal_lm',
    TINY | {'method.name': 'full', 'data.pack': 'first_fit', 'optim.name': 'muonclip'},
  ),
}


@pytest.fixture(scope='module')
def job(configure, launch, tmp_path_factory):
  """`job('regression lora')`: the folder of a finished run of that kind."""
  folders = {}

  def make(name):
    if name not in folders:
      task, values = JOBS[name]
      folders[name] = tmp_path_factory.mktemp('job') / name.replace(' ', '_')
      assert launch(configure(task, SHORT | values), folders[name]) == 0
    return folders[name]

  return make


@pytest.mark.slow
def test_an_adapter_that_no_file_can_hold_is_merged(configure, launch, files, tmp_path):
  """Experts have no module each in PEFT: the run says so, and its export is a whole model."""
  values = SHORT | PAIRS | {'model': str(files / 'mixtral')}
  assert launch(configure('causal_lm', values), tmp_path / 'run') == 0
  run = tuned.open_run(str(tmp_path / 'run'))
  names = {path.name for path in (tmp_path / 'run' / 'export').iterdir()}
  assert 'model.safetensors' in names and 'adapter_config.json' not in names
  base, params = jt.interop.load(files / 'mixtral')
  assert not np.allclose(outputs(run), outputs(run._replace(model=base, params=params)), atol=1e-5)
  assert 'merged model' in (tmp_path / 'run' / 'report.html').read_text()


def test_a_run_starts_from_the_adapter_of_another(configure, finished):
  """Its first outputs are those that the other ended with, and the head goes on too."""
  values = {'method.adapter': str(finished / 'export')}
  job = build.job(configure(values=values))
  run = tuned.open_run(str(finished))
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12) + 5
  mask = np.ones((2, 12), bool)
  np.testing.assert_array_equal(job.model.apply(job.params, tokens, mask), outputs(run))
  trained = jt.adapt.trainable(job.params)[0]
  assert trained['head']['dense'] is not None
  assert jt.tree.count(trained) == jt.tree.count(
    jt.adapt.trainable(build.job(configure()).params)[0]
  )
  with pytest.raises(InputError, match=r'tells 2 labels apart \(bad, good\), but the data has 1.5'):
    build.job(configure(values=values | {'data.label': 'stars'}))


def table(path):
  return list(csv.DictReader(io.StringIO(path.read_text(), newline='')))


def outputs(run):
  """What the model of a run says to a fixed batch."""
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12) + 5
  return np.asarray(run.model.apply(run.params, tokens, np.ones((2, 12), bool)))


# What these do besides is in others of the default suite.
SLOW = {'regression full', 'packed text lora', 'pairs full', 'classification full'}


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in JOBS]
)
def test_runs_and_opens_again(name, job, trained_steps, command, capsys):
  folder = job(name)
  assert len(trained_steps(folder)) == (6 if 'epochs' in name else 2)  # 1.1 times 40 rows by 8: 5.5
  run = tuned.open_run(str(folder))
  assert np.isfinite(outputs(run)).all()
  method, task = run.config.method.name, run.config.task
  assert run.model.task == ('causal_lm' if task == 'causal_lm' else 'classification')
  assert run.names == (('bad', 'good') if task == 'classification' else ())
  names = {path.name for path in (folder / 'export').iterdir()}
  if method == 'lora':
    assert {'adapter_config.json', 'adapter_model.safetensors', 'README.md'} <= names
  else:
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= names

  capsys.readouterr()
  assert command('evaluate', workdir=folder) == 0
  printed = json.loads(capsys.readouterr().out.splitlines()[-1])
  reached = json.loads((folder / 'result.json').read_text())['scores']['after']
  for metric, value in reached.items():
    assert printed[metric] == pytest.approx(value, rel=1e-3), metric
  more = {'classification': 'matthews', 'regression': 'pearson', 'causal_lm': 'perplexity'}[task]
  assert more in printed


@pytest.mark.parametrize('name', ['classification full', 'regression lora', 'pairs lora'])
def test_merged_folder_gives_the_same_outputs(name, job, command, tmp_path, capsys):
  folder = job(name)
  capsys.readouterr()
  assert command('export', workdir=folder, folder=tmp_path / 'merged') == 0
  last = capsys.readouterr().out.splitlines()[-1]
  found = re.match(r'largest logit difference (\S+) \(logits up to (\S+)\)', last)
  assert bool(found) == ('lora' in name)
  assert not found or float(found[1]) <= 1e-5 * max(1, float(found[2]))
  run = tuned.open_run(str(job(name)))
  model, params = jt.interop.load(tmp_path / 'merged')
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12) + 5
  np.testing.assert_allclose(model.apply(params, tokens), outputs(run), rtol=1e-4, atol=1e-5)
  if run.config.method.name == 'lora':
    assert not np.allclose(outputs(run), outputs_of_base(run, tokens), atol=1e-5)
  text = 'film 3 was awful'
  own = jt.interop.load_tokenizer(tmp_path / 'merged')
  assert own.encode(text).ids == run.tok.encoder.encode(text).ids


def outputs_of_base(run, tokens):
  """The same model with the second factor of every adapter at zero."""

  def silence(path, leaf):
    return jax.numpy.zeros_like(leaf) if jt.tree.path_name(path).endswith('/b') else leaf

  return run.model.apply(jax.tree_util.tree_map_with_path(silence, run.params), tokens)


def test_export_spares_a_folder_of_something_else(finished, command, tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(InputError, match='thesis.tex'):
    command('export', workdir=finished, folder=tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_predict_labels_rows_in_csv(finished, command, tmp_path, capsys):
  source, target = tmp_path / 'new.csv', tmp_path / 'labelled.csv'
  long = ' '.join(['superb'] * 50)
  source.write_text(f'id,text\n7,"a great, lovely film"\n8,\n9,{long}\n')
  assert command('predict', workdir=finished, input=source, output=target) == 0
  assert '3 rows written' in (out := capsys.readouterr().out)
  assert '1 were longer than 16 tokens and were cut' in out
  rows = table(target)
  assert [row['id'] for row in rows] == ['7', '8', '9']
  assert [row['text'] for row in rows] == ['a great, lovely film', '', long]
  for row in rows:
    probabilities = {name: float(row[f'probability {name}']) for name in ('bad', 'good')}
    assert sum(probabilities.values()) == pytest.approx(1, abs=2e-6)
    assert row['predicted'] == max(probabilities, key=probabilities.get)


def test_predict_agrees_with_the_model(finished, command, files, tmp_path):
  target = tmp_path / 'labelled.jsonl'
  assert command('predict', workdir=finished, input=files / 'films.jsonl', output=target) == 0
  rows = [json.loads(line) for line in target.read_text().splitlines()]
  given = [json.loads(line) for line in (files / 'films.jsonl').read_text().splitlines()]
  assert [{name: row[name] for name in ('text', 'label', 'stars')} for row in rows] == given
  run = tuned.open_run(str(finished))
  part = dataset.encode_rows(run.config, run.tok, given, run.names)
  logits = finish.outputs(run.config, run.model, run.params, part)
  np.testing.assert_allclose(
    [row['probability good'] for row in rows], jax.nn.softmax(logits)[:, 1], atol=1e-6
  )


def test_predict_writes_rows_of_different_columns_and_prints(finished, command, tmp_path, capsys):
  source = tmp_path / 'new.jsonl'
  source.write_text('{"text": "a"}\n{"text": "b", "note": "späť"}\n')
  capsys.readouterr()
  assert command('predict', workdir=finished, input=source) == 0
  rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
  assert [row['note'] for row in rows] == ['', 'späť']


@pytest.mark.parametrize(
  'name', ['regression lora', pytest.param('regression full', marks=pytest.mark.slow)]
)
def test_predict_gives_numbers_for_a_regression(name, job, command, files, tmp_path):
  target = tmp_path / 'numbers.csv'
  assert command('predict', workdir=job(name), input=files / 'films.csv', output=target) == 0
  rows = table(target)
  assert rows[0].keys() == {'text', 'label', 'stars', 'predicted'}
  assert np.isfinite([float(row['predicted']) for row in rows]).all()


def test_predict_refuses_a_language_model(job, command, files):
  with pytest.raises(InputError, match='holds a run for causal_lm'):
    command('predict', workdir=job('pairs lora'), input=files / 'films.csv')


def test_evaluate_measures_a_file_of_ones_own(finished, command, files, tmp_path, capsys):
  capsys.readouterr()
  assert command('evaluate', workdir=finished, data=files / 'films.csv') == 0
  out = capsys.readouterr().out.splitlines()
  assert out[0] == f'64 examples of {files / "films.csv"}'
  found = json.loads(out[-1])
  assert found['examples'] == 64 and 0 <= found['accuracy'] <= 1
  target = tmp_path / 'labelled.csv'
  assert command('predict', workdir=finished, input=files / 'films.csv', output=target) == 0
  rows = table(target)
  assert found['accuracy'] == pytest.approx(np.mean([r['label'] == r['predicted'] for r in rows]))


def test_evaluate_without_test_rows_asks_for_a_file(configure, launch, command, tmp_path):
  folder = tmp_path / 'run'
  assert launch(configure(values={'data.test': 0.0, 'data.valid': 0.0}), folder) == 0
  with pytest.raises(InputError, match='held out no test rows.*--data'):
    command('evaluate', workdir=folder)


def test_export_spares_the_run_itself(finished, command):
  before = sorted((finished / 'export').iterdir())
  with pytest.raises(InputError, match='lies in the run itself'):
    command('export', workdir=finished, folder=finished / 'export')
  assert sorted((finished / 'export').iterdir()) == before


def test_predict_never_writes_over_a_column(finished, command, tmp_path):
  rows = tmp_path / 'rows.csv'
  rows.write_text('text,predicted\na good film,mine\n')
  with pytest.raises(InputError, match="column 'predicted' is one that predict writes; rename"):
    command('predict', workdir=finished, input=rows)
