"""What the files of encoders may say, and how sentence-transformers makes embeddings."""

import json

import numpy as np
import pytest

from jaxtune import interop, models
from jaxtune.interop.families import FAMILIES
from jaxtune.typing import InputError

RAW = {
  'bert': {
    'vocab_size': 40,
    'hidden_size': 16,
    'intermediate_size': 20,
    'num_hidden_layers': 4,
    'num_attention_heads': 2,
  },
  'distilbert': {'vocab_size': 40, 'dim': 16, 'hidden_dim': 20, 'n_layers': 4, 'n_heads': 2},
}
RAW['roberta'] = RAW['modernbert'] = RAW['bert']


def read(family, **fields):
  return FAMILIES[family].read_config(RAW[family] | fields, 'config.json')


@pytest.mark.parametrize(
  ('family', 'fields', 'words'),
  [
    ('bert', {'position_embedding_type': 'relative_key'}, ['position_embedding_type']),
    ('bert', {'is_decoder': True}, ['is_decoder']),
    ('bert', {'hidden_act': 'mish'}, ['hidden_act', 'mish', 'gelu']),
    ('bert', {'num_attention_heads': 3}, ['16', '3']),
    ('bert', {'type_vocab_size': 0}, ['type_vocab_size']),
    ('bert', {'tie_word_embeddings': 'yes'}, ['tie_word_embeddings', 'yes']),
    ('roberta', {'add_cross_attention': True}, ['add_cross_attention']),
    ('roberta', {'pad_token_id': -1}, ['pad_token_id', '-1']),
    ('roberta', {'max_position_embeddings': 2}, ['max_position_embeddings is 2', 'begin at 2']),
    ('distilbert', {'activation': 'gegelu'}, ['activation', 'gegelu']),
    ('distilbert', {'dim': None}, ["'dim'"]),
    ('distilbert', {'n_heads': 5}, ['16', '5']),
    ('modernbert', {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}, ['rope_scaling']),
    ('modernbert', {'classifier_pooling': 'max'}, ['classifier_pooling', 'max', 'cls, mean']),
    ('modernbert', {'local_attention': 1}, ['local_attention', '1']),
    ('modernbert', {'layer_types': ['full_attention'] * 3}, ['layer_types', '4']),
    ('modernbert', {'layer_types': ['chunked_attention'] * 4}, ['layer_types', 'chunked']),
    ('modernbert', {'classifier_activation': 'mish'}, ['classifier_activation', 'mish']),
    (
      'modernbert',
      {
        'rope_parameters': {
          'full_attention': {'rope_type': 'default', 'partial_rotary_factor': 0.5}
        }
      },
      ['partial_rotary_factor'],
    ),
  ],
)
def test_what_the_encoder_cannot_compute_is_refused_by_name(family, fields, words):
  with pytest.raises(InputError) as error:
    read(family, **fields)
  message = str(error.value)
  assert '\n' not in message and message.startswith('config.json: ')
  for word in words:
    assert word in message, message


def test_what_the_files_leave_out():
  """The families' own defaults; they change the arithmetic."""
  bert, roberta, distilbert = (read(name) for name in ('bert', 'roberta', 'distilbert'))
  assert (bert.positions, bert.types, bert.epsilon, bert.first_position) == (512, 2, 1e-12, 0)
  assert (roberta.positions, roberta.first_position) == (510, 2)
  assert (distilbert.types, distilbert.epsilon, distilbert.pooler) == (0, 1e-12, False)
  modern = read('modernbert')
  assert (modern.window, modern.local) == (64, (False, True, True, False))
  assert (modern.rope.base, modern.local_rope.base, modern.epsilon) == (160000.0, 10000.0, 1e-5)
  assert modern.pooling == 'first' and not modern.norm_bias and not modern.qkv_bias


def test_old_and_new_files_of_modernbert_say_the_same():
  old = {'global_attn_every_n_layers': 2, 'global_rope_theta': 500.0, 'local_rope_theta': 50.0}
  kinds = ['full_attention', 'sliding_attention'] * 2
  bases = {'full_attention': 500.0, 'sliding_attention': 50.0}
  ropes = {name: {'rope_type': 'default', 'rope_theta': base} for name, base in bases.items()}
  assert read('modernbert', **old) == read('modernbert', layer_types=kinds, rope_parameters=ropes)
  same = read('modernbert', **old | {'local_rope_theta': None})  # null: as for the other layers
  assert same.local_rope.base == 500.0


