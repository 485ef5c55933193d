"""Every common format becomes the canonical records of its kind; an error names the place."""

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.data import Row, normalize, read, recognize, stream
from jaxtune.typing import InputError


def turns(*contents, first='user'):
  roles = ('user', 'assistant') if first == 'user' else ('assistant', 'user')
  return [{'role': roles[n % 2], 'content': text} for n, text in enumerate(contents)]


SYSTEM = {'role': 'system', 'content': 'S'}
HUMAN = {'from': 'human', 'value': 'q'}
CALL = {'type': 'function', 'function': {'name': 'f', 'arguments': {'x': 1}}}
TOOL = {'type': 'function', 'function': {'name': 'f', 'parameters': {}}}
ALPACA = 'Below is an instruction that describes a task'
GOOD = {
  'text': ({'text': 'a', 'source': 'b'}, 'text', {'text': 'a'}),
  'labelled': ({'text': 'a', 'label': 'b'}, 'labelled', {'text': 'a', 'label': 'b'}),
  'sst2': ({'idx': 0, 'sentence': 'a', 'label': 1}, 'labelled', {'text': 'a', 'label': 1}),
  'many labels': ({'text': 'a', 'labels': ['b']}, 'labelled', {'text': 'a', 'label': ['b']}),
  'completion': (
    {'prompt': 'a', 'completion': 'b'},
    'completion',
    {'prompt': 'a', 'completion': 'b'},
  ),
  'completion of turns': (
    {'prompt': turns('q'), 'completion': turns('a', first='assistant')},
    'completion',
    {'prompt': turns('q'), 'completion': turns('a', first='assistant')},
  ),
  'system column': (
    {'system_prompt': 'S', 'question': 'q', 'response': 'a'},
    'completion',
    {'prompt': [SYSTEM, *turns('q')], 'completion': turns('a', first='assistant')},
  ),
  'Dolly': (
    {'instruction': 'q', 'context': 'c', 'response': 'a', 'category': 'x'},
    'completion',
    {'prompt': 'q\n\nc', 'completion': 'a'},
  ),
  'Alpaca': (
    {'instruction': 'I', 'input': '', 'output': 'O', 'text': 'all'},
    'completion',
    {
      'prompt': f'{ALPACA}. Write a response that appropriately completes the request.\n\n'
      '### Instruction:\nI\n\n### Response:',
      'completion': 'O',
    },
  ),
  'Alpaca with input': (
    {'instruction': 'I', 'input': 'N', 'output': 'O'},
    'completion',
    {
      'prompt': f'{ALPACA}, paired with an input that provides further context. Write a response '
      'that appropriately completes the request.\n\n### Instruction:\nI\n\n### Input:\nN\n\n'
      '### Response:',
      'completion': 'O',
    },
  ),
  'prompt and response': (
    {'prompt': 'q', 'response': 'a'},
    'completion',
    {'prompt': 'q', 'completion': 'a'},
  ),
  'labels as text': (
    {'text': 'a', 'label': '["b", "c"]'},
    'labelled',
    {'text': 'a', 'label': ['b', 'c']},
  ),
  'preferences of turns as text': (
    {
      'prompt': json.dumps(turns('q')),
      'chosen': json.dumps(turns('a', first='assistant')),
      'rejected': json.dumps(turns('b', first='assistant')),
    },
    'preference',
    {
      'prompt': turns('q'),
      'chosen': turns('a', first='assistant'),
      'rejected': turns('b', first='assistant'),
    },
  ),
  'implicit prompts of turns as text': (
    {'chosen': json.dumps(turns('q', 'a')), 'rejected': json.dumps(turns('q', 'b'))},
    'preference',
    {
      'prompt': turns('q'),
      'chosen': turns('a', first='assistant'),
      'rejected': turns('b', first='assistant'),
    },
  ),
  'lists that are no turns': (
    {'prompt': '[1, 2]', 'completion': '[]'},
    'completion',
    {'prompt': '[1, 2]', 'completion': '[]'},
  ),
  'messages': ({'messages': turns('q', 'a')}, 'messages', {'messages': turns('q', 'a')}),
  'messages as text': (
    {'messages': json.dumps(turns('q', 'a'))},
    'messages',
    {'messages': turns('q', 'a')},
  ),
  'text parts': (
    {
      'messages': [
        {'role': 'user', 'content': [{'type': 'text', 'text': 'q'}] * 2},
        turns('', 'a')[1],
      ]
    },
    'messages',
    {'messages': turns('qq', 'a')},
  ),
  'tools': (
    {
      'messages': [
        turns('q')[0],
        {'role': 'assistant', 'content': None, 'tool_calls': [{'id': '1', **CALL}]},
        {'role': 'tool', 'tool_call_id': '1', 'content': '', 'name': None},
        turns('', 'a')[1],
      ],
      'tools': json.dumps([TOOL['function']]),
    },
    'messages',
    {
      'messages': [
        turns('q')[0],
        {'role': 'assistant', 'content': '', 'tool_calls': [{'id': '1', **CALL}]},
        {'role': 'tool', 'content': '', 'tool_call_id': '1'},
        turns('', 'a')[1],
      ],
      'tools': [TOOL],
    },
  ),
  'arguments as text': (
    {
      'messages': [
        turns('q')[0],
        {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f', 'arguments': '{"x": 1}'}}]},
      ]
    },
    'messages',
    {
      'messages': [
        turns('q')[0],
        {
          'role': 'assistant',
          'content': '',
          'tool_calls': [{'function': {'name': 'f', 'arguments': {'x': 1}}}],
        },
      ]
    },
  ),
  'ShareGPT': (
    {'id': 'x', 'system': 'S', 'conversations': [HUMAN, {'from': 'gpt', 'value': 'a'}]},
    'messages',
    {'messages': [SYSTEM, *turns('q', 'a')]},
  ),
  'ShareGPT with calls': (
    {
      'conversations': [
        HUMAN,
        {'from': 'function_call', 'value': '{"name": "f", "arguments": {"x": 1}}'},
        {'from': 'observation', 'value': '2'},
        {'from': 'gpt', 'value': 'a'},
      ],
      'tools': '[]',
    },
    'messages',
    {
      'messages': [
        turns('q')[0],
        {'role': 'assistant', 'content': '', 'tool_calls': [CALL]},
        {'role': 'tool', 'content': '2'},
        turns('', 'a')[1],
      ],
    },
  ),
  'preference': (
    {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'},
    'preference',
    {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'},
  ),
  'preference with a system': (
    {'system': 'S', 'question': 'q', 'chosen': 'a', 'rejected': 'b'},
    'preference',
    {
      'prompt': [SYSTEM, *turns('q')],
      'chosen': turns('a', first='assistant'),
      'rejected': turns('b', first='assistant'),
    },
  ),
  'UltraFeedback': (
    {
      'prompt': 'q',
      'messages': turns('q', 'a'),
      'chosen': turns('q', 'a'),
      'rejected': turns('q', 'b'),
      'score': 1.0,
    },
    'preference',
    {
      'prompt': turns('q'),
      'chosen': turns('a', first='assistant'),
      'rejected': turns('b', first='assistant'),
    },
  ),
  'whole conversations beside their prompt': (
    {'prompt': turns('q'), 'chosen': turns('q', 'a'), 'rejected': turns('q', 'b')},
    'preference',
    {
      'prompt': turns('q'),
      'chosen': turns('a', first='assistant'),
      'rejected': turns('b', first='assistant'),
    },
  ),
  'implicit prompt': (
    {'chosen': turns('q', 'a', 'r', 'c'), 'rejected': turns('q', 'a', 'r', 'd')},
    'preference',
    {
      'prompt': turns('q', 'a', 'r'),
      'chosen': turns('c', first='assistant'),
      'rejected': turns('d', first='assistant'),
    },
  ),
  'HH': (
    {
      'chosen': '\n\nHuman: q\n\nAssistant: I can',
      'rejected': '\n\nHuman: q\n\nAssistant: I cannot',
    },
    'preference',
    {'prompt': '\n\nHuman: q\n\nAssistant:', 'chosen': ' I can', 'rejected': ' I cannot'},
  ),
  'implicit prompt of text': (
    {'chosen': 'The sky is blue.', 'rejected': 'The sky is blank.'},
    'preference',
    {'prompt': 'The sky is', 'chosen': ' blue.', 'rejected': ' blank.'},
  ),
  'KTO': (
    {'prompt': 'p', 'completion': 'a', 'label': True},
    'unpaired',
    {'prompt': 'p', 'completion': 'a', 'label': True},
  ),
  'KTO in a table': (
    {'prompt': 'p', 'completion': 'a', 'label': '0'},
    'unpaired',
    {'prompt': 'p', 'completion': 'a', 'label': False},
  ),
  'pair': ({'query': 'a', 'positive': 'b'}, 'pair', {'anchor': 'a', 'positive': 'b'}),
  'triplet': (
    {'anchor': 'a', 'positive': 'b', 'negative': 'c'},
    'triplet',
    {'anchor': 'a', 'positive': 'b', 'negative': 'c'},
  ),
  'STS': (
    {'sentence1': 'a', 'sentence2': 'b', 'score': '0.5'},
    'scored_pair',
    {'anchor': 'a', 'positive': 'b', 'label': 0.5},
  ),
  'tags': (
    {'id': '0', 'tokens': ['a', 'b'], 'ner_tags': [0, 1]},
    'tags',
    {'tokens': ['a', 'b'], 'tags': [0, 1]},
  ),
  'words with labels': (
    {'words': '["a"]', 'labels': '["B-x"]'},
    'tags',
    {'tokens': ['a'], 'tags': ['B-x']},
  ),
  'prompt': (
    {'prompt': 'p', 'truth': '4'},
    'prompt',
    {'prompt': 'p', 'truth': '4'},
  ),
}


@pytest.mark.parametrize('name', GOOD)
def test_known_formats(name):
  record, kind, expected = GOOD[name]
  before = pickle.dumps(record)
  made = normalize([record])
  assert (made.kind, made.records) == (kind, [expected])
  assert pickle.dumps(record) == before
  again = normalize(made.records, kind=kind)
  if not ('tools' in expected or 'Alpaca' in name):
    assert again.records == made.records  # canonical records are their own canonical form
  assert '\n' not in made.said and made.said[0].islower()


def test_what_is_said():
  said = {name: recognize([record]).said for name, (record, _, _) in GOOD.items()}
  assert said['text'] == 'plain text (text); not used: source'
  assert said['Alpaca'].startswith(
    'prompts with completions (instruction, input, output), in Alpaca'
  )
  assert 'from ShareGPT (from and value)' in said['ShareGPT']
  assert said['HH'].endswith('; the prompt is what chosen and rejected begin with')
  assert said['pair'] == "pairs of texts that belong together (anchor from 'query', positive)"
  assert said['prompt'] == 'prompts to answer (prompt); kept beside: truth'


def test_the_kind_and_the_columns_can_be_set():
  rows = [{'title': 't', 'body': 'b', 'stars': 4, 'answer': 'a', 'question': 'q'}]
  made = normalize(rows, columns={'text': '{title}: {body}'}, kind='text')
  assert made.records == [{'text': 't: b'}]
  assert "text from '{title}: {body}'" in made.said
  made = normalize(rows, columns={'text': 'body', 'label': 'stars'}, kind='labelled')
  assert made.records == [{'text': 'b', 'label': 4}]
  assert normalize(rows, kind='completion').records == [{'prompt': 'q', 'completion': 'a'}]
  assert normalize(rows, kind='messages').records == [{'messages': turns('q', 'a')}]
  made = normalize(rows, columns={'prompt': 'question', 'completion': 'body'})
  assert (made.kind, made.records) == ('completion', [{'prompt': 'q', 'completion': 'b'}])
  made = normalize(rows, kind='prompt')
  assert made.records == [{'title': 't', 'body': 'b', 'stars': 4, 'answer': 'a', 'prompt': 'q'}]
  alpaca = [{'instruction': 'I', 'input': 'N', 'output': 'O'}]
  assert normalize(alpaca, kind='messages').records == [{'messages': turns('I\n\nN', 'O')}]


USER, ASSISTANT = turns('q', 'a')
BAD = {
  'missing key': ([{'text': 'a'}, {'txt': 'b'}], {}, ['row 2: text is missing; the row has txt']),
  'null': ([{'text': 'a'}, {'text': None}], {}, ['row 2: text is null']),
  'wrong type': ([{'text': 'a'}, {'text': 5}], {}, ['row 2: text is 5', 'not a text']),
  'messages no list': ([{'messages': 'hello'}], {}, ['messages is "hello"', 'no list of turns']),
  'messages broken JSON': ([{'messages': '[{]'}], {}, ['messages: not JSON']),
  'turn no object': ([{'messages': ['hello']}], {}, ['messages[0] is "hello"']),
  'no turns': ([{'messages': []}], {}, ['messages has no turns']),
  'empty turn': ([{'messages': turns('q', ' ')}], {}, ['messages[1]', 'assistant is empty']),
  'no role': ([{'messages': [{'content': 'x'}]}], {}, ['messages[0]', 'without role', 'content']),
  'unknown role': (
    [{'messages': [USER, {'role': 'robot', 'content': 'x'}]}],
    {},
    ['messages[1]', '"robot" is unknown', 'assistant'],
  ),
  'assistant first': ([{'messages': [ASSISTANT]}], {}, ['messages[0]', 'before any user']),
  'two systems': (
    [{'messages': [SYSTEM, SYSTEM, USER, ASSISTANT]}],
    {},
    ['messages[1]', 'a second system message'],
  ),
  'late system': ([{'messages': [USER, SYSTEM, ASSISTANT]}], {}, ['messages[1]', 'a system']),
  'tool without call': (
    [{'messages': [USER, {'role': 'tool', 'content': 'x'}, ASSISTANT]}],
    {},
    ['messages[1]', 'calls none'],
  ),
  'ends with user': ([{'messages': turns('q', 'a', 'r')}], {}, ['last turn is by user']),
  'content no text': (
    [{'messages': [{'role': 'user', 'content': {'a': 1}}]}],
    {},
    ['messages[0]: the content is {"a": 1}'],
  ),
  'no content': ([{'messages': [{'role': 'user'}]}], {}, ['messages[0]: the content is null']),
  'image': (
    [{'messages': [{'role': 'user', 'content': [{'type': 'image', 'url': 'x'}]}]}],
    {},
    ["the content[0] is of type 'image'", 'only text'],
  ),
  'broken call': (
    [{'messages': [USER, {'from': 'function_call', 'value': 'f(x)'}]}],
    {},
    ['messages[1]: the function call: not JSON'],
  ),
  'call of nothing': (
    [{'messages': [USER, {'role': 'assistant', 'tool_calls': [{'x': 1}]}]}],
    {},
    ['messages[1]: tool_calls: {"x": 1} calls no function'],
  ),
  'arguments no object': (
    [{'messages': [USER, {'role': 'assistant', 'tool_calls': [{'name': 'f', 'arguments': [1]}]}]}],
    {},
    ['arguments of f are [1]'],
  ),
  'calls no list': (
    [{'messages': [USER, {'role': 'assistant', 'tool_calls': 5}]}],
    {},
    ['messages[1]: tool_calls is 5, which is no list of calls'],
  ),
  'tool no function': (
    [{'messages': turns('q', 'a'), 'tools': [{'x': 1}]}],
    {},
    ['tools[0]: {"x": 1} is no function'],
  ),
  'duplicate ids': (
    [{'text': 'a', 'id': 7}, {'text': 'b', 'id': 8}, {'text': 'c', 'id': 7}],
    {},
    ['row 3: the id 7 is also that of d.csv: row 1'],
  ),
  'lone surrogate': ([{'text': 'a\ud800'}], {}, ['text holds half a character', "'a\\ud800'"]),
  'label as text': (
    [{'sentence1': 'a', 'sentence2': 'b', 'label': 'entailment'}],
    {},
    ['label is "entailment"', 'not a finite number'],
  ),
  'label no number': (
    [{'sentence1': 'a', 'sentence2': 'b', 'score': 'nan'}],
    {},
    ['label is "nan"'],
  ),
  'KTO label': (
    [{'prompt': 'p', 'completion': 'c', 'label': 'good'}],
    {},
    ['label is "good"', 'true or false'],
  ),
  'label an object': ([{'text': 'p', 'label': {'a': 1}}], {}, ['label is {"a": 1}']),
  'chosen = rejected': (
    [{'prompt': 'p', 'chosen': 'c', 'rejected': 'c'}],
    {},
    ['chosen and rejected are the same'],
  ),
  'chosen = rejected, implicit': (
    [{'chosen': turns('q', 'a'), 'rejected': turns('q', 'a')}],
    {},
    ['chosen and rejected are the same'],
  ),
  'nothing in common': (
    [{'chosen': 'yes', 'rejected': 'no'}],
    {},
    ['nothing in common', "columns={'prompt': ...}"],
  ),
  'other questions': (
    [{'chosen': turns('q', 'a'), 'rejected': turns('r', 'a')}],
    {},
    ['nothing in common'],
  ),
  'a prefix': (
    [{'chosen': turns('q', 'a'), 'rejected': turns('q')}],
    {},
    ['rejected, after what both begin with, is empty'],
  ),
  'text and turns': (
    [{'chosen': 'a b', 'rejected': turns('q', 'a')}],
    {},
    ['one of chosen and rejected is a text'],
  ),
  'only the prompt again': (
    [{'prompt': turns('q'), 'chosen': turns('q', 'a'), 'rejected': turns('q')}],
    {},
    ['rejected adds nothing to the prompt'],
  ),
  'ends with user, rejected': (
    [{'prompt': turns('q'), 'chosen': turns('a', first='assistant'), 'rejected': turns('x')}],
    {},
    ['rejected ends with user'],
  ),
  'empty chosen': ([{'prompt': 'p', 'chosen': '', 'rejected': 'c'}], {}, ['chosen is empty']),
  'empty anchor': ([{'anchor': ' ', 'positive': 'c'}], {}, ['anchor is empty']),
  'positive = negative': (
    [{'anchor': 'a', 'positive': 'c', 'negative': 'c'}],
    {},
    ['positive and negative are the same'],
  ),
  'unequal tags': ([{'tokens': ['a', 'b'], 'tags': [0]}], {}, ['2 tokens, but 1 tags']),
  'no tokens': ([{'tokens': [], 'tags': []}], {}, ['no tokens']),
  'tag no name': ([{'tokens': ['a'], 'tags': [0.5]}], {}, ['tags[0] is 0.5']),
  'token no text': ([{'tokens': ['a', None], 'tags': [0, 1]}], {}, ['tokens[1] is null']),
  'prompt ends with assistant': (
    [{'prompt': turns('q', 'a')}],
    {},
    ['prompt: the last turn is by assistant'],
  ),
  'several tags': (
    [{'tokens': ['a'], 'pos_tags': [0], 'ner_tags': [0]}],
    {},
    ['tags could be pos_tags or ner_tags', "columns={'tags': 'ner_tags'}"],
  ),
  'answer': (
    [{'question': 'q', 'answer': 'a'}],
    {},
    ['question, answer could be completion or prompt; set the kind'],
  ),
  'two kinds': (
    [{'messages': turns('q', 'a'), 'prompt': 'p', 'completion': 'c'}],
    {},
    ['could be messages or completion'],
  ),
  'no kind': ([{'a': 1, 'b': 2}], {}, ['no known kind', 'a, b', 'columns=']),
  'unknown kind': ([{'text': 'a'}], {'kind': 'txt'}, ["'txt' is unknown", 'preference']),
  'kind lacks a column': (
    [{'text': 'a'}],
    {'kind': 'preference'},
    ['preference needs prompt and chosen and rejected, but the columns are text'],
  ),
  'unknown column': (
    [{'texts': 'a'}],
    {'columns': {'text': 'text'}},
    ["no column 'text'; it has texts; did you mean 'texts'?"],
  ),
  'unknown field': (
    [{'text': 'a', 'x': 'b'}],
    {'columns': {'body': 'x'}, 'kind': 'text'},
    ["columns names 'body', which text does not have"],
  ),
  'broken template': ([{'text': 'a'}], {'columns': {'text': '{text'}}, ['no template']),
  'template without its column': (
    [{'a': 'b'}, {'c': 'd'}],
    {'columns': {'text': '{a}!'}, 'kind': 'text'},
    ['row 2: a is missing'],
  ),
  'template over a null': (
    [{'a': 'b', 'c': None}],
    {'columns': {'text': '{a} {c}'}},
    ['row 1: c is null'],
  ),
  'template of another form': (
    [{'a': 'b'}],
    {'columns': {'text': '{a:d}'}},
    ["row 1: '{a:d}' cannot be filled"],
  ),
  'prompt no text': (
    [{'prompt': 3, 'completion': 'a'}],
    {},
    ['row 1: prompt is 3, which is neither a text nor a list of turns'],
  ),
  'system no text': (
    [{'messages': turns('q', 'a'), 'system': 3}],
    {},
    ['row 1: system is 3, which is not a text'],
  ),
  'score without end': (
    [{'anchor': 'a', 'positive': 'b', 'label': 10**400}],
    {},
    ['row 1: label is 1000', 'not a finite number'],
  ),
  'texts alone': (['a', 'b'], {}, ['d.csv: row 1 is "a", no record', 'give dicts']),
  'a text among records': ([{'text': 'a'}] * 100 + ['b'], {}, ['d.csv: row 101 is "b", no record']),
  'nothing': ([], {}, ['no records']),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name):
  records, options, parts = BAD[name]
  with pytest.raises(InputError) as error:
    normalize(records, source='d.csv', **options)
  message = str(error.value)
  assert '\n' not in message
  assert [part for part in parts if part not in message] == []
  if 'kind' not in message and len(records) == 1:
    assert message.startswith('d.csv')


def test_errors_name_the_line_and_streams_do_so_too(tmp_path):
  path = tmp_path / 'a.jsonl'
  good, bad = ({'messages': turns('q', text)} for text in ('a', ''))
  path.write_text('\n\n'.join(map(json.dumps, [good, good, bad])))
  with pytest.raises(InputError, match=r'a\.jsonl: line 5: messages\[1\]: the turn of the assist'):
    normalize(read(path))
  made = normalize(stream(path))
  records = iter(made.records)
  assert made.kind == 'messages' and next(records) == good
  state = records.get_state()
  assert next(records).place == f'{path}: line 3'
  records.set_state(state)
  assert next(records) == good
  with pytest.raises(InputError, match='line 5'):
    next(records)


def test_nulls_of_typed_columns_are_no_values():
  turn = {'role': 'user', 'content': 'q', 'tool_calls': None, 'name': None}
  arguments = {'x': 1, 'y': None}
  call = {
    'role': 'assistant',
    'content': None,
    'tool_calls': [{'name': 'f', 'arguments': arguments}],
  }
  made = normalize([{'messages': [turn, call], 'tools': None}]).records[0]
  assert made == {
    'messages': [USER, {'role': 'assistant', 'content': '', 'tool_calls': [CALL]}],
  }


words = st.text('ab \n', min_size=1).filter(str.strip)


@given(st.lists(words, min_size=1, max_size=4), st.booleans(), words, words)
def test_implicit_prompts_lose_and_add_nothing(contents, system, one, other):
  shared = [SYSTEM] * system + turns(*contents)[: len(contents) // 2 * 2] + turns('q')
  chosen, rejected = ([*shared, {'role': 'assistant', 'content': text}] for text in (one, other))
  record = {'chosen': chosen, 'rejected': rejected}
  if one == other:
    with pytest.raises(InputError):
      normalize([record])
    return
  made = normalize([record]).records[0]
  assert made['prompt'] == shared
  assert [*made['prompt'], *made['chosen']] == chosen
  assert [*made['prompt'], *made['rejected']] == rejected


@given(st.text('ab '), st.text('ab '), st.text('ab '))
def test_implicit_prompts_of_text_end_where_a_word_does(shared, one, other):
  try:
    made = normalize([{'chosen': shared + one, 'rejected': shared + other}]).records[0]
  except InputError:
    return
  assert made['prompt'] + made['chosen'] == shared + one
  assert made['prompt'] + made['rejected'] == shared + other
  assert made['chosen'][0] == ' ' == made['rejected'][0]


values = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(0, 3)
  | st.floats()
  | st.sampled_from(['', 'a', '[', '{}']),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(['name', 'function', 'type', 'text', 'arguments']), inner)
    | st.lists(
      st.dictionaries(
        st.sampled_from(['role', 'content', 'from', 'value', 'tool_calls']),
        inner | st.sampled_from(['user', 'assistant', 'tool', 'system', 'gpt', 'function_call']),
      ),
      max_size=3,
    )
  ),
  max_leaves=8,
)


def spots(value, path=()):
  yield path
  if isinstance(value, dict | list):
    for key in value if isinstance(value, dict) else range(len(value)):
      yield from spots(value[key], (*path, key))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_value_of_any_other_kind_is_one_line(name, data):
  record, kind, _ = copy.deepcopy(GOOD[name])
  *path, last = data.draw(st.sampled_from([spot for spot in spots(record) if spot]))
  target = record
  for key in path:
    target = target[key]
  target[last] = data.draw(values)
  try:
    made = normalize([record], kind=kind)
  except InputError as error:
    assert '\n' not in str(error)
    return
  assert normalize(made.records, kind=kind).kind == kind


def test_real_reviews_are_texts_with_labels(reviews):
  made = normalize(read(reviews)[:2000])
  assert (made.kind, made.said) == ('labelled', 'texts with labels (text, label); not used: source')
  assert isinstance(made.records[0], Row)
  assert made.records[0].place == f'{reviews}: line 2'
