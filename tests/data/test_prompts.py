"""Prompts to answer: what a completion follows, of texts and of conversations."""

import numpy as np
import pytest
import tokenizers

from jaxtune import data
from jaxtune.typing import InputError

TEMPLATE = (
  '{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)


@pytest.fixture(scope='module')
def tok():
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  encoder = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
  )
  encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  encoder.decoder = tokenizers.decoders.ByteLevel()
  encoder.add_special_tokens(['<user>', '<assistant>', '<end>', '<bos>'])
  encoder.post_processor = tokenizers.processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', encoder.token_to_id('<bos>'))]
  )
  ids = {name: encoder.token_to_id(f'<{name}>') for name in ('end', 'bos')}
  special = data.SpecialTokens(
    bos=ids['bos'], eos=ids['end'], ends=(ids['end'],), chat_template=TEMPLATE
  )
  return data.Tokenizer(encoder, special)


def test_texts_begin_as_the_model_begins_them_and_conversations_end_where_it_answers(tok):
  records = [
    {'prompt': 'two and two', 'answer': '4'},
    {'prompt': [{'role': 'user', 'content': 'hi'}], 'text': 'another column'},
  ]
  found = data.encode_prompts(tok, records, 20).examples
  texts = [tok.encoder.decode(row['tokens'], skip_special_tokens=False) for row in found]
  assert texts == ['<bos>two and two', '<user>hi<end><assistant>']
  assert [int(row['row']) for row in found] == [0, 1]
  batch = next(data.batches(found, 2, max_length=20, seed=0))
  assert batch['tokens'].shape == (2, 20) and batch['row'].dtype == np.int32


@pytest.mark.parametrize(
  ('records', 'message'),
  [
    ([{'prompt': 'a'}, {'prompt': ''}], 'the data: row 2: the prompt is empty'),
    ([{'prompt': 'a' * 30}], 'row 1: the prompt has 31 tokens, and max_length is 20'),
    ([{'question': 'a'}], "row 1 has no column 'prompt'"),
    ([{'prompt': 3}], 'row 1'),
    ([{'prompt': []}], 'row 1'),
  ],
)
def test_bad_prompts_are_one_line(tok, records, message):
  with pytest.raises(InputError, match=message) as error:
    data.encode_prompts(tok, records, 20)
  assert '\n' not in str(error.value)
