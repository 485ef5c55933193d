"""Every file in configs/ loads, has known keys only, and says how it is run."""

import importlib
import pathlib
import re

import pytest

from experiments import keys

FILES = sorted((pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
OTHERS = ('__init__', 'base', 'compare_methods', 'compare_optimizers')  # have keys of their own
NAMES = [file.stem for file in FILES if file.stem not in OTHERS]


def test_there_is_one_for_each_job():
  assert {'quickstart', 'sft_smollm2', 'pretrain_tiny', 'regression'} <= set(NAMES)
  assert {'few_shot_smollm2', 'perplexity_smollm2'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_config(name):
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config()
  keys.check(config)
  named = {name for name, _ in keys.flatten(config) if not name.startswith(keys.FREE)}
  assert named == {name for name, _ in keys.flatten(keys.defaults())}
  script = 'finetune' if config.model else 'pretrain'
  command = rf'python -m experiments\.{script} --config=configs/{name}\.py --workdir=\S+'
  if 'experiments.evaluate' in module.__doc__:  # nothing is trained
    command = rf'python -m experiments\.evaluate --config=configs/{name}\.py'
  if config.sweep.space:
    command = command.replace('finetune', 'sweep')
  assert re.search(command, module.__doc__)
  assert module.get_config() is not config


def test_the_defaults_choose_no_data():
  with pytest.raises(ValueError, match='data.path is empty'):
    keys.check(keys.defaults())


def test_contract_keys_are_there():
  wanted = """seed model data.path data.text data.label data.max_length method.name method.rank
    method.alpha optim.name optim.lr optim.schedule optim.warmup optim.weight_decay optim.clip_norm
    train.steps train.epochs train.batch_size train.accumulate train.eval_every train.save_every"""
  assert set(wanted.split()) <= dict(keys.flatten(keys.defaults())).keys()
