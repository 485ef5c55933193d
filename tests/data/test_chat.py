"""Chat templates: text beside what transformers writes, and templates that go wrong."""

import importlib.util
import json

import pytest
import tokenizers

from jaxtune import interop
from jaxtune.data import SpecialTokens, render_chat
from jaxtune.typing import InputError

CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
  "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
  {% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
  {% set messages = messages[1:] %}
{% else %}
  {% set system = '' %}
{% endif %}
{% for message in messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if message['role'] == 'user' %}
    {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() }}
    {{- ' [/INST]' -}}
  {% else %}
    {%- generation %}
    {{- ' ' + message['content'] + ' ' + eos_token }}
    {%- endgeneration %}
  {% endif %}
{% endfor %}
"""
TOOLS = """{%- if tools %}
{{- '<tools>' }}
  {%- for tool in tools %}
    {%- if tool.name == 'hidden' %}{% continue %}{% endif %}
{{ tool | tojson }}
  {%- endfor %}
{{ tools[0] | tojson(indent=2) }}</tools>
{%- endif %}
{%- set ns = namespace(last='') %}
{%- for message in messages %}
  {%- set ns.last = message.role %}
  {%- if message.content is defined %}{{ message.content }}{% else %}(nothing){% endif %}
  {%- if loop.index > 3 %}{% break %}{% endif %}
{%- endfor %}
{{ ns.last }} {{ documents is none }} {{ strftime_now('%Y') | length }} {{ missing is defined }}
{{ dict(a=1).items() | list }}
"""
TEMPLATES = {'chatml': CHATML, 'llama2': LLAMA2, 'tools': TOOLS}
CONVERSATIONS = {
  'one': [{'role': 'user', 'content': ' What is 2 < 3 & "é"? '}],
  'system': [
    {'role': 'system', 'content': 'Be <brief>.'},
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hello 🎉\n'},
    {'role': 'user', 'content': 'Bye'},
  ],
}
TEXTS = {'bos_token': '<s>', 'eos_token': '</s>'}
SCHEMAS = [
  {'name': 'weather', 'parameters': {'city': {'type': 'string', 'note': "<city's name> é"}}},
  {'name': 'hidden'},
]


def special(template, **texts):
  return SpecialTokens(chat_template=template, texts=texts or TEXTS)


def test_the_template_of_a_real_model(smollm2):
  text = render_chat(interop.special_tokens(smollm2), CONVERSATIONS['one'])
  assert text == (
    '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face'
    '<|im_end|>\n<|im_start|>user\n What is 2 < 3 & "é"? <|im_end|>\n<|im_start|>assistant\n'
  )
  said = interop.load_tokenizer(smollm2).encode(text, add_special_tokens=False).ids
  assert said[:2] == [1, 9690] and said.count(1) == 3 and said.count(2) == 2


def test_special_tokens_and_blocks():
  text = render_chat(special(LLAMA2), CONVERSATIONS['system'], add_generation_prompt=False)
  assert text == (
    '<s>[INST] <<SYS>>\nBe <brief>.\n<</SYS>>\n\nHi [/INST] Hello 🎉\n </s><s>[INST] Bye [/INST]'
  )


def test_tools_are_json_and_loops_have_continue_and_break():
  text = render_chat(special(TOOLS), CONVERSATIONS['one'], tools=SCHEMAS)
  assert (
    """{"name": "weather", "parameters": {"city": {"type": "string", "note": "<city's""" in text
  )
  assert 'hidden' not in text and '\n  "name": "weather"' in text


@pytest.mark.parametrize(
  ('template', 'messages', 'message'),
  [
    (None, CONVERSATIONS['one'], 'the model has no chat template'),
    ('a\n{% if %}', CONVERSATIONS['one'], 'chat template is broken in line 2'),
    ('{% nothing %}', CONVERSATIONS['one'], "broken in line 1: Encountered unknown tag 'nothing'"),
    (LLAMA2, CONVERSATIONS['one'] * 2, 'refuses these messages: Conversation roles must alternate'),
    (CHATML, [{'role': 'user'}], "refuses these messages: .* has no attribute 'content'"),
    (LLAMA2, [], 'refuses these messages: list object has no element 0'),
    ('{{ 1 / 0 }}', [], 'refuses these messages: division by zero'),
    ('{{ messages.append(1) }}', [], 'refuses these messages: .*unsafe'),
    ("{{ ''.__class__.__mro__ }}", [], 'refuses these messages: .*unsafe'),
    ('{{ range(10**9) | list }}', [], 'refuses these messages: Range too big'),
    ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', [], 'refuses .* recursion'),
    (CHATML, ['hello'], 'messages must be dicts of role and content'),
    (CHATML, [{'role': 'user', 'content': object()}], 'JSON values'),
  ],
)
def test_what_goes_wrong_is_one_line(template, messages, message):
  with pytest.raises(InputError, match=message) as error:
    render_chat(special(template), messages)
  assert '\n' not in str(error.value)


def test_a_template_cannot_change_the_messages():
  messages = [{'role': 'user', 'content': 'x', 'tool_calls': None}]
  template = "{{ messages[0].tool_calls is defined }} {{ messages[0].update({'content': 'y'}) }}"
  with pytest.raises(InputError, match='unsafe'):
    render_chat(special(template), messages)
  assert render_chat(special(template[:39]), messages) == 'False'
  assert messages[0]['content'] == 'x'


@pytest.mark.peers
@pytest.mark.filterwarnings('ignore')
@pytest.mark.skipif(not importlib.util.find_spec('transformers'), reason='needs transformers')
@pytest.mark.parametrize('prompted', [True, False])
@pytest.mark.parametrize('conversation', CONVERSATIONS)
@pytest.mark.parametrize('template', [*TEMPLATES, 'smollm2'])
def test_transformers_writes_the_same(template, conversation, prompted, smollm2):
  import transformers

  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TEXTS
  )
  if template == 'smollm2':
    text = interop.special_tokens(smollm2).chat_template
  else:
    text = TEMPLATES[template]
  want = theirs.apply_chat_template(
    CONVERSATIONS[conversation],
    tools=SCHEMAS,
    chat_template=text,
    add_generation_prompt=prompted,
    tokenize=False,
  )
  got = render_chat(special(text), CONVERSATIONS[conversation], prompted, SCHEMAS)
  assert got == want and len(got) > 30


def test_the_special_tokens_of_a_folder(tmp_path):
  tokens = ['<s>', '</s>', '<turn>', '<unk>']
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.add_special_tokens(tokens)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  templates = [{'name': 'tool_use', 'template': 'T'}, {'name': 'default', 'template': CHATML}]
  files = {
    'tokenizer_config': {
      'bos_token': {'content': '<s>', 'lstrip': False},
      'eos_token': '</s>',
      'unk_token': '<unk>',
      'chat_template': templates,
    },
    'config': {'eos_token_id': 1},
    'generation_config': {'eos_token_id': [1, 2]},
  }
  for name, values in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(values))
  found = interop.special_tokens(tmp_path)
  assert found[:5] == (0, 1, None, CHATML, (1, 2))
  assert found.texts == {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  for name in ('tokenizer_config', 'generation_config'):
    (tmp_path / f'{name}.json').unlink()
  (tmp_path / 'config.json').write_text(json.dumps({'bos_token_id': 0, 'eos_token_id': [1, 2]}))
  found = interop.special_tokens(tmp_path)
  assert found == (0, 1, None, None, (1, 2), {'bos_token': '<s>', 'eos_token': '</s>'})


def test_the_special_tokens_of_a_gguf(smollm2):
  found = interop.special_tokens(smollm2)
  assert found.ends == (found.eos,) == (2,)
  assert found.texts == {
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
    'pad_token': '<|im_end|>',
  }
