"""Preferences as tokens: what is supervised, what is cut, counted and left out, what is refused."""

import numpy as np
import pytest

from jaxtune import data
from jaxtune.data import Row, SpecialTokens, Tokenizer
from jaxtune.typing import InputError

CHATML = (
  "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}<eos>{% endfor %}"
  '{% if add_generation_prompt %}<a>{% endif %}'
)


@pytest.fixture(scope='module')
def tok(bytewise):
  return Tokenizer(bytewise, SpecialTokens(bos=0, eos=1, chat_template=CHATML, ends=(1,)))


def read(tok, part, supervised=False):
  tokens = part['tokens'][part['supervised']] if supervised else part['tokens']
  assert part['tokens'].dtype == np.int32
  return tok.encoder.decode(tokens.tolist(), skip_special_tokens=False)


PAIR = {'prompt': 'Say: ', 'chosen': 'yes', 'rejected': 'no'}


def test_of_a_pair_both_completions_are_supervised(tok):
  (example,) = data.encode_preferences(tok, [PAIR], 20).examples
  assert set(example) == {'chosen', 'rejected'}
  assert read(tok, example['chosen']) == 'Say: yes<eos>'
  assert read(tok, example['chosen'], supervised=True) == 'yes<eos>'
  assert read(tok, example['rejected'], supervised=True) == 'no<eos>'


def test_turns_go_through_the_template(tok):
  turns = {
    'prompt': [{'role': 'user', 'content': 'Say'}],
    'chosen': [{'role': 'assistant', 'content': 'yes'}],
    'rejected': [{'role': 'assistant', 'content': 'no'}],
  }
  (example,) = data.encode_preferences(tok, [turns], 40).examples
  assert read(tok, example['chosen']) == '<u>Say<eos><a>yes<eos>'
  assert read(tok, example['rejected'], supervised=True) == 'no<eos>'


def test_what_is_cut_is_counted_and_what_nothing_tells_apart_is_left_out(tok):
  rows = [
    {'prompt': 'p', 'chosen': 'abcdefgh', 'rejected': 'x'},  # cut and unfinished
    {'prompt': 'p', 'chosen': 'abcdefgh1', 'rejected': 'abcdefgh2'},  # the same behind the cut
    {'prompt': 'a long prompt', 'chosen': 'a', 'rejected': 'b'},  # nothing left
    {'prompt': 'p', 'chosen': '', 'rejected': 'b'},
    {'prompt': 'p', 'chosen': 'c', 'rejected': 'd'},
  ]
  encoded = data.encode_preferences(tok, rows, 6)
  assert [read(tok, e['chosen']) for e in encoded.examples] == ['pabcde', 'pc<eos>']
  assert (encoded.truncated, encoded.unfinished) == (3, 1)
  assert (encoded.empty, encoded.unlearned) == (1, 2)


def test_a_batch_of_pairs_has_two_parts(tok):
  examples = data.encode_preferences(tok, [PAIR, PAIR, PAIR], 20).examples
  batch = data.eval_batches(examples, 2, max_length=16)[-1]
  assert batch['weight'].tolist() == [1, 0]
  for part in ('chosen', 'rejected'):
    assert batch[part]['tokens'].shape == batch[part]['mask'].shape == (2, 16)
    assert batch[part]['supervised'].any(axis=1).tolist() == [True, False]


UNPAIRED = [
  {'prompt': 'A', 'completion': 'one', 'label': True},
  {'prompt': 'A', 'completion': 'two', 'label': False},
  {'prompt': 'B', 'completion': 'six', 'label': 1},
]


def test_mismatched_completions_are_those_of_other_prompts(tok):
  examples = data.encode_unpaired(tok, UNPAIRED, 20).examples
  assert [e['label'].item() for e in examples] == [True, False, True]
  assert examples[0]['label'].dtype == bool
  assert [read(tok, e) for e in examples] == ['Aone<eos>', 'Atwo<eos>', 'Bsix<eos>']
  mismatched = [read(tok, e['mismatched']) for e in examples]
  assert mismatched == ['Asix<eos>', 'Asix<eos>', 'Bone<eos>']
  assert read(tok, examples[2]['mismatched'], supervised=True) == 'one<eos>'


def test_one_prompt_mismatches_nothing(tok):
  with pytest.raises(InputError, match='all 2 rows have the same prompt'):
    data.encode_unpaired(tok, UNPAIRED[:2], 20)
  examples = data.encode_unpaired(tok, UNPAIRED[:2], 20, mismatched=False).examples
  assert set(examples[0]) == {'tokens', 'supervised', 'label'}


def test_rewards_are_of_whole_texts_with_their_margin(tok):
  rows = [{**PAIR, 'margin': 2}, {**PAIR, 'margin': '0.5'}]
  examples = data.encode_rewards(tok, rows, 20).examples
  assert [e['margin'].item() for e in examples] == [2.0, 0.5]
  assert set(examples[0]['chosen']) == {'tokens'}
  assert read(tok, examples[0]['rejected']) == 'Say: no<eos>'


def test_an_encoder_keeps_its_special_tokens(wordpiece):
  tok = Tokenizer(wordpiece)
  rows = [{'prompt': 'a film ', 'chosen': 'i loved', 'rejected': 'i hated very much'}]
  encoded = data.encode_rewards(tok, rows, 6)
  (example,) = encoded.examples
  decoded = [
    wordpiece.decode(example[part]['tokens'].tolist(), skip_special_tokens=False)
    for part in ('chosen', 'rejected')
  ]
  assert decoded == ['[CLS] a film i loved [SEP]', '[CLS] a film i hated [SEP]']
  assert encoded.truncated == 1


@pytest.mark.parametrize(
  'encode, row, message',
  [
    ('preferences', {'prompt': 'p', 'chosen': 'c'}, "b.jsonl: line 7: no 'rejected'; it has"),
    ('preferences', {**PAIR, 'prompt': 'long enough'}, 'no completion to learn from: of 1 rows 0'),
    ('preferences', {**PAIR, 'rejected': 3}, 'is 3, which'),
    ('rewards', {**PAIR, 'margin': 'wide'}, "b.jsonl: line 7: 'margin' is 'wide'"),
    ('rewards', {**PAIR, 'margin': float('nan')}, "'margin' is nan"),
    ('unpaired', {**UNPAIRED[0], 'label': 'good'}, "b.jsonl: line 7: 'label' is 'good'; it must"),
    ('unpaired', {'prompt': 'p', 'completion': 'c'}, "'label' is None"),
    ('unpaired', {**UNPAIRED[0], 'completion': ''}, 'of 1 rows 1 have an empty one'),
  ],
)
def test_bad_records(tok, encode, row, message):
  with pytest.raises(InputError, match=message) as error:
    getattr(data, f'encode_{encode}')(tok, [Row(row, 'b.jsonl: line 7')], 8)
  assert '\n' not in str(error.value)