def test_a_pretrained_pooler_is_kept_under_another_head(bert):
  """BERT's own files: masked tokens, and the pooler and head of the next sentence besides."""
  head = 'cls.predictions.transform.'
  extra = {f'{head}{name}': np.ones(16, 'f') for name in ('dense.bias', 'LayerNorm.gamma')}
  extra |= {
    f'{head}LayerNorm.beta': np.zeros(16, 'f'),
    f'{head}dense.weight': np.eye(16, dtype='f'),
  }
  extra |= {'cls.predictions.bias': np.arange(40, dtype='f')}
  next_one = {'cls.seq_relationship.bias': np.zeros(2, 'f')}
  fields = {'architectures': ['BertForMaskedLM'], 'vocab_size': 40}
  with pytest.warns(UserWarning, match='1 tensors are left out.*seq_relationship'):
    model, params = interop.load(bert('bert.{}'.format, extra | next_one, **fields))
  assert model.task == 'masked_lm' and set(params['pooler']) == {'dense', 'dense_bias'}
  np.testing.assert_array_equal(params['head']['dense_bias'], np.arange(40))
  bare = interop.load(bert('bert.{}'.format))[1]
  np.testing.assert_array_equal(params['pooler']['dense'], bare['pooler']['dense'])
  copies = {'cls.predictions.decoder.bias': np.arange(40, dtype='f')}
  copies['cls.predictions.decoder.weight'] = np.array(params['embed']['tokens'])
  interop.load(bert('bert.{}'.format, extra | copies, **fields))
  copies['cls.predictions.decoder.bias'] = np.zeros(40, 'f')
  with pytest.raises(InputError, match='cls.predictions.decoder.bias differs'):
    interop.load(bert('bert.{}'.format, extra | copies, **fields))


def sentences(folder, *kinds, **pooling):
  """A folder of sentence-transformers, but for its model."""
  modules = [
    {
      'idx': i,
      'name': str(i),
      'path': f'{i}_{kind}',
      'type': f'sentence_transformers.models.{kind}',
    }
    for i, kind in enumerate(kinds)
  ]
  (folder / 'modules.json').write_text(json.dumps(modules))
  (folder / '1_Pooling').mkdir(exist_ok=True)
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
  return folder


WHOLE = ('Transformer', 'Pooling', 'Normalize')


@pytest.mark.parametrize(
  ('kinds', 'fields', 'want'),
  [
    (WHOLE, {'pooling_mode_mean_tokens': True, 'pooling_mode_cls_token': False}, ('mean', True)),
    (WHOLE[:2], {'pooling_mode_cls_token': True}, ('first', False)),
    (WHOLE, {'pooling_mode_lasttoken': True, 'include_prompt': True}, ('last', True)),
    (WHOLE[:2], {'pooling_mode': 'cls'}, ('first', False)),
    (WHOLE[:2], {'word_embedding_dimension': 8}, ('mean', False)),
  ],
)
def test_poolings_of_sentence_transformers(tmp_path, kinds, fields, want):
  assert interop.load_pooling(sentences(tmp_path, *kinds, **fields)) == want


def test_poolings_that_are_refused(tmp_path, minilm):
  assert interop.load_pooling(minilm) == ('mean', True)

  def refused(*words):
    with pytest.raises(InputError) as error:
      interop.load_pooling(tmp_path)
    message = str(error.value)
    assert '\n' not in message
    for word in words:
      assert word in message, message

  refused('modules.json', 'models.embed')
  sentences(tmp_path, *WHOLE, pooling_mode_max_tokens=True)
  refused('1_Pooling', 'max', 'cls, mean, lasttoken')
  sentences(tmp_path, *WHOLE, pooling_mode_cls_token=True, pooling_mode_mean_tokens=True)
  refused('cls and mean')
  sentences(tmp_path, *WHOLE, pooling_mode_mean_tokens=True, include_prompt=False)
  refused('include_prompt')
  sentences(tmp_path, 'Transformer', 'Pooling', 'Dense')
  refused('Transformer, Pooling, Dense')
  sentences(tmp_path, 'Transformer')
  refused('Pooling')
  (tmp_path / 'modules.json').write_text('{"type": 3}')
  refused('list of modules')


def test_minilm_embeds_what_means_the_same_nearby(minilm):
  model, params = interop.load(minilm)
  tokenizer = interop.load_tokenizer(minilm)
  tokenizer.enable_padding(pad_id=0)
  texts = ['A man is playing a guitar.', 'Someone plays an instrument.', 'The stock market fell.']
  encodings = tokenizer.encode_batch(texts)
  tokens = np.array([e.ids for e in encodings])
  mask = np.array([e.attention_mask for e in encodings], bool)
  vectors = models.embed(model, params, tokens, mask, *interop.load_pooling(minilm))
  near, far, other = (float(vectors[i] @ vectors[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
  assert near > 0.4 and abs(far) < 0.2 and abs(other) < 0.2
