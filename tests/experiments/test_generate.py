"""experiments.generate: answers to a prompt, to a file, and in a conversation."""

import importlib
import json
import pathlib
import re
import shutil
from types import SimpleNamespace

import pytest
from absl import flags

from jaxtune import data, interop, models
from jaxtune.typing import InputError

TEMPLATE = (
  "{% for message in messages %}{{ message['role'][0] + ':' + message['content'] + '\\n' }}"
  "{% endfor %}{{ 'a:' }}"
)


@pytest.fixture(scope='module')
def loaded():
  """The module, and the defaults of its flags by their names in it."""
  before = set(flags.FLAGS)
  module = importlib.import_module('experiments.generate')
  holders = {n: h for n, h in vars(module).items() if isinstance(h, flags.FlagHolder)}
  defaults = {name: holder.default for name, holder in holders.items()}
  for flag in set(flags.FLAGS) - before:  # other scripts have flags of the same names
    delattr(flags.FLAGS, flag)
  return module, defaults


@pytest.fixture
def script(loaded, monkeypatch):
  """`script(model=..., prompt=...)`: the module with these flags, the others at their defaults."""
  module, defaults = loaded

  def prepare(**values):
    given = defaults | {name.upper(): value for name, value in values.items()}
    assert given.keys() == defaults.keys()
    for name, value in given.items():
      monkeypatch.setattr(module, name, SimpleNamespace(value=value))
    return module

  return prepare


@pytest.fixture(scope='module')
def plain(files):
  return str(files / 'decoder')


@pytest.fixture(scope='module')
def chatty(files, tmp_path_factory):
  """The same model with a chat template."""
  folder = tmp_path_factory.mktemp('chatty') / 'decoder'
  shutil.copytree(files / 'decoder', folder)
  (folder / 'chat_template.jinja').write_text(TEMPLATE)
  return str(folder)


def behind(folder, text, **options):
  """What the library writes behind a text."""
  model, params = interop.load(folder)
  tokenizer = interop.load_tokenizer(folder)
  ids = tokenizer.encode(text).ids
  return models.generate(model, params, [ids], tokenizer=tokenizer, eos=[0], **options)[0]


def test_a_text_goes_on(script, plain, capsys):
  module = script(model=plain, prompt='film 3', max_tokens=12)
  assert module.main() == 0
  out, err = capsys.readouterr()
  assert out == behind(plain, 'film 3', max_tokens=12).text + '\n'
  assert err.startswith('12 tokens behind ') and err.endswith(' tokens/s\n')


def test_options_reach_the_draws(script, plain, capsys):
  options = {'temperature': 1.2, 'top_k': 50, 'top_p': 0.95, 'min_p': 0.01}
  script(
    model=plain, prompt='film', max_tokens=12, seed=5, repetition_penalty=1.2, **options
  ).main()
  drawn = models.Sampling(repetition_penalty=1.2, **options)
  want = behind(plain, 'film', max_tokens=12, sampling=drawn, seed=5).text
  assert capsys.readouterr().out == want + '\n'
  script(model=plain, prompt='film', max_tokens=12, seed=5, stop=[want[3]], **options).main()
  assert want[3] not in capsys.readouterr().out


def test_prompts_take_the_chat_template_unless_raw(script, chatty, plain):
  def asked(**values):
    module = script(prompt='', **values)
    speaker = module.load()
    return speaker.tok.encoder.decode(module.ask(speaker, module.conversation('film')))

  assert asked(model=chatty) == 'u:film\na:'
  assert asked(model=chatty, system='be') == 's:be\nu:film\na:'
  assert asked(model=chatty, raw=True) == 'film'
  assert asked(model=plain) == 'film'
  with pytest.raises(InputError, match='no chat template'):
    asked(model=plain, raw=False)


def test_an_empty_text_begins_with_the_token_that_texts_begin_with(script, plain):
  module = script(model=plain)
  speaker = module.load()
  assert module.ask(speaker, module.conversation('')) == [speaker.tok.special.eos]


def test_rows_of_a_file_are_answered_as_alone(script, chatty, tmp_path, capsys):
  rows = [
    {'prompt': 'film', 'id': 7},
    {'messages': [{'role': 'user', 'content': 'good film 2'}, {'role': 'b', 'content': 'é'}]},
    {'prompt': 'a bad, bad film'},
  ]
  source, target = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  options = {'model': chatty, 'input': str(source), 'temperature': 1.0, 'max_tokens': 8}
  assert script(**options, output=str(target), batch_size=2).main() == 0
  assert '3/3 rows' in capsys.readouterr().err
  answered = data.read(target)
  texts = ['u:film\na:', 'u:good film 2\nb:é\na:', 'u:a bad, bad film\na:']
  for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
    drawn = models.Sampling(temperature=1.0)
    want = behind(chatty, text, max_tokens=8, sampling=drawn, seed=i)
    assert answered[i] == {**row, 'answer': want.text, 'reason': want.reason}
  script(**options).main()
  assert capsys.readouterr().out == target.read_text()


