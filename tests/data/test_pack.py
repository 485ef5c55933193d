"""Packed rows hold every document once, apart from all others, and change no loss."""

import collections
import functools
import itertools
import json

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import data, losses, models
from jaxtune.data import batches, eval_batches, pack, steps_per_epoch
from jaxtune.typing import InputError

T = 12
LENGTHS = st.lists(st.integers(1, T), min_size=1, max_size=60)
LONG = st.lists(st.integers(1, 5 * T), min_size=1, max_size=40)
STRATEGIES = ['first_fit', 'best_fit', 'concat']


def documents(lengths, vocabulary=10**6):
  """Document i holds tokens 100 i + 1, 100 i + 2, ...; all are supervised, even the first."""
  return [
    {
      'tokens': (np.arange(1, n + 1, dtype=np.int32) + 100 * i) % vocabulary,
      'supervised': np.ones(n, bool),
    }
    for i, n in enumerate(lengths)
  ]


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def pieces(batch):
  """The pieces of a packed batch, by its segments alone."""
  for row in np.flatnonzero(batch['weight']):
    for segment in range(1, batch['segments'][row].max() + 1):
      inside = batch['segments'][row] == segment
      assert np.ptp(np.flatnonzero(inside)) + 1 == inside.sum()
      piece = {key: batch[key][row][inside] for key in ('tokens', 'positions', 'supervised')}
      assert piece['positions'].tolist() == list(range(inside.sum()))
      assert piece['supervised'].tolist() == [i > 0 for i in range(inside.sum())]
      yield piece['tokens']


def same(a, b):
  for left, right in zip(a, b, strict=True):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@given(LENGTHS)
@settings(max_examples=30, deadline=None)
def test_best_fit_is_no_worse_than_its_bound_and_cuts_nothing(lengths):
  plan = pack.best_fit(lengths, T)
  assert sorted(plan.example) == list(range(len(lengths)))
  assert not plan.start.any() and (plan.stop == np.array(lengths)[plan.example]).all()
  rows = plan.row[-1] + 1
  used = np.bincount(plan.row, plan.stop)
  assert len(used) == rows and used.max() <= T
  # No two rows could be one, and decreasing fits need at most 11/9 of the best, and a row.
  assert rows == 1 or np.sort(used)[:2].sum() > T
  assert rows <= 11 / 9 * np.ceil(max(sum(lengths) / T, sum(n > T / 2 for n in lengths))) * 1.5 + 1
  ends = plan.at + plan.stop
  inner = plan.row[1:] == plan.row[:-1]
  assert (plan.at[1:][inner] == ends[:-1][inner]).all() and (plan.at[1:][~inner] == 0).all()


def test_best_fit_takes_the_tightest_room():
  plan = pack.best_fit([7, 9, 3, 5], T)  # 9, 7, 5, 3: 5 beside 7, 3 beside 9
  assert plan.example.tolist() == [1, 2, 0, 3]
  assert plan.row.tolist() == [0, 0, 1, 1] and plan.at.tolist() == [0, 9, 0, 7]


@given(LONG)
@settings(max_examples=30, deadline=None)
def test_concat_learns_every_token_but_the_first_of_a_document_once(lengths):
  examples = documents(lengths)
  learned = collections.Counter()
  packed = eval_batches(examples, 2, max_length=T, pack='concat')
  for batch in packed:
    for tokens in pieces(batch):
      assert (np.diff(tokens) == 1).all()
      learned.update(tokens[1:].tolist())
  assert learned == collections.Counter(
    int(token) for example in examples for token in example['tokens'][1:]
  )
  # All rows but the last are full, or have room for one token that would teach nothing.
  rows = np.concatenate([batch['mask'][batch['weight'] > 0] for batch in packed]).sum(axis=1)
  assert (rows[:-1] >= T - 1).all()


def test_concat_repeats_the_token_at_a_cut():
  batch = eval_batches(documents([5, 10]), 2, max_length=8, pack='concat')[0]
  assert batch['tokens'].tolist() == [
    [1, 2, 3, 4, 5, 101, 102, 103],
    [103, 104, 105, 106, 107, 108, 109, 110],
  ]
  assert batch['segments'].tolist() == [[1] * 5 + [2] * 3, [1] * 8]


