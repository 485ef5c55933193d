"""The card of an exported adapter: a README.md with YAML front matter."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.report.interval import Interval

# What the Hub and transformers call what a model does that learned a task of experiments/tasks.py.
_SEQUENCES = ('text-classification', 'AutoModelForSequenceClassification')
_TOKENS = ('token-classification', 'AutoModelForTokenClassification')
_TASKS = {
  'multi_label': _SEQUENCES,
  'classification': _SEQUENCES,
  'regression': _SEQUENCES,
  'reward': _SEQUENCES,
  'token_classification': _TOKENS,
  'masked_lm': ('fill-mask', 'AutoModelForMaskedLM'),
  'embedding': ('feature-extraction', 'AutoModel'),
}
_LANGUAGE = ('text-generation', 'AutoModelForCausalLM')


def adapter_card(
  *,
  title: str,
  summary: str,
  base_model: str,
  task: str,
  data: str,
  scores: Mapping[str, Mapping[str, float | Interval]],
  hyperparameters: Mapping[str, Any],
  labels: Sequence[str] = (),
  license: str | None = None,
  tags: Sequence[str] = ('lora',),
) -> str:
  """The text of `README.md` for a folder of PEFT files.

  Args:
    title: the name of the adapter.
    summary: one sentence: what it does and what it reached.
    base_model: the Hugging Face id or the folder that the adapter was made for.
    task: what was learned, as a run names it; a language model's by default.
    data: what it was trained on, in words.
    scores: stage ('before', 'after') -> metric -> value, as in `Report`.
    hyperparameters: name -> value.
    labels: names of the classes in the order of the outputs.
    license: SPDX id of the adapter, where it is known.
    tags: what a search on the Hub may find it by.
  """
  pipeline, auto_class = _TASKS.get(task, _LANGUAGE)
  outputs = 1 if task in ('regression', 'reward') else len(labels) if task in _TASKS else 0
  argument = f', num_labels={outputs}' if outputs else ''
  head: dict[str, Any] = {'library_name': 'peft', 'base_model': base_model}
  head |= {'license': license} if license else {}
  head |= {'pipeline_tag': pipeline, 'tags': ['jaxtune', *tags]}
  # A JSON value is also a YAML value, whatever characters it holds.
  front = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
  names = list(dict.fromkeys(name for row in scores.values() for name in row))
  results = [[stage, *(_score(row.get(name)) for name in names)] for stage, row in scores.items()]
  base = json.dumps(base_model, ensure_ascii=False)
  parts = [
    '\n'.join(['---', *front, '---']),
    f'# {_cell(title)}',
    summary,
    f'- Base model: `{_cell(base_model)}`\n- Data: {_cell(data)}'
    + (f'\n- Labels, in the order of the outputs: {_cell(", ".join(labels))}' if labels else ''),
    '## Results',
    _table(['', *names], results),
    '## Training',
    _table(['', 'value'], [[name, str(value)] for name, value in hyperparameters.items()]),
    '## Use',
    f"""With PEFT:

```python
from peft import PeftModel
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
base = {auto_class}.from_pretrained({base}{argument})
model = PeftModel.from_pretrained(base, 'path/of/this/folder')
```

With jaxtune:

```python
import jaxtune as jt

model, params = jt.interop.load({base})
model, params = jt.interop.adapter_head('path/of/this/folder', model, params)
params = jt.interop.load_peft('path/of/this/folder', model, params)
```""",
  ]
  return '\n\n'.join(parts) + '\n'


def _score(score: float | Interval | None) -> str:
  if isinstance(score, Interval):
    return f'{score.value:.3f} ({score.low:.3f} to {score.high:.3f})'
  return '' if score is None else f'{score:.4g}'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(map(_cell, line)) + ' |' for line in lines)


def _cell(text: str) -> str:
  return ' '.join(text.split()).replace('|', '\\|')
