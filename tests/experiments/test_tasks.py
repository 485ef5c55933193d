"""Every task: it runs from a common file, resumes bit by bit, exports, and opens again."""

import json

import jax
import numpy as np
import pytest

from experiments import sources, tuned
from jaxtune import report, tree

WORDS = ('good', 'great', 'fine', 'bad', 'awful', 'poor')


def rows(kind):
  """40 records of a kind, all different."""
  made = []
  for i in range(40):
    good, bad = f'{WORDS[i % 3]} film {i}', f'{WORDS[3 + i % 3]} film {i}'
    made.append(
      {
        'messages': {
          'messages': [
            {'role': 'user', 'content': f'the film {i} was'},
            {'role': 'assistant', 'content': good},
          ]
        },
        'preference': {'prompt': f'film {i} was ', 'chosen': good, 'rejected': bad},
        'unpaired': {
          'prompt': f'film {i} was ',
          'completion': (good, bad)[i % 2],
          'label': i % 2 == 0,
        },
        'pair': {'anchor': good, 'positive': f'{i} was {WORDS[i % 3]}'},
        'scored_pair': {'sentence1': good, 'sentence2': bad, 'score': i / 40},
        'tags': {
          'tokens': good.split(),
          'ner_tags': ['O', 'B-FILM', 'I-FILM' if i % 2 else 'O'],
        },
        'several': {'text': good, 'label': [['x'], ['x', 'y'], []][i % 3]},
        'labelled': {'text': (good, bad)[i % 2], 'label': ('a', 'b')[i % 2]},
        'text': {'text': f'{good} and {bad}'},
        'prompt': {'prompt': f'film {i} was ', 'answer': 'good'},
      }[kind]
    )
  return made


# Of each: its records, what the model is, and further values.
TASKS = {
  'multi_label': ('several', 'encoder', {}),
  'token_classification': ('tags', 'encoder', {}),
  'masked_lm': ('text', 'encoder', {'objective.options.whole_word': True}),
  'embedding': ('pair', 'encoder', {'method.name': 'full'}),
  'preference': ('preference', 'decoder', {}),
  'preference cached': (
    'preference',
    'decoder',
    {'objective.reference': 'cached', 'objective.options.kind': 'ipo', 'method.name': 'full'},
  ),
  'unpaired_preference': ('unpaired', 'decoder', {}),
  'reward': ('preference', 'decoder', {}),
  'reinforcement': (
    'prompt',
    'decoder',
    {
      'rollout.reward': 'near_length',
      'rollout.options.words': 2,
      'rollout.group': 2,
      'rollout.max_tokens': 4,
      'data.max_length': 24,
    },
  ),
  'causal_lm with everything': (
    'text',
    'decoder',
    {'objective.kl': 0.1, 'objective.l2_sp': 0.1, 'objective.neftune': 5.0, 'train.chunk': 16},
  ),
  'classification distilled': (
    'labelled',
    'encoder',
    {'objective.name': 'distillation', 'layers': 1, 'method.name': 'full'},
  ),
}
ALWAYS = ('preference',)


@pytest.fixture
def configured(configure, files, tmp_path):
  """`configured(name)`: the configuration of a row of TASKS, its file written."""

  def make(name, **more):
    kind, model, values = TASKS[name]
    file = tmp_path / 'rows.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows(kind)))
    plain, named = {}, {}
    for key, value in {**values, **more}.items():
      (named if '.options.' in key else plain)[key] = value
    own = {'model': str(files / model), 'data.path': str(file), 'train.batch_size': 8}
    config = configure(name.split()[0], {'data.max_length': 40, **own, **plain})
    for key, value in named.items():
      part, _, option = key.split('.')
      config[part].options[option] = value
    return config

  return make


def parametrized(*names):
  marked = [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in names]
  return pytest.mark.parametrize('name', marked)


@parametrized(*TASKS)
def test_runs_resumes_bitwise_and_opens_again(
  name, configured, configure, launch, tmp_path, interrupt_at, assert_same_export, trained_steps
):
  more = {}
  if 'distilled' in name:
    whole = {'data.path': str(tmp_path / 'rows.jsonl'), 'method.name': 'full'}
    configured(name)  # writes the file
    assert launch(configure(values=whole), tmp_path / 'teacher') == 0
    more = {'objective.teacher': str(tmp_path / 'teacher')}
  assert launch(configured(name, **more), tmp_path / 'whole') == 0
  interrupt_at(2)
  assert launch(configured(name, **more), tmp_path / 'run') == 130
  interrupt_at(0)  # never
  assert launch(configured(name, **more), tmp_path / 'run') == 0
  assert trained_steps(tmp_path / 'run') == [1, 2, 3, 4]
  assert_same_export(tmp_path / 'whole', tmp_path / 'run')

  lines = report.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert {'before/loss', 'test/loss', 'eval/loss'} <= {key for line in lines for key in line}
  assert 'rows.jsonl' in (tmp_path / 'run' / 'report.html').read_text()
  run = tuned.open_run(str(tmp_path / 'run'))
  assert not {'start', 'teacher'} & set(run.params)
  tokens = jax.numpy.ones((1, 4), int)
  assert np.isfinite(run.model.apply(run.params, tokens)).all()
  if 'distilled' in name:
    assert run.model.config.layers == 1
  # What was trained is not what it was.
  trained = [line for line in lines if line.get('step') and 'loss' in line]
  assert all(np.isfinite(line['loss']) for line in trained)
  assert tree.count(run.params)


def test_columns_beside_the_chosen_kind_change_nothing(configure, tmp_path):
  path = tmp_path / 'rows.jsonl'
  said = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'no'}]
  row = {'messages': said, 'prompt': 'a', 'completion': 'b', 'source': 'web'}
  path.write_text(json.dumps(row) + '\n')
  config = configure('causal_lm', {'data.kind': 'completion'})
  ((made,), _) = sources.read_file(config, str(path))
  assert made == {'prompt': 'a', 'completion': 'b', 'source': 'web'}


def test_several_answers_to_one_prompt_are_no_duplicates(configure, tmp_path):
  path = tmp_path / 'rows.jsonl'
  answers = [{'prompt': 'q', 'completion': f'answer {i}', 'label': bool(i % 2)} for i in range(40)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in [*answers, answers[0]]))
  config = configure('unpaired_preference', {'data.path': str(path)})
  rows = sources.read(config)
  assert sum(map(len, rows.splits.values())) == 40 and '1 duplicates left out' in rows.notes[0]
