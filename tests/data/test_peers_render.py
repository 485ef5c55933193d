"""Tokens and masks beside those of transformers, and templates beside those that TRL keeps."""

import json
import pathlib

import numpy as np
import pytest

from jaxtune.data import Tokenizer, render
from tests.data import chats
from tests.data.chats import CALLS, MODELS, TOOLS

transformers = pytest.importorskip('transformers')
trl = pytest.importorskip('trl')

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]
FOLDER = pathlib.Path(trl.__file__).parent / 'chat_templates'
PLAIN = [
  {'role': 'user', 'content': 'What is 2 < 3?'},
  {'role': 'assistant', 'content': 'True, and an "é" 🎉.'},
  {'role': 'user', 'content': ' Why?\n'},
  {'role': 'assistant', 'content': 'Because.'},
]
# Where a content begins with line breaks, theirs joins them with the one of the prompt.
TALK = [m if 'content' not in m else {**m, 'content': m['content'].strip()} for m in CALLS]
KEPT = sorted(set(MODELS) - {'chatml', 'mistral_v0_3'})
TRAINING = ('llama3', 'qwen2_5', 'qwen3', 'gemma3', 'phi3')


def theirs(name, template, messages, tools=None):
  tok = chats.byte_level(name)
  model = MODELS[name]
  peer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tok.encoder,
    eos_token=model.eos,
    **({'bos_token': model.bos} if model.bos else {}),
  )
  return peer.apply_chat_template(
    json.loads(json.dumps(messages)),
    tools=tools,
    chat_template=template,
    return_assistant_tokens_mask='generation' in template,
    return_dict=True,
  )


def ours(name, template, messages, tools=None):
  encoder = chats.byte_level(name).encoder
  tok = Tokenizer(encoder, chats.special(name, encoder, template))
  return render(tok, {'messages': messages, 'tools': tools})


@pytest.mark.parametrize('name', KEPT)
def test_templates_are_as_published(name):
  kept = (FOLDER / f'{name}.jinja').read_text(encoding='utf-8')
  assert chats.template(name).rstrip('\n') == kept.rstrip('\n')


@pytest.mark.parametrize('name', MODELS)
def test_the_tokens_of_transformers(name):
  template = chats.template(name)
  for messages, tools in [(PLAIN, None), (TALK, TOOLS)][: 1 + MODELS[name].tools]:
    want = theirs(name, template, messages, tools)['input_ids']
    assert ours(name, template, messages, tools)[0].tolist() == want


@pytest.mark.parametrize('name', TRAINING)
def test_the_masks_of_generation_blocks(name):
  template = (FOLDER / f'{name}_training.jinja').read_text(encoding='utf-8')
  for messages, tools in [(PLAIN, None), (TALK, TOOLS)][: 1 + MODELS[name].tools]:
    want = theirs(name, template, messages, tools)
    tokens, learned = ours(name, template, messages, tools)
    assert tokens.tolist() == want['input_ids']
    mask = np.array(want['assistant_masks'], bool)
    np.testing.assert_array_equal(learned, mask)


@pytest.mark.parametrize('name', TRAINING)
def test_the_same_is_learned_without_blocks(name):
  # The line break behind a turn is in TRL's blocks, and Qwen's thoughts in every turn.
  blocks = (FOLDER / f'{name}_training.jinja').read_text(encoding='utf-8')
  messages = PLAIN[:2]
  tokens, learned = ours(name, blocks, messages)
  found, mask = ours(name, chats.template(name), messages)
  np.testing.assert_array_equal(found, tokens)
  apart = np.flatnonzero(learned != mask)
  names = {chats.byte_level(name).encoder.id_to_token(i) for i in tokens[apart]}
  assert mask.sum() >= 5 and names <= {'Ċ', '<|endoftext|>'}
