"""The preview says what the loss learns, what it sees, where documents end and what is padding."""

import jax.numpy as jnp
import numpy as np

from jaxtune.data import encode_classification, eval_batches, preview, render_many


def test_packed_completions(bytewise, begun):
  rows = [{'prompt': 'ab', 'completion': 'cd'}, {'prompt': 'e\n', 'completion': 'f'}]
  encoded = render_many(begun, rows, max_length=12)
  (batch,) = eval_batches(encoded.examples, 2, max_length=12, pack=True)
  assert preview(batch, bytewise) == '\n'.join(
    [
      'row 0: 12 tokens (5 learned, 6 seen, 1 padding)',
      '  document 1',
      "  seen     '<bos>ab'",
      "  learned  'cd<eos>'",
      '  document 2',
      "  seen     '<bos>e\\n'",
      "  learned  'f<eos>'",
      '  padding  1 tokens',
      'row 1: 12 tokens (0 learned, 11 seen, 1 padding); weight 0: it only fills the batch',
      '  document 1',
      "  seen     '<bos>abcd<eos>'",
      '  document 2',
      "  seen     '<bos>e\\nf<eos>'",
      '  padding  1 tokens',
    ]
  )
  assert preview(batch, bytewise, rows=1) == preview(batch, bytewise).split('\nrow 1')[0]


def test_classification_shows_the_label(wordpiece):
  rows = [{'text': 'a good film', 'y': 'pos'}, {'text': 'bad ' * 100, 'y': 'neg'}]
  encoded = encode_classification(
    rows, wordpiece, text='text', label='y', names=('neg', 'pos'), max_length=120
  )
  (batch,) = eval_batches(encoded.examples, 2, max_length=120)
  batch = {key: jnp.asarray(value) for key, value in batch.items()}
  lines = preview(batch, wordpiece, names=encoded.names).splitlines()
  assert lines[:4] == [
    'row 0: 120 tokens (0 learned, 5 seen, 115 padding)',
    '  label    pos',
    "  seen     '[CLS] a good film [SEP]'",
    '  padding  115 tokens',
  ]
  assert lines[5] == '  label    neg'
  assert ' ... ' in lines[6] and len(lines[6]) < 330
  assert '  label    1' in preview(batch, wordpiece).splitlines()
  batch['label'] = np.array([0.5, 1.5], np.float32)
  assert '  label    0.5' in preview(batch, wordpiece).splitlines()


def test_parts_follow_each_other(bytewise):
  row = np.array([2, 3], np.int32)
  part = {'tokens': row, 'supervised': np.array([False, True])}
  (batch,) = eval_batches([{'chosen': part, 'rejected': part}], 1, max_length=3)
  lines = preview(batch, bytewise).splitlines()
  assert lines[0] == 'row 0, chosen: 3 tokens (1 learned, 1 seen, 1 padding)'
  assert lines[4] == lines[0].replace('chosen', 'rejected')
  assert lines[1:4] == lines[5:] == ["  seen     '!'", "  learned  '\"'", '  padding  1 tokens']


def test_several_classes_of_one_text(bytewise):
  examples = [{'tokens': np.array([2], np.int32), 'label': np.array([1.0, 0.0, 1.0], np.float32)}]
  (batch,) = eval_batches(examples, 1, max_length=2)
  assert '  label    a, c' in preview(batch, bytewise, names=('a', 'b', 'c')).splitlines()
