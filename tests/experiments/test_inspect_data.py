"""The inspection shows what the loss will see, in the terminal and on a page."""

import importlib
import json
import re
from types import SimpleNamespace

import pytest
import tokenizers
from absl import flags
from tokenizers import decoders, models, pre_tokenizers

from jaxtune.typing import InputError

CHATS = [
  {
    'messages': [
      {'role': 'user', 'content': 'Is 1 <b>film</b> good?'},
      {'role': 'assistant', 'content': '[bold]Yes,\nit was.'},
    ]
  },
  {
    'messages': [
      {'role': 'user', 'content': 'And 2?'},
      {'role': 'assistant', 'content': 'No.'},
    ]
  },
]
CHOICES = [{'prompt': 'Film 1 was', 'chosen': ' great', 'rejected': ' dull'}]
TEMPLATE = (
  '{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}'
  '{% if add_generation_prompt %}assistant: {% endif %}'
)


@pytest.fixture(scope='module')
def inspect():
  """`inspect(path=..., model=...)`: what it prints with these flags, the others at defaults."""
  before = set(flags.FLAGS)
  module = importlib.import_module('experiments.inspect_data')
  holders = {n: h for n, h in vars(module).items() if isinstance(h, flags.FlagHolder)}
  defaults = {name: holder.default for name, holder in holders.items()}
  for flag in set(flags.FLAGS) - before:  # other scripts have flags of the same names
    delattr(flags.FLAGS, flag)

  def run(capsys, **values):
    given = {name.upper(): str(v) if name == 'path' else v for name, v in values.items()}
    with pytest.MonkeyPatch.context() as patch:
      for name, value in {**defaults, **given}.items():
        patch.setattr(module, name, SimpleNamespace(value=value))
      assert module.main() == 0
    return capsys.readouterr().out

  return run


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A tokenizer with a chat template."""
  folder = tmp_path_factory.mktemp('model')
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(alphabet)}, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(['<|endoftext|>'])
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {'eos_token': '<|endoftext|>', 'chat_template': TEMPLATE}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return str(folder)


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_conversations(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'chats.jsonl', CHATS)
  folder = tmp_path / 'w'
  shown = inspect(capsys, path=path, model=model, max_length=100, workdir=str(folder))
  assert 'conversations' in shown and f'{path}: line 1' in shown
  assert "seen     'user: Is 1 <b>film</b> good?<|endoftext|>\\nassistant: '" in shown
  assert "learned  '[bold]Yes,\\nit was.<|endoftext|>'" in shown
  assert 'document 1\n' in shown and re.search(r'padding  \d+ tokens of padding', shown)
  assert '2 records' in shown and 'first fit' in shown
  page = (folder / 'inspect.html').read_text()
  learned = ''.join(re.findall(r'<i class="learned">(.*?)</i>', page, re.S))
  assert '[bold]Yes,<span class="break">↵</span>\nit was.&lt;|endoftext|&gt;' in learned
  assert (
    '<b>' not in page and '<script' not in page and '<svg' in page and 'class="changed"' in page
  )


def test_what_is_cut_is_shown_and_told(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'chats.jsonl', CHATS)
  shown = inspect(capsys, path=path, model=model, max_length=45, pack='none')
  assert re.search(r"^cut      '.*was.<\|endoftext\|>", shown, re.M)
  assert 'warning: at 45 tokens 1 of 2 are cut: 1 answers lose their end' in shown


def test_documents_go_on_in_the_next_row(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'rows.jsonl', [{'text': 'film was good'}])
  shown = inspect(capsys, path=path, model=model, max_length=8, pack='none')
  assert "learned  'ilm was good<|endoftext|>'" in shown and not re.search('^cut  ', shown, re.M)


def test_preferences_stand_beside_each_other(inspect, model, tmp_path, capsys):
  shown = inspect(capsys, path=write(tmp_path / 'choices.jsonl', CHOICES), model=model)
  assert re.search(r'chosen +\| rejected', shown)
  assert re.search(r"learned +' great<\|endoftext\|>' +\| learned +' dull<\|endoftext\|>'", shown)
  assert '2 texts of 1 records' in shown


def test_colours(inspect, model, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  shown = inspect(capsys, path=write(tmp_path / 'chats.jsonl', CHATS), model=model, rows=1)
  assert '\x1b[' in shown and '↵' in shown
  plain = re.sub(r'\x1b\[[0-9;]*m', '', shown)
  assert 'assistant: [bold]Yes,↵\nit was.<|endoftext|>↵' in plain


@pytest.mark.parametrize(
  ('row', 'kind'),
  [
    ({'text': 'film 1 was good'}, 'text'),
    ({'text': 'film 1 was good', 'label': 'good'}, 'labelled'),
    ({'prompt': 'film', 'completion': ' good'}, 'completion'),
    ({'anchor': 'film', 'positive': 'good', 'negative': 'bad'}, 'triplet'),
    ({'prompt': 'film', 'completion': 'x', 'label': True}, 'unpaired'),
    ({'tokens': ['film', 'x'], 'tags': ['O', 'B']}, 'tags'),
  ],
)
def test_every_kind(inspect, minilm, model, tmp_path, capsys, row, kind):
  path = write(tmp_path / 'rows.jsonl', [row] * 3)
  source = str(minilm) if kind in ('labelled', 'tags') else model
  shown = inspect(capsys, path=path, model=source, max_length=20)
  assert 'line 1 (' in shown and 'max_length' in shown
  assert ("label '" in shown) == (kind == 'labelled')


def test_tagged_words_have_the_spaces_that_a_run_gives_them(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'rows.jsonl', [{'tokens': ['film', 'x'], 'tags': ['O', 'B']}])
  shown = inspect(capsys, path=path, model=model)
  assert re.search(r"learned  'f'\s+seen     'ilm'\s+learned  ' '\s+seen     'x'", shown)


def test_empty_completions_are_told(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'rows.jsonl', [{'prompt': 'film', 'completion': c} for c in (' x', '')])
  assert 'warning: 1 of 2 have nothing to learn' in inspect(capsys, path=path, model=model)


def test_what_cannot_be_used_is_told(inspect, model, tmp_path, capsys):
  turns = [{'messages': [{'role': 'user', 'content': 'And 3?'}]}, {'messages': 3}]
  path = tmp_path / 'chats.jsonl'
  path.write_text('\n'.join(['no JSON', *map(json.dumps, [*CHATS, *turns])]))
  out = ' '.join(inspect(capsys, path=path, model=model).split())
  assert 'warning: 3 records could not be used and were left out' in out
  for said in (
    'line 1: not JSON',
    'line 4: messages: the last turn is by user',
    'line 5: messages',
  ):
    assert f'chats.jsonl: {said}' in out


def test_bad_input(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'rows.jsonl', [{'messages': [{'role': 'user', 'content': 'x'}]}])
  with pytest.raises(InputError, match='line 1'):
    inspect(capsys, path=path, model=model, workdir=str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()
  with pytest.raises(InputError, match="--columns: 'prompt' is not FIELD=COLUMN"):
    inspect(capsys, path=path, model=model, columns=['prompt'])
  with pytest.raises(InputError, match='no such file'):
    inspect(capsys, path=tmp_path / 'nothing.jsonl', model=model)


def test_columns_and_quantiles(inspect, model, tmp_path, capsys):
  path = write(tmp_path / 'rows.jsonl', [{'q': 'film ' * n, 'a': 'good'} for n in range(1, 40)])
  columns = ['prompt=q', 'completion=a']
  shown = inspect(capsys, path=path, model=model, columns=columns, rows=0)
  assert '39 records' in shown and re.search(r'shortest \d+, median \d+', shown)


@pytest.mark.slow
def test_the_command(shell, smollm2, tmp_path):
  path = write(tmp_path / 'chats.jsonl', CHATS)
  done = shell('inspect_data', f'--path={path}', f'--model={smollm2}')
  assert done.code == 0 and "learned  'No.<|im_end|>'" in done.out, done.err
  done = shell('inspect_data', '--help')
  for flag in ('--path', '--model', '--supervise', '--max_length', '--workdir'):
    assert flag in done.out
  done = shell('inspect_data', f'--path={path}')
  assert done.code == 1 and done.err.count('\n') == 1
