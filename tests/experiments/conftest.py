"""Tiny models and files that real runs start from, and the runs themselves."""

import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from absl import flags

from configs import base
from experiments import start
from jaxtune import interop, models, report

ROOT = pathlib.Path(__file__).parents[2]
GOOD, BAD = ('good', 'great', 'fine', 'lovely', 'superb'), ('bad', 'awful', 'poor', 'dull', 'weak')
EOS = '<|endoftext|>'


def texts(count):
  """Rows that a model learns in a few steps: the adjectives give the label away."""
  rows = []
  for i in range(count):
    words = (BAD, GOOD)[i % 2]
    text = f'film {i} was {words[i % 5]} and {words[i * 7 % 5]}, really {words[i * 3 % 5]}'
    rows.append({'text': text, 'label': ('bad', 'good')[i % 2], 'stars': (1.5, 4.5)[i % 2]})
  return rows


@pytest.fixture(scope='package')
def files(tmp_path_factory, minilm):
  """`encoder/`, `decoder/`, `gpt2/` and `mixtral/` of two layers; `films.csv`; `films.jsonl`."""
  folder = tmp_path_factory.mktemp('files')
  rows = texts(64)
  lines = [f'"{row["text"]}",{row["label"]},{row["stars"]}\n' for row in rows]
  (folder / 'films.csv').write_text('text,label,stars\n' + ''.join(lines))
  (folder / 'films.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))

  encoder = models.encoder(
    models.EncoderConfig(width=32, hidden=48, layers=2, heads=4, positions=48)
  )
  interop.save_hf(folder / 'encoder', encoder, encoder.init(jax.random.key(1)))
  for name in ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'):
    shutil.copy(minilm / name, folder / 'encoder' / name)

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=[EOS],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([row['text'] for row in rows], trainer)
  llama = models.DecoderConfig(
    vocabulary=tokenizer.get_vocab_size(),
    width=32,
    hidden=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=8,
    positions=48,
  )
  gpt2 = dataclasses.replace(
    llama,
    model_type='gpt2',
    kv_heads=4,
    rope=None,
    learned_positions=True,
    norm='layer',
    norm_bias=True,
    activation='gelu_new',
    gated=False,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
  )
  mixtral = dataclasses.replace(llama, model_type='mixtral', experts=2, expert_hidden=48)
  for name, config in (('decoder', llama), ('gpt2', gpt2), ('mixtral', mixtral)):
    decoder = models.decoder(config)
    interop.save_hf(folder / name, decoder, decoder.init(jax.random.key(2)))
    tokenizer.save(str(folder / name / 'tokenizer.json'))
    (folder / name / 'tokenizer_config.json').write_text(json.dumps({'eos_token': EOS}))
  return folder


@pytest.fixture(scope='package')
def configure(files):
  """`configure('task', {'train.steps': 3})`: a configuration for the tiny models and files."""

  def make(task='classification', values=None):
    config = base.get_config()
    settings = {
      'task': task,
      'model': str(files / ('decoder' if task == 'causal_lm' else 'encoder')),
      'data.path': str(files / 'films.csv'),
      'data.max_length': 16 if task != 'causal_lm' else 40,
      'data.valid': 8.0,
      'data.test': 16.0,
      'method.rank': 4,
      'optim.lr': 1e-2,
      'train.steps': 4,
      'train.batch_size': 8,
      'train.eval_every': 2,
      'train.save_every': 1,
      'eval.batch_size': 16,
    }
    if task == 'regression':
      settings['data.label'] = 'stars'
    config.update_from_flattened_dict(settings | (values or {}))
    return config

  return make


@pytest.fixture(scope='package')
def launch():
  """`launch(config, folder)`: what experiments.finetune or experiments.pretrain does; the code."""

  def run(config, folder, dry_run=False):
    folder = None if folder is None else str(folder)
    return start.start(config, folder, dry_run=dry_run, pretrained=bool(config.model))

  return run


@pytest.fixture(scope='package')
def finished(configure, launch, tmp_path_factory):
  """The folder of a finished run with the defaults of `configure`; to read only."""
  folder = tmp_path_factory.mktemp('finished') / 'run'
  assert launch(configure(), folder) == 0
  return folder


@pytest.fixture
def command(monkeypatch):
  """`command('predict', workdir=..., input=...)`: another script's main; the exit code.

  Scripts define flags of the same names, which one process allows only once: they are taken back
  after the import, and given as plain values.
  """

  def call(name, **values):
    before = set(flags.FLAGS)
    module = importlib.import_module(f'experiments.{name}')
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
    defaults = {'config': None, 'workdir': '', 'data': '', 'output': ''}
    for flag, value in {**defaults, **values}.items():
      if hasattr(module, flag.upper()):
        value = value if flag == 'config' else str(value)
        monkeypatch.setattr(module, flag.upper(), SimpleNamespace(value=value))
    return module.main()

  return call


@pytest.fixture(scope='package')
def exported():
  """`exported(folder)`: the tensors of a run's export by name."""

  def read(folder):
    (file,) = (pathlib.Path(folder) / 'export').glob('*.safetensors')
    return safetensors.numpy.load_file(file)

  return read


@pytest.fixture(scope='package')
def assert_same_export(exported):
  """`assert_same_export(a, b)`: two runs exported the same tensors, bit by bit."""

  def check(first, second):
    a, b = exported(first), exported(second)
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name].view(np.uint8), b[name].view(np.uint8), err_msg=name)

  return check


@pytest.fixture(scope='package')
def trained_steps():
  """`trained_steps(folder)`: the steps of the training lines of a run's log, in order."""

  def read(folder):
    lines = report.read_metrics(pathlib.Path(folder) / 'metrics.jsonl')
    return [line['step'] for line in lines if 'loss' in line]

  return read


@pytest.fixture
def interrupt_at(monkeypatch):
  """`interrupt_at(n)`: Ctrl-C arrives in this process when step n has been logged."""

  def arm(at):
    show = report.Progress.step

    def step(self, number, metrics):
      show(self, number, metrics)
      if number == at:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(report.Progress, 'step', step)

  return arm


@pytest.fixture(scope='package')
def shell(tmp_path_factory):
  """`shell('finetune', '--config=...')`: a real process on one device; Popen(...) or its result.

  `cache`: whether processes share what they compile; None for where users have it.
  """
  compiled = tmp_path_factory.mktemp('compiled by processes')

  def run(script, *arguments, wait=True, cache=True, path='', variables=None, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'PYTHONPATH')}
    environment |= {'JAX_PLATFORMS': 'cpu', 'COLUMNS': '100', 'PYTHONPATH': str(path)}
    environment |= variables or {}
    if cache:
      environment |= {
        'JAX_COMPILATION_CACHE_DIR': str(compiled),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
      }
    elif cache is not None:
      environment['JAX_ENABLE_COMPILATION_CACHE'] = '0'
    process = subprocess.Popen(
      [sys.executable, '-m', f'experiments.{script}', *map(str, arguments)],
      cwd=ROOT,
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      **options,
    )
    if not wait:
      return process
    out, err = process.communicate(timeout=600)
    return SimpleNamespace(code=process.returncode, out=out, err=err)

  return run


@pytest.fixture(scope='package')
def config_file(files, configure):
  """`config_file('task', values)`: the path of a configuration file that gives this config."""

  def write(task='classification', values=None):
    flat = configure(task, values).to_json()
    path = files / f'config_{abs(hash(flat))}.py'
    path.write_text(
      'import json\nimport ml_collections\n\n\ndef get_config():\n'
      f'  return ml_collections.ConfigDict(json.loads({flat!r}))\n'
    )
    return path

  return write