@pytest.mark.parametrize('name', STRATEGIES)
@given(lengths=LENGTHS, batch_size=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_evaluation_loses_nothing(name, lengths, batch_size):
  examples = documents(lengths)
  result = eval_batches(examples, batch_size, max_length=T, pack=name)
  found = np.concatenate([tokens[1:] for batch in result for tokens in pieces(batch)])
  assert sorted(found) == sorted(t for e in examples for t in e['tokens'][1:])
  rows = steps_per_epoch(examples, batch_size, max_length=T, pack=name) * batch_size
  assert round(rows) == sum(int(batch['weight'].sum()) for batch in result)


@pytest.mark.parametrize('name', STRATEGIES)
def test_endless_packing_gives_each_document_as_often_as_any_other(name, monkeypatch):
  monkeypatch.setattr(pack, '_ROWS', 8)
  examples = documents(np.random.default_rng(0).integers(2, 7, 30))
  counts = collections.Counter()
  stream = take(batches(examples, 8, max_length=T, seed=0, pack=name), 40)
  for batch in stream:
    assert batch['weight'].all()
    # The second token of a document is in one piece of it alone.
    counts.update(int(t) // 100 for tokens in pieces(batch) for t in tokens[1:] if t % 100 == 2)
  assert max(counts.values()) - min(counts[i] for i in range(30)) <= 6  # windows still open
  assert data.fill(stream) > 0.9


@pytest.mark.parametrize('name', STRATEGIES)
def test_a_saved_place_continues_exactly_within_a_window(name, monkeypatch):
  monkeypatch.setattr(pack, '_ROWS', 16)
  examples = documents(np.random.default_rng(0).integers(1, T + 1, 50))
  make = functools.partial(batches, examples, 3, max_length=T, seed=7, pack=name)
  whole = take(make(), 60)
  stream = make()
  for steps in range(40):
    state = json.loads(json.dumps(stream.get_state()))
    fresh = make()
    fresh.set_state(state)
    same(take(fresh, 2 if steps % 10 else 15), whole[steps : steps + (2 if steps % 10 else 15)])
    same([next(stream)], [whole[steps]])
    assert len(json.dumps(state)) < 400
  stream.set_state(state)
  same(take(stream, 10), whole[39:49])


def test_a_place_of_another_strategy_is_refused():
  make = functools.partial(batches, documents([3] * 8), 4, max_length=T, seed=0)
  state = make(pack='best_fit').get_state()
  with pytest.raises(InputError, match='pack=best_fit, this run has pack=concat'):
    make(pack='concat').set_state(state)
  make(pack='first_fit').set_state(make(pack=True).get_state())


def test_the_order_is_fixed_for_ever():
  """A run that resumes on another release must see the rest of the same epoch."""
  stream = batches(documents([9, 3, 8, 4, 12, 1]), 2, max_length=T, seed=0, pack='best_fit')
  first = [(batch['tokens'][:, 0] // 100).tolist() for batch in take(stream, 3)]
  assert first == [[4, 2], [0, 0], [0, 4]]


def test_tags_and_words_are_packed_too():
  examples = [
    {'tokens': np.arange(n, dtype=np.int32), 'tags': np.full(n, i, np.int32)}
    for i, n in enumerate([5, 4, 11])
  ]
  for name in STRATEGIES[:2]:
    (batch,) = eval_batches(examples, 2, max_length=T, pack=name)
    np.testing.assert_array_equal(batch['tags'] == -100, ~batch['mask'])
    assert collections.Counter(batch['tags'][batch['mask']].tolist()) == {0: 5, 1: 4, 2: 11}
  (batch,) = eval_batches(examples, 3, max_length=T)
  np.testing.assert_array_equal(batch['tags'] == -100, ~batch['mask'])


def test_fill_is_the_share_of_real_tokens():
  examples = documents([12, 6, 6])
  assert data.fill(eval_batches(examples, 2, max_length=T)) == 24 / 48  # a fourth row fills up
  assert data.fill(eval_batches(examples, 2, max_length=T, pack='best_fit')) == 1
  part = {'tokens': np.ones(3, np.int32)}
  pairs = [{'chosen': part, 'rejected': {'tokens': np.ones(9, np.int32)}}]
  assert data.fill(eval_batches(pairs, 1, max_length=T)) == 0.5
  with pytest.raises(InputError, match='no batches'):
    data.fill([])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'pack': 'worst_fit'}, "pack is 'worst_fit'; it must be one of first_fit, best_fit, concat"),
    ({'max_length': 4, 'pack': 'best_fit'}, 'max_length is 4, but an example has 5 tokens'),
    ({'max_length': 1, 'pack': 'concat'}, 'max_length is 1; to cut documents it must be at least'),
  ],
)
def test_bad_arguments(change, message):
  run = {'examples': documents([5] * 8), 'batch_size': 4, 'max_length': T, 'seed': 0}
  with pytest.raises(InputError, match=message):
    batches(**{**run, **change})


@functools.cache
def tiny(kind):
  if kind == 'encoder':
    config = models.EncoderConfig(
      vocabulary=50, width=16, hidden=16, layers=1, heads=2, positions=T, outputs=2
    )
    model = models.encoder(config)
  else:
    config = models.DecoderConfig(
      vocabulary=50, width=16, hidden=16, layers=1, heads=2, kv_heads=1, head_width=8
    )
    model = models.decoder(config)
  return model, model.init(jax.random.key(0))


@functools.cache
def forward(kind):
  """The logits of a decoder, the features of an encoder: one each token."""
  model, params = tiny(kind)
  outputs = model.apply if kind == 'decoder' else model.features

  @jax.jit
  def run(batch):
    return outputs(
      params,
      batch['tokens'],
      batch['mask'],
      positions=batch.get('positions'),
      segments=batch.get('segments'),
    )

  return run


@functools.cache
def loss():
  model, params = tiny('decoder')
  objective = losses.causal_lm(model)
  return jax.jit(lambda batch: objective(params, batch, None))


