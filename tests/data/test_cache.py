"""A cache gives back what was built, bit for bit, until one of its parts has changed."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from jaxtune.data import Encoded, SpecialTokens, Tokenizer, cached
from jaxtune.typing import InputError


def tokens(*ids):
  return np.array(ids, np.int32)


KINDS = {
  'language': [
    {'tokens': tokens(1, 2, 3), 'supervised': np.array([False, True, True])},
    {'tokens': tokens(4), 'supervised': np.array([False])},
  ],
  'classes': [{'tokens': tokens(1, 2), 'label': np.asarray(np.int32(n))} for n in range(3)],
  'classes at once': [{'tokens': tokens(1), 'label': np.float32([0, 1])}] * 2,
  'preference': [
    {
      'chosen': {'tokens': tokens(1, 2), 'reference': np.float32(-1.5)},
      'rejected': {'tokens': tokens(*range(n)), 'reference': np.float32(-2.5)},
    }
    for n in (1, 4)
  ],
  'not in all': [
    {'tokens': tokens(1)},
    {'tokens': tokens(2, 3), 'negative': {'tokens': tokens(5)}},
  ],
  'empty tokens': [{'tokens': tokens()}, {'tokens': tokens()}],
  'nothing': [],
}


def same(a, b):
  if isinstance(a, dict):
    return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
  return a.dtype == b.dtype and a.shape == b.shape and bool(np.all(a == b))


@pytest.mark.parametrize('kind', KINDS)
def test_what_was_built_comes_back(tmp_path, kind):
  encoded = Encoded(KINDS[kind], truncated=2, names=('a', 'b'))
  first, said = cached(tmp_path / 'deep', {'kind': kind}, lambda: encoded)
  assert first is encoded and f'{len(KINDS[kind])} encoded examples, kept in' in said
  again, said = cached(tmp_path / 'deep', {'kind': kind}, lambda: pytest.fail('built again'))
  assert again._replace(examples=[]) == encoded._replace(examples=[])
  assert len(again.examples) == len(encoded.examples)
  assert all(map(same, again.examples, encoded.examples))
  assert 'from the cache' in said
  assert [file.suffix for file in (tmp_path / 'deep').iterdir()] == ['.safetensors']


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6))
def test_any_lengths_come_back(tmp_path_factory, ids):
  folder = tmp_path_factory.mktemp('cache')
  encoded = Encoded([{'tokens': tokens(*row)} for row in ids])
  cached(folder, {}, lambda: encoded)
  again, _ = cached(folder, {}, lambda: pytest.fail('built again'))
  assert all(map(same, again.examples, encoded.examples))


def test_every_part_counts(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('a')
  plain = Tokenizer(tokenizers.Tokenizer(models.WordLevel({'a': 0, 'b': 1}, unk_token='a')))
  other = Tokenizer(tokenizers.Tokenizer(models.WordLevel({'b': 0, 'a': 1}, unk_token='a')))
  templated = Tokenizer(plain.encoder, SpecialTokens(chat_template='{{ messages }}'))
  parts = {'file': path, 'files': [path], 'tokenizer': plain, 'length': 5, 'mixed': {'x': [1.5]}}
  built = []

  def count(changed):
    cached(tmp_path, {**parts, **changed}, lambda: built.append(1) or Encoded([]))
    return len(built)

  assert count({}) == count({}) == 1
  changes = [
    {'length': 6},
    {'length': '5'},
    {'tokenizer': other},
    {'tokenizer': templated},
    {'mixed': {'x': [1.25]}},
    {'files': [path, path]},
    {'more': None},
  ]
  for number, change in enumerate(changes, 2):
    assert count(change) == number
  path.write_text('b')
  assert count({}) == len(changes) + 2


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'emptied', 'pickle'])
def test_a_damaged_cache_is_built_again_and_said(tmp_path, damage):
  encoded = Encoded(KINDS['language'])
  cached(tmp_path, {}, lambda: encoded)
  (path,) = tmp_path.iterdir()
  content = path.read_bytes()
  path.write_bytes(
    {
      'cut': content[:-3],
      'flipped': content[:-1] + bytes([content[-1] ^ 1]),
      'emptied': b'',
      'pickle': b'\x80\x04.',
    }[damage]
  )
  again, said = cached(tmp_path, {}, lambda: encoded)
  assert again is encoded and 'was damaged' in said and 'built again' in said
  assert '\n' not in said and path.read_bytes() == content


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path):
  (tmp_path / 'file').write_text('')
  encoded, said = cached(tmp_path / 'file', {}, lambda: Encoded(KINDS['language']))
  assert len(encoded.examples) == 2 and 'cannot be written' in said


def test_a_failing_build_leaves_nothing(tmp_path):
  with pytest.raises(ZeroDivisionError):
    cached(tmp_path, {}, lambda: 1 / 0)
  assert not list(tmp_path.iterdir())


def test_parts_that_cannot_be_compared(tmp_path):
  with pytest.raises(InputError, match="the part 'tok' is no value that JSON can hold"):
    cached(tmp_path, {'tok': object()}, lambda: Encoded([]))
  with pytest.raises(InputError, match='no such file'):
    cached(tmp_path, {'file': tmp_path / 'none'}, lambda: Encoded([]))
