"""What is learned of a record is exactly what is said in it, in the tokens that inference has."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import interop
from jaxtune.data import SpecialTokens, Tokenizer, render, render_chat, render_many
from jaxtune.data.pieces import encode
from jaxtune.typing import InputError
from tests.data import chats
from tests.data.chats import CALLS, MODELS, TOOLS, call

TOKENIZERS = {name: chats.byte_level(name) for name in MODELS}


def runs(tok, rendered):
  """The texts of consecutive learned tokens."""
  tokens, learned = rendered
  assert tokens.dtype == np.int32 and learned.dtype == np.bool_ and tokens.shape == learned.shape
  groups = itertools.groupby(range(len(tokens)), lambda i: bool(learned[i]))
  parts = [tokens[list(group)].tolist() for kind, group in groups if kind]
  return [tok.encoder.decode(ids, skip_special_tokens=False) for ids in parts]


def text(tok, rendered):
  return tok.encoder.decode(rendered[0].tolist(), skip_special_tokens=False)


def said(name, contents):
  """What a model learns of its turns, by what its card says of the template."""
  model = MODELS[name]
  shown = [content.strip() if model.trims else content for content in contents]
  if name == 'qwen3':  # the last turn has its thoughts, here none
    shown[-1] = '<think>\n\n</think>\n\n' + shown[-1].lstrip('\n')
  lead = ' ' if name == 'mistral_v0_3' else ''
  return [lead + words + model.closes for words in shown]


def words(name):
  model = MODELS[name]
  own = [t for t in model.tokens if t != '</think>']  # Qwen drops what is ahead of that
  bits = [*own, 'assistant', 'user\n', '\n', ' ', '  ', '\t', 'é', '🎉', "{{ '", '\\n', '"']
  return st.lists(st.sampled_from(bits) | st.text(max_size=3), max_size=4).map(''.join)


def conversations(name):
  def build(draw):
    word = words(name)
    turns = draw(st.integers(1, 3))
    messages = []
    if name not in ('mistral_v0_3', 'gemma3') and draw(st.booleans()):
      messages.append({'role': 'system', 'content': draw(word)})
    for _ in range(turns):
      messages.append({'role': 'user', 'content': draw(word)})
      messages.append({'role': 'assistant', 'content': draw(word)})
    return messages

  return st.composite(build)()


@pytest.mark.parametrize('name', MODELS)
@settings(max_examples=8)
@given(data=st.data())
def test_exactly_what_the_assistant_says_is_learned(name, data):
  check(name, data)


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_exactly_what_the_assistant_says_is_learned_often(name, data):
  check(name, data)


def check(name, data):
  tok = TOKENIZERS[name]
  messages = data.draw(conversations(name))
  contents = [m['content'] for m in messages if m['role'] == 'assistant']
  rendered = render(tok, {'messages': messages})
  assert runs(tok, rendered) == said(name, contents)
  assert text(tok, rendered) == render_chat(tok.special, messages, add_generation_prompt=False)
  last = render(tok, {'messages': messages}, 'last')
  assert runs(tok, last) == said(name, contents)[-1:]
  prompt = render_chat(tok.special, messages[:-1])
  given_ids = tok.encoder.encode(prompt, add_special_tokens=False).ids
  if messages[-1]['content'].strip():
    assert last[0][~np.cumsum(last[1]).astype(bool)].tolist() == given_ids
  answer = render(tok, {'prompt': messages[:-1], 'completion': messages[-1:]})
  np.testing.assert_array_equal(answer, last)


@pytest.mark.parametrize('name', [name for name, model in MODELS.items() if model.tools])
def test_calls_of_tools_are_learned_and_results_are_not(name):
  tok = TOKENIZERS[name]
  arguments = '{"city": "Zürich \\"ZH\\"", "days": [1, 2]}'
  wanted = {
    'llama3_1': f'{{"name": "weather", "parameters": {arguments}}}',
    'qwen2_5': f'<tool_call>\n{{"name": "weather", "arguments": {arguments}}}\n</tool_call>',
    'mistral_v0_3': f'[TOOL_CALLS] [{{"name": "weather", "arguments": {arguments}, '
    '"id": "abcdefghi"}]',
  }
  wanted['qwen3'] = wanted['qwen2_5']
  expected = said(name, [m.get('content', '') for m in CALLS if m['role'] == 'assistant'])
  expected[1] = wanted[name] + MODELS[name].closes
  record = {'messages': CALLS, 'tools': TOOLS}
  assert runs(tok, render(tok, record)) == expected
  thoughts = '<think>\n\n</think>\n\n' * (name == 'qwen3')
  first = runs(tok, render(tok, {**record, 'messages': CALLS[:4]}))
  assert first == [expected[0], thoughts + expected[1]]


def test_arguments_may_be_json_and_tools_too():
  tok = TOKENIZERS['qwen2_5']
  messages = [CALLS[2], {'role': 'assistant', 'tool_calls': call(city='Bern')}]
  written = [{'id': 'a', 'function': {'name': 'weather', 'arguments': '{"city": "Bern"}'}}]
  as_text = [CALLS[2], {'role': 'assistant', 'content': None, 'tool_calls': written}]
  want = render(tok, {'messages': messages, 'tools': TOOLS})
  got = render(tok, {'messages': as_text, 'tools': json.dumps(TOOLS)})
  np.testing.assert_array_equal(got, want)


def test_thoughts_are_learned_where_the_template_writes_them():
  tok = TOKENIZERS['qwen3']
  thought = {'role': 'assistant', 'content': '<think>\nHm.\n</think>\n\nYes.'}
  messages = [CALLS[0], thought, CALLS[2], thought]
  assert runs(tok, render(tok, {'messages': messages}, 'last')) == [
    '<think>\nHm.\n</think>\n\nYes.<|im_end|>'
  ]
  with pytest.raises(InputError, match=r"leaves out '<think>.* of message 2 .*supervise='last'"):
    render(tok, {'messages': messages})
  apart = {'role': 'assistant', 'content': 'Yes.', 'reasoning_content': 'Hm.'}
  assert runs(tok, render(tok, {'messages': [CALLS[0], apart]})) == [
    '<think>\nHm.\n</think>\n\nYes.<|im_end|>'
  ]


def test_a_prompt_that_is_rewritten_when_answered():
  # Mistral's template has the words of the system ahead of the last question, if nothing follows.
  tok = TOKENIZERS['mistral_v0_3']
  messages = [{'role': 'system', 'content': 'Be brief.'}, *CALLS[:3], CALLS[5]]
  rendered = render(tok, {'messages': messages}, 'last')
  assert runs(tok, rendered) == [' It is sunny.</s>']
  assert '[INST] Be brief.\n\nThe weather' in text(tok, rendered)
  with pytest.raises(InputError, match=r"'Be brief.' of message 1 \(system\).*supervise='last'"):
    render(tok, {'messages': messages})


def test_a_real_model(smollm2):
  tok = interop.tokenizer(smollm2)
  messages = [CALLS[0], {'role': 'assistant', 'content': '\nHello! '}, CALLS[2], CALLS[5]]
  rendered = render(tok, {'messages': messages})
  assert runs(tok, rendered) == ['\nHello! <|im_end|>', 'It is sunny.<|im_end|>']
  assert text(tok, rendered) == render_chat(tok.special, messages, False)
  assert rendered[0][0] == tok.special.bos != rendered[0][1]


GENERATION = """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}
{%- generation %}A: {{ m.content | trim }}{{ eos_token }}{% endgeneration %}
{% else %}U: {{ m.content }}
{% endif %}{% endfor %}{% if add_generation_prompt %}{% endif %}"""


def test_blocks_of_the_template_are_what_is_learned():
  tokenizer = TOKENIZERS['llama3'].encoder
  tok = Tokenizer(tokenizer, chats.special('llama3', tokenizer, GENERATION))
  messages = [CALLS[0], CALLS[1], CALLS[2], CALLS[5]]
  both = ['A: Hello!<|eot_id|>', 'A: It is sunny.<|eot_id|>']
  assert runs(tok, render(tok, {'messages': messages})) == both
  assert runs(tok, render(tok, {'messages': messages}, 'last')) == both[1:]
  assert runs(tok, render(tok, {'prompt': messages[:3], 'completion': messages[3:]})) == both[1:]
  quiet = GENERATION.replace('{{ m.content | trim }}', '')
  with pytest.raises(InputError, match=r"leaves out 'Hello! ' of message 2"):
    tok = Tokenizer(tokenizer, chats.special('llama3', tokenizer, quiet))
    render(tok, {'messages': messages})


TURN = '<|im_start|>{{ m.role }}\n{{ m.content }}{{ m.tool_calls }}<|im_end|>\n'
DROPS = {
  'system': ("{% if m.role != 'system' %}" + TURN + '{% endif %}', "'Be brief.' of message 1"),
  'user': ("{% if m.role != 'user' %}" + TURN + '{% endif %}', "'Weather\\?' of message 2"),
  'tool': ("{% if m.role != 'tool' %}" + TURN + '{% endif %}', "'sunny' of message 4"),
  'assistant': ("{% if m.role != 'assistant' %}" + TURN + '{% endif %}', '.* of message [35]'),
  'tools': (TURN, "the tool 'rain'"),
  'blocks': (
    "{% if m.role == 'assistant' %}{% generation %}" + TURN + '{% endgeneration %}{% endif %}',
    "'Be brief.' of message 1",
  ),
}


@pytest.mark.parametrize('supervise', ['assistant', 'last', 'all'])
@pytest.mark.parametrize('name', DROPS)
def test_nothing_is_left_out_in_silence(name, supervise):
  body, lost = DROPS[name]
  template = '{% for m in messages %}' + body + '{% endfor %}'
  template += '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
  tok = Tokenizer(TOKENIZERS['chatml'].encoder, SpecialTokens(chat_template=template))
  function = {'name': 'weather', 'arguments': {'city': 'Rome'}}
  messages = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Weather?'},
    {'role': 'assistant', 'content': '', 'tool_calls': [{'function': function}]},
    {'role': 'tool', 'content': 'sunny'},
    {'role': 'assistant', 'content': 'Good.'},
  ]
  record = {'messages': messages, **({'tools': [{'name': 'rain'}]} if name == 'tools' else {})}
  with pytest.raises(InputError, match=f'leaves out {lost}|writes nothing of message 5'):
    render(tok, record, supervise)


def test_templates_that_ask_for_content_beside_calls(smollm2):
  """A turn of calls alone is told from a template that refuses it."""
  calls = [{'function': {'name': 'weather', 'arguments': {}}}]
  messages = [CALLS[0], {'role': 'assistant', 'content': '', 'tool_calls': calls}]
  with pytest.raises(InputError, match="leaves out 'weather' of message 2"):
    render(interop.tokenizer(smollm2), {'messages': messages})


def test_plain_words_as_a_template():
  template = '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}'
  template += '{% if add_generation_prompt %}assistant:{% endif %}'
  tok = TOKENIZERS['llama3']
  tok = Tokenizer(tok.encoder, SpecialTokens(chat_template=template))
  assert runs(tok, render(tok, {'messages': CALLS[:4:2] + CALLS[5:6]})) == [' It is sunny.']


def test_text_and_completion(bytewise):
  tok = Tokenizer(bytewise, SpecialTokens(eos=1))
  rendered = render(tok, {'text': 'abc'})
  assert (text(tok, rendered), rendered[1].tolist()) == ('abc<eos>', [False, True, True, True])
  pair = {'prompt': 'ab', 'completion': 'c'}
  assert runs(tok, render(tok, pair)) == ['c<eos>']
  assert runs(tok, render(tok, pair, 'all')) == ['bc<eos>']
  assert text(tok, render(tok, {'text': 'abc<eos>'})) == 'abc<eos>'


def test_bos_is_written_once_and_only_if_the_tokenizer_writes_it(bytewise):
  own = tokenizers.Tokenizer.from_str(bytewise.to_str())
  own.post_processor = tokenizers.processors.TemplateProcessing(
    single='<bos> $A <eos>', special_tokens=[('<bos>', 0), ('<eos>', 1)]
  )
  for encoder, start in ((own, '<bos>'), (bytewise, '')):
    tok = Tokenizer(encoder, SpecialTokens(bos=0, eos=1))
    assert text(tok, render(tok, {'text': 'abc'})) == f'{start}abc<eos>'
    assert text(tok, render(tok, {'text': '<bos>abc<eos>'})) == '<bos>abc<eos>'
    assert text(tok, render(tok, {'prompt': 'a', 'completion': 'b'})) == f'{start}ab<eos>'
  tok = Tokenizer(own, chats.special('llama3', own)._replace(bos=0))
  assert render(tok, {'messages': CALLS[:2]})[0].tolist().count(0) == 0


def test_no_token_crosses_the_border():
  tok = TOKENIZERS['phi3']
  prompt, completion = {'prompt': 'x ', 'completion': 'and'}, {'prompt': 'x', 'completion': ' and'}
  tokens = [[tok.encoder.id_to_token(i) for i in render(tok, r)[0]] for r in (prompt, completion)]
  assert tokens == [['x', 'Ġ', 'an', 'd', '<|endoftext|>'], ['x', 'Ġan', 'd', '<|endoftext|>']]


@pytest.mark.parametrize('scheme', ['prepend', 'always', 'first', 'never'])
@pytest.mark.parametrize('name', ['mistral_v0_3', 'phi3'])
@settings(max_examples=8)
@given(data=st.data())
def test_tokenizers_that_put_a_space_ahead(name, scheme, data):
  tok = chats.sentencepiece(name, scheme)
  messages = [{'role': 'user', 'content': data.draw(words(name))}]
  messages.append({'role': 'assistant', 'content': data.draw(words(name))})
  tokens, learned = render(tok, {'messages': messages})
  prompt = render_chat(tok.special, messages[:1])
  whole = tok.encoder.encode(render_chat(tok.special, messages, False), add_special_tokens=False)
  count = int(np.argmax(learned))
  assert tokens[:count].tolist() == tok.encoder.encode(prompt, add_special_tokens=False).ids
  crossed = any(start < len(prompt) < end for start, end in whole.offsets)
  assert crossed or tokens.tolist() == whole.ids
  closes = tok.encoder.token_to_id(MODELS[name].closes)
  assert learned[count:].sum() == 1 + len(tokens) - count - tokens[::-1].tolist().index(closes) - 1


def test_many_are_one_by_one(smollm2):
  tok = interop.tokenizer(smollm2)
  records = [
    {'messages': CALLS[:2]},
    {'text': 'Once upon a time.'},
    {'prompt': 'Q: ', 'completion': 'A'},
    {'prompt': 'Q', 'completion': CALLS[1:2]},
  ]
  for one, of_many in zip(records, render_many(tok, records), strict=True):
    np.testing.assert_array_equal(render(tok, one), of_many)


def test_what_is_cut_is_counted(bytewise):
  tok = Tokenizer(bytewise, SpecialTokens(eos=1))
  rows = [('ab', 'cd'), ('abcdef', 'g'), ('a', ''), ('a', 'b')]
  records = [{'prompt': p, 'completion': c} for p, c in rows]
  encoded = render_many(tok, records, max_length=4)
  assert [len(e['tokens']) for e in encoded.examples] == [4, 3]
  assert encoded[1:4] == (2, 1, 1) and encoded.unfinished == 1
  blocks = render_many(tok, [{'text': 'abcdef'}], max_length=4)
  assert [e['supervised'].tolist() for e in blocks.examples] == [[False, *[True] * 3]] * 2
  assert blocks.truncated == blocks.unfinished == 0
  with pytest.raises(InputError, match='2 rows 1 have an empty completion, and 1 lose all'):
    render_many(tok, records[1:3], max_length=4)


@settings(max_examples=20)
@given(st.lists(st.text('ab \n', max_size=6), min_size=1, max_size=4))
def test_pieces_are_the_whole_text(parts):
  joined = ''.join(parts)
  borders = [0, *itertools.accumulate(map(len, parts))]
  spans = list(zip(borders[:-1], borders[1:], strict=True))[1::2]
  ((ids, learned),) = encode(TOKENIZERS['phi3'].encoder, [(joined, spans)])
  assert TOKENIZERS['phi3'].encoder.decode(ids) == joined
  kept = TOKENIZERS['phi3'].encoder.decode([i for i, k in zip(ids, learned, strict=True) if k])
  assert kept == ''.join(parts[1::2])


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    ({'messages': CALLS[:1]}, 'no supervised token: no turn of the 1 messages is of the role'),
    ({'messages': []}, "'messages' is .* no list of messages"),
    ({'messages': ['hi']}, 'messages must be dicts'),
    ({'messages': [{'content': 'x'}]}, 'message 1 has no role'),
    ({'prompt': CALLS[:1], 'completion': CALLS[2:3]}, 'no supervised token'),
    ({'prompt': 'a', 'completion': 3}, "'completion' is 3"),
    ({'text': None}, "'text' is None, which is not a string"),
    ({'text': 'a\ud800'}, 'half a character'),
    ({'text': ''}, 'no supervised token'),
    ({'q': 'a'}, 'a record of q cannot be rendered'),
    ('abc', 'is not a record'),
    (
      {'messages': [CALLS[0], {'role': 'assistant', 'content': '', 'tool_calls': ['x']}]},
      "message 2: the tool call 'x' is no function",
    ),
    (
      {
        'messages': [
          CALLS[0],
          {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f', 'arguments': '{'}}]},
        ]
      },
      "message 2: arguments: '{' is not JSON",
    ),
  ],
)
def test_bad_records_are_one_line(record, message):
  with pytest.raises(InputError, match=message) as error:
    render(TOKENIZERS['qwen2_5'], record)
  assert '\n' not in str(error.value)


def test_errors_name_the_row():
  records = [{'text': 'a'}, {'text': 3}]
  with pytest.raises(InputError, match="^rows.jsonl: row 2: 'text' is 3"):
    render_many(TOKENIZERS['qwen2_5'], records, source='rows.jsonl')


def test_bad_choices():
  with pytest.raises(InputError, match="supervise is 'user'; it is one of assistant, last"):
    render(TOKENIZERS['qwen2_5'], {'text': 'a'}, 'user')
  with pytest.raises(InputError, match='leaves out .weather. of message 4'):
    messages = [{'content': '', **message} for message in CALLS]
    render(TOKENIZERS['llama3'], {'messages': messages})
