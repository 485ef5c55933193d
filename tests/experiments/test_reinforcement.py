"""Runs that learn from the rewards of their own answers."""

import json

import pytest

from jaxtune import report
from jaxtune.typing import InputError

REWARD = """
def letters(letter):
  return lambda prompts, completions, records: [text.count(letter) for text in completions]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp('prompts')
  prompts = [{'prompt': f'film {i}', 'answer': str(i)} for i in range(40)]
  (made / 'prompts.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in prompts))
  (made / 'rewards.py').write_text(REWARD)
  return made


@pytest.fixture
def values(folder, files):
  return {
    'model': str(files / 'decoder'),
    'data.path': str(folder / 'prompts.jsonl'),
    'data.valid': 8.0,
    'data.test': 8.0,
    'rollout.reward': f'{folder / "rewards.py"}:letters',
    'rollout.options': {'letter': 'e'},
    'rollout.group': 2,
    'rollout.max_tokens': 4,
    'eval.batch_size': 8,
    'train.batch_size': 8,
  }


def configured(configure, values):
  values = dict(values)
  options = values.pop('rollout.options')
  config = configure('reinforcement', values)
  config.rollout.options.update(options)
  return config


@pytest.mark.slow
def test_a_run_draws_scores_and_resumes(
  configure, values, launch, tmp_path, interrupt_at, assert_same_export
):
  config = configured(configure, values)
  assert launch(config, tmp_path / 'whole') == 0
  lines = list(report.read_metrics(tmp_path / 'whole/metrics.jsonl'))
  steps = [line for line in lines if 'grad_norm' in line]
  assert all({'reward', 'completion_tokens', 'ended'} <= set(line) for line in steps)
  assert any('test/reward' in line for line in lines)
  interrupt_at(2)
  assert launch(config, tmp_path / 'stopped') == 130
  assert launch(config, tmp_path / 'stopped') == 0
  assert_same_export(tmp_path / 'whole', tmp_path / 'stopped')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'rollout.reward': 'best'}, "rollout.reward is 'best'; choose one of classifier, exact_match"),
    ({'rollout.reward': 'exact_match'}, 'rollout.options.letter: the reward exact_match has no'),
    ({'rollout.reward': 'matches', 'rollout.options': {}}, 'rollout.options.pattern is missing'),
    ({'rollout.group': 1}, 'rollout.group is 1; it must be at least 2'),
    ({'rollout.scale': 'row'}, "rollout.scale is 'row'; choose one of group, batch, none"),
    ({'data.max_length': 2}, 'tokens, and max_length is 2'),
  ],
)
def test_bad_values_are_one_line(configure, values, launch, tmp_path, capsys, change, message):
  config = configured(configure, {**values, **change})
  with pytest.raises(InputError, match=message) as error:
    launch(config, tmp_path / 'run')
  assert '\n' not in str(error.value)