def test_a_conversation_keeps_what_was_said(script, chatty, monkeypatch, capsys):
  lines = iter(['film', ' ', 'good', 'x' * 60, 'bad'])
  asked = []

  def line(prompt):
    value = next(lines, None)
    if value is None:
      raise EOFError
    return value

  module = script(model=chatty, max_tokens=4)
  ask = module.ask
  monkeypatch.setattr('builtins.input', line)
  monkeypatch.setattr('sys.stdin', SimpleNamespace(isatty=lambda: True))
  monkeypatch.setattr(
    module, 'ask', lambda speaker, said: (asked.append(list(said)), ask(speaker, said))[1]
  )
  assert module.main() == 0
  assert [m['role'] for m in asked[1]] == ['user', 'assistant', 'user']
  assert asked[1][1]['content'] == behind(chatty, 'u:film\na:', max_tokens=4).text
  # The third did not fit the context of 48 tokens, and the fourth begins anew.
  assert [m['content'] for m in asked[3]] == ['bad']
  err = capsys.readouterr().err
  assert 'the context of the model is 48' in err and 'the conversation begins anew' in err


def test_ctrl_c_ends_an_answer_and_not_the_conversation(script, plain, monkeypatch, capsys):
  module = script(model=plain)
  lines = iter(['film'])
  monkeypatch.setattr('builtins.input', lambda prompt: next(lines))
  monkeypatch.setattr(module, 'say', lambda speaker, said: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(StopIteration):  # it asked for another line
    module.converse(module.load())


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({}, 'give one of --model and --workdir'),
    ({'model': 'a', 'workdir': 'b'}, 'give one of --model and --workdir'),
    ({'model': 'a', 'prompt': 'a', 'input': 'b'}, 'not both'),
    ({'model': 'a', 'output': 'b.jsonl'}, 'it takes --input'),
    ({'model': 'a', 'input': 'b', 'output': 'b.csv'}, 'ends in .jsonl'),
    ({'model': 'a', 'input': 'b', 'output': 'no/such/b.jsonl'}, 'folder that does not exist'),
    ({'workdir': 'a', 'prompt': 'a', 'dtype': 'bfloat16'}, '--dtype takes --model'),
    ({'model': 'a', 'prompt': 'a', 'top_p': 0.0}, 'top_p is 0.0; it must be above 0'),
    ({'model': 'a', 'input': 'no.jsonl'}, 'no.jsonl: no such file'),
    ({'model': 'package://no_such/x.gguf', 'prompt': 'a'}, "'no_such' is not installed"),
    ({'prompt': 'a', 'max_tokens': 0}, 'max_tokens is 0'),
    ({'prompt': 'x' * 99}, 'but the context of the model is 48; shorten it to 47'),
    ({'prompt': 'a', 'stop': ['']}, 'none of them empty'),
  ],
)
def test_bad_flags(script, plain, values, message):
  if 'model' not in values and 'workdir' not in values and values:
    values = {'model': plain} | values
  with pytest.raises(InputError, match=message):
    script(**values).main()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"text": "a"}\n', 'row 1 has neither'),
    ('{"prompt": "a"}\n{"prompt": 3}\n', 'row 2 has neither'),
    ('{"prompt": "a", "answer": "b"}\n', "column 'answer' is one that generate writes"),
    ('{"prompt": "a"}\n{"prompt": "' + 'x' * 90 + '"}\n', 'prompt 2 has'),
  ],
)
def test_bad_rows(script, plain, tmp_path, text, message):
  (tmp_path / 'in.jsonl').write_text(text)
  with pytest.raises(InputError, match=message):
    script(model=plain, input=str(tmp_path / 'in.jsonl')).main()


def test_a_classifier_does_not_go_on(script, finished):
  with pytest.raises(InputError, match='goes on with no text'):
    script(workdir=str(finished), prompt='a').main()


@pytest.mark.slow
def test_the_model_of_a_run_goes_on(script, configure, launch, tmp_path, capsys):
  assert launch(configure('causal_lm'), tmp_path / 'run') == 0
  capsys.readouterr()
  assert script(workdir=str(tmp_path / 'run'), prompt='film 3', max_tokens=5).main() == 0
  assert capsys.readouterr().err.startswith('5 tokens behind')


@pytest.mark.slow
def test_a_small_real_model_knows_the_capital_of_france(shell, smollm2):
  done = shell('generate', f'--model={smollm2}', '--prompt=What is the capital of France?')
  assert done.code == 0, done.err
  assert 'Paris' in done.out and 'tokens/s' in done.err.splitlines()[-1]


@pytest.mark.slow
def test_the_example_of_the_documentation(smollm2, capsys):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'generate.md'
  (block,) = re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
  names: dict = {}
  exec(compile(block.replace("'folder'", repr(str(smollm2))), str(page), 'exec'), names)
  row = names['row']
  assert (row.text, row.tokens[0], row.reason) == ('The capital of France is Paris.', 504, 'eos')
  assert capsys.readouterr().out
