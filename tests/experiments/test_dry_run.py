"""A dry run shows what would happen and leaves nothing behind."""

import json
import re

import pytest


@pytest.mark.parametrize(
  'task, values, shown',
  [
    ('classification', {}, [r'attn/q/a .*\btrue\b', r'label +(good|bad)', r"seen +'\[CLS\] film"]),
    (
      'causal_lm',
      {'data.prompt': '{text} is ', 'data.completion': 'label'},
      [r"seen +'film \d+ was.* is '", r"learned +'(good|bad)<\|endoftext\|>'", 'supervised'],
    ),
  ],
)
def test_shows_routing_batch_and_memory(task, values, shown, configure, launch, capsys, tmp_path):
  assert launch(configure(task, values), tmp_path / 'run', dry_run=True) == 0
  out = capsys.readouterr().out
  trained, total = re.search(r'([\d,]+) of ([\d,]+) parameters are trained', out).groups()
  assert 0 < int(trained.replace(',', '')) < int(total.replace(',', ''))
  assert 'films.csv: 40 train, 8 valid, 16 test rows' in out
  assert 'tokens int32[8, ' in out
  assert '4 steps of 8 rows' in out
  assert len(re.findall(r'^  \w+ +[\d.]+ MiB$', out, re.MULTILINE)) >= 3
  for pattern in shown:
    assert re.search(pattern, out, re.IGNORECASE), pattern
  assert list(tmp_path.iterdir()) == []


def test_trained_count_is_that_of_lora_and_head(configure, launch, capsys):
  assert launch(configure(), None, dry_run=True) == 0
  rank, width, hidden, layers, classes = 4, 32, 48, 2, 2
  attention, mlp = 4 * rank * (width + width), 2 * rank * (width + hidden)
  adapters = layers * (attention + mlp) + rank * (width + width)  # the pooler has one too
  count = adapters + width * classes + classes
  assert f'\n{count:,} of ' in capsys.readouterr().out


@pytest.mark.slow
def test_a_batch_of_parts(configure, launch, files, tmp_path, capsys):
  rows = [{'prompt': f'film {i} was ', 'chosen': 'good', 'rejected': 'bad'} for i in range(40)]
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  values = {'model': str(files / 'decoder'), 'data.path': str(tmp_path / 'rows.jsonl')}
  assert launch(configure('preference', values), None, dry_run=True) == 0
  assert 'chosen.tokens int32[8, 16]' in capsys.readouterr().out