def total(result):
  parts = [loss()(batch) for batch in result]
  return sum(float(p.total) for p in parts), sum(float(p.weight) for p in parts)


@pytest.mark.parametrize('kind', ['decoder', 'encoder'])
@pytest.mark.parametrize('name', STRATEGIES)
def test_changing_one_document_leaves_every_other_bitwise_unchanged(kind, name):
  examples = documents([3, 8, 4, 5, 1, 7, 6, 2], vocabulary=50)
  (batch,) = eval_batches(examples, 4, max_length=T, pack=name)
  before = np.asarray(forward(kind)(batch))
  for row in range(4):
    for segment in {1, batch['segments'][row].max()}:
      inside = np.zeros_like(batch['mask'])
      inside[row] = batch['segments'][row] == segment
      changed = {**batch, 'tokens': np.where(inside, 49 - batch['tokens'], batch['tokens'])}
      after = np.asarray(forward(kind)(changed))
      rest = batch['mask'] & ~inside
      np.testing.assert_array_equal(before[rest], after[rest])
      assert not np.array_equal(before[inside], after[inside])


@pytest.mark.parametrize('name', STRATEGIES)
def test_the_loss_is_that_of_documents_alone(name):
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, T + 1, 16) if name != 'concat' else [5, 7, 3, 1, 8, 12, 2, 10]
  examples = documents(lengths, vocabulary=50)
  for example in examples:
    example['supervised'] &= rng.random(len(example['tokens'])) < 0.6

  packed = eval_batches(examples, 4, max_length=T, pack=name)
  alone = eval_batches(examples, 4, max_length=T)
  assert data.fill(packed) > data.fill(alone)
  np.testing.assert_allclose(total(packed), total(alone), rtol=1e-5)


@pytest.mark.parametrize('name', STRATEGIES)
def test_every_token_has_the_loss_that_it_has_alone(name):
  rng = np.random.default_rng(1)
  lengths = rng.integers(2, T + 1, 24) if name != 'concat' else [5, 7, 3, 9, 8, 4, 2, 10]
  examples = [
    {'tokens': rng.integers(0, 50, n, dtype=np.int32), 'supervised': np.ones(n, bool)}
    for n in lengths
  ]

  def of_each(result):
    """Losses of the tokens of each document but its first, by its tokens."""
    found = {}
    for batch in result:
      logits = np.asarray(forward('decoder')(batch), np.float64)
      log_z = np.log(np.exp(logits[:, :-1]).sum(-1))
      targets = batch['tokens'][:, 1:]
      picked = np.take_along_axis(logits[:, :-1], targets[..., None], 2)[..., 0]
      for row, numbers in enumerate(
        batch.get('segments', batch['mask'] * batch['weight'][:, None])
      ):
        for number in range(1, int(numbers.max()) + 1):
          (at,) = np.nonzero(numbers == number)
          document = tuple(batch['tokens'][row, at].tolist())
          found[document] = (log_z - picked)[row, at[:-1]]
    return found

  packed = of_each(eval_batches(examples, 4, max_length=T, pack=name))
  alone = of_each(eval_batches(examples, 4, max_length=T))
  assert set(packed) == set(alone) == {tuple(e['tokens'].tolist()) for e in examples}
  for document, expected in alone.items():
    np.testing.assert_allclose(packed[document], expected, rtol=1e-5, atol=1e-5)


def test_the_loss_of_a_cut_document_is_that_of_its_blocks():
  """Cutting to fill rows is cutting into blocks as `render_many` does, each alone."""
  examples = documents([5, 15, 9], vocabulary=50)
  packed = eval_batches(examples, 4, max_length=T, pack='concat')
  blocks = [
    {'tokens': tokens, 'supervised': np.arange(len(tokens)) > 0}
    for batch in packed
    for tokens in pieces(batch)
  ]
  assert [len(block['tokens']) for block in blocks] == [5, 7, 9, 3, 7]
  alone = eval_batches(blocks, 4, max_length=T)
  np.testing.assert_allclose(total(packed), total(alone), rtol=1e-5)
  assert total(packed)[1] == 4 + 14 + 8


@pytest.mark.parametrize(
  ('length', 'every'), [(512, 29), pytest.param(1024, 1, marks=pytest.mark.slow)]
)
def test_best_fit_fills_rows_of_reviews(length, every, minilm, reviews):
  """At least 97% of the slots hold tokens of whole reviews, cut where they exceed a row."""
  rows = data.read(reviews)[::every]
  tokenizer = tokenizers.Tokenizer.from_file(str(minilm / 'tokenizer.json'))
  tok = data.Tokenizer(tokenizer, data.SpecialTokens(bos=101, eos=102))
  encoded = data.render_many(tok, rows, max_length=length)
  steps = int(steps_per_epoch(encoded.examples, 8, max_length=length, pack='best_fit'))
  stream = batches(encoded.examples, 8, max_length=length, seed=0, pack='best_fit')
  assert data.fill(itertools.islice(stream, steps)) > 0.99
