import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.report import adapter_card, wilson

yaml = pytest.importorskip('yaml')


def card(**changes):
  return adapter_card(
    **{
      'title': 'MiniLM on reviews',
      'summary': 'Tells positive reviews from negative ones.',
      'base_model': 'sentence-transformers/all-MiniLM-L6-v2',
      'task': 'classification',
      'data': '26,000 reviews',
      'scores': {'before': {'accuracy': wilson(5, 10)}, 'after': {'accuracy': 0.79, 'loss': 0.4}},
      'hyperparameters': {'rank': 16, 'learning rate': 2e-3},
      'labels': ['negative', 'positive'],
      'license': 'apache-2.0',
    }
    | changes
  )


def front(text):
  return yaml.safe_load(text.split('---\n')[1])


def test_front_matter():
  assert front(card()) == {
    'library_name': 'peft',
    'base_model': 'sentence-transformers/all-MiniLM-L6-v2',
    'license': 'apache-2.0',
    'pipeline_tag': 'text-classification',
    'tags': ['jaxtune', 'lora'],
  }
  assert 'license' not in front(card(license=None))


@given(st.text(st.characters(exclude_categories=['Cc', 'Cs', 'Cn', 'Zl', 'Zp', 'Co'])))
def test_any_name_survives_yaml(name):
  name = ': "#\'- ' + name
  assert front(card(base_model=name))['base_model'] == name


def test_tables_keep_their_columns():
  text = card(hyperparameters={'targets': 'q|k\nv'}, labels=['a|b', 'c'])
  rows = [line for line in text.splitlines() if line.startswith('|')]
  assert '| targets | q\\|k v |' in rows
  assert '| before | 0.500 (0.237 to 0.763) |  |' in rows
  assert '| after | 0.79 | 0.4 |' in rows


@pytest.mark.parametrize(
  ('task', 'name', 'outputs'),
  [
    ('classification', 'AutoModelForSequenceClassification', ', num_labels=2'),
    ('regression', 'AutoModelForSequenceClassification', ', num_labels=1'),
    ('causal_lm', 'AutoModelForCausalLM', ''),
  ],
)
def test_the_code_is_python_for_the_task(task, name, outputs):
  text = card(task=task, base_model='a"b\\c')
  snippets = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert len(snippets) == 2
  for snippet in snippets:
    strings = [n.value for n in ast.walk(ast.parse(snippet)) if isinstance(n, ast.Constant)]
    assert 'a"b\\c' in strings
  assert f'{name}.from_pretrained("a\\"b\\\\c"{outputs})' in snippets[0]
