"""Mixtures keep their shares at every length, repeat from a seed, and go on from a saved place."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.data import mix, shares, stream
from jaxtune.typing import InputError


@given(
  st.dictionaries(st.text('abc', min_size=1), st.floats(1e-3, 1e6), min_size=1, max_size=5),
  st.floats(0.2, 50),
)
def test_shares_are_the_papers(weights, temperature):
  found = shares(weights, temperature)
  w = np.array(list(weights.values()), np.float64)
  expected = np.exp(np.log(w) / temperature - np.log(w.max()) / temperature)
  np.testing.assert_allclose(list(found.values()), expected / expected.sum(), rtol=1e-9)


def test_temperature_goes_from_sizes_to_the_same_of_all():
  sizes = {'a': 900, 'b': 100}
  assert shares(sizes) == pytest.approx({'a': 0.9, 'b': 0.1})
  assert shares(sizes, 2.0)['b'] == pytest.approx(0.25)
  assert shares(sizes, float('inf')) == {'a': 0.5, 'b': 0.5}


def rows(name, count):
  return [(name, n) for n in range(count)]


SOURCES = {'a': rows('a', 30), 'b': rows('b', 10), 'c': rows('c', 7)}


def test_every_prefix_has_the_shares_and_sources_repeat():
  found = list(itertools.islice(mix(SOURCES, {'a': 1, 'b': 2, 'c': 1}, seed=3), 400))
  for length in (4, 40, 400):
    counts = Counter(name for name, _ in found[:length])
    assert counts == {'a': length // 4, 'b': length // 2, 'c': length // 4}
  for name, source in SOURCES.items():
    own = [row for row in found if row[0] == name]
    for start in range(0, len(own) - len(source) + 1, len(source)):
      assert sorted(own[start : start + len(source)]) == source
  first, second = ([r for r in found if r[0] == 'b'][i : i + 10] for i in (0, 10))
  assert first != second
  again = list(itertools.islice(mix(SOURCES, {'a': 1, 'b': 2, 'c': 1}, seed=3), 400))
  other = list(itertools.islice(mix(SOURCES, {'a': 1, 'b': 2, 'c': 1}, seed=4), 400))
  assert found == again != other


def test_sizes_are_the_weights_by_default():
  found = Counter(name for name, _ in itertools.islice(mix(SOURCES), 470))
  assert {
    name: abs(found[name] - 10 * len(SOURCES[name])) <= 2 for name in SOURCES
  } == dict.fromkeys(SOURCES, True)


def test_lists_and_streams_go_on_from_a_saved_place(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(json.dumps({'n': n}) for n in range(5)))
  mixture = mix({'file': stream(path), 'list': SOURCES['a']}, {'file': 2, 'list': 1}, temperature=2)
  records = iter(mixture)
  for _ in range(17):
    next(records)
  state = json.loads(json.dumps(records.get_state()))
  assert len(json.dumps(state)) < 1000
  expected = list(itertools.islice(records, 50))
  fresh = iter(mixture)
  fresh.set_state(state)
  assert list(itertools.islice(fresh, 50)) == expected
  other = iter(mix({'file': stream(path), 'list': SOURCES['a']}, {'file': 1, 'list': 1}))
  with pytest.raises(InputError, match='the saved place is one in a mixture of'):
    other.set_state(state)


@pytest.mark.parametrize(
  ('options', 'parts'),
  [
    ({'weights': {'a': 1, 'b': 0, 'c': 1}}, ["the weight of 'b' is 0", 'leave the source out']),
    ({'weights': {'a': 1, 'b': -2.5, 'c': 1}}, ["'b' is -2.5"]),
    ({'weights': {'a': 1, 'b': float('nan'), 'c': 1}}, ["'b' is nan"]),
    ({'weights': {'a': 1, 'b': float('inf'), 'c': 1}}, ["'b' is inf"]),
    ({'weights': {'a': 1, 'b': '2', 'c': 1}}, ["'b' is '2'"]),
    ({'weights': {'a': 1, 'b': 1}}, ["weights are for 'a', 'b'", "'c'"]),
    ({'temperature': 0}, ['temperature is 0']),
    ({'temperature': -1}, ['temperature is -1']),
  ],
)
def test_bad_mixtures(options, parts):
  with pytest.raises(InputError) as error:
    mix(SOURCES, **options)
  assert '\n' not in str(error.value)
  assert [part for part in parts if part not in str(error.value)] == []


def test_bad_sources(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"n": 1}')
  with pytest.raises(InputError, match="mix: 'b' is empty"):
    mix({'a': [1], 'b': []})
  with pytest.raises(InputError, match='no sources'):
    mix({})
  with pytest.raises(InputError, match="'a' is a stream of unknown size; give weights"):
    mix({'a': stream(path), 'b': [1]})
