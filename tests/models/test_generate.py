"""Texts from a small model: with and without a cache, in a batch and alone, until they end."""

import jax
import jax.numpy as jnp
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import adapt, models, shard
from jaxtune.models import Sampling, generate, stream
from jaxtune.models.text import Text
from jaxtune.typing import InputError

CONFIG = models.DecoderConfig(
  vocabulary=40,
  width=16,
  hidden=24,
  layers=2,
  heads=4,
  kv_heads=2,
  positions=600,
  init_scale=0.5,
)
MODEL = models.decoder(CONFIG)
PARAMS = MODEL.init(jax.random.key(4))
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
WARM = Sampling(temperature=1.5, top_k=20, top_p=0.98)


def without_cache(params, prompt, count):
  """The most probable token behind all before it, again and again."""
  tokens = list(prompt)
  apply = jax.jit(MODEL.apply)
  for _ in range(count):
    padded = jnp.array([tokens + [0] * (32 - len(tokens))])
    tokens.append(int(apply(params, padded)[0, len(tokens) - 1].argmax()))
  return tuple(tokens[len(prompt) :])


@pytest.fixture(scope='module')
def lora():
  params = adapt.lora(jax.random.key(5), PARAMS, 2, 4.0)
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(6), x.shape), params)


@pytest.mark.parametrize('adapted', [False, True])
def test_the_cache_changes_nothing_and_a_batch_is_one_by_one(adapted, lora):
  params = lora if adapted else PARAMS
  rows = generate(MODEL, params, PROMPTS, max_tokens=12)
  assert [row.reason for row in rows] == ['length'] * 3
  for prompt, row in zip(PROMPTS, rows, strict=True):
    assert row.tokens == without_cache(params, prompt, 12)
  assert len({row.tokens for row in rows}) == 3


def test_a_row_is_drawn_from_its_own_seed():
  together = generate(MODEL, PARAMS, PROMPTS, max_tokens=10, sampling=WARM, seed=7)
  for i, prompt in enumerate(PROMPTS):
    (alone,) = generate(MODEL, PARAMS, [prompt], max_tokens=10, sampling=WARM, seed=7 + i)
    assert alone == together[i]
  same = generate(MODEL, PARAMS, [PROMPTS[0]] * 3, max_tokens=10, sampling=WARM, seed=[9, 7, 8])
  assert same[1] == together[0]
  assert len({row.tokens for row in same}) == 3


def test_each_row_ends_at_its_own_eos():
  full = generate(MODEL, PARAMS, PROMPTS, max_tokens=12)
  ends = (full[0].tokens[3], full[1].tokens[6])
  rows = generate(MODEL, PARAMS, PROMPTS, max_tokens=12, eos=ends)
  for row, whole in zip(rows, full, strict=True):
    at = next((i for i, token in enumerate(whole.tokens) if token in ends), 12)
    assert row.tokens == whole.tokens[:at]
    assert row.reason == ('eos' if at < 12 else 'length')
    assert row.end == (whole.tokens[at] if at < 12 else None)
  assert {len(row.tokens) for row in rows} != {12}


@pytest.mark.slow
def test_long_prompts_and_long_texts_grow_out_of_their_first_sizes(monkeypatch):
  prompts = [PROMPTS[0] * 5, PROMPTS[1]]
  want = generate(MODEL, PARAMS, prompts, max_tokens=30)
  # `models.generate` is the function; its module keeps the sizes.
  monkeypatch.setitem(generate.__globals__, '_READ', 8)
  monkeypatch.setitem(generate.__globals__, '_TOKENS', 4)
  monkeypatch.setitem(generate.__globals__, '_SLOTS', 8)
  assert generate(MODEL, PARAMS, prompts, max_tokens=30) == want


def test_sharded_parameters_write_the_same():
  mesh = shard.mesh({'data': 1, 'fsdp': 8})
  params = jax.device_put(PARAMS, shard.param_shardings(mesh, PARAMS, MODEL.axes(PARAMS)))
  assert not params['embed']['tokens'].is_fully_replicated
  assert generate(MODEL, params, PROMPTS, max_tokens=6) == generate(
    MODEL, PARAMS, PROMPTS, max_tokens=6
  )


def test_similar_lengths_compile_once():
  step = generate.__globals__['_step']
  generate(MODEL, PARAMS, [[1] * 17], max_tokens=2)
  before = step._cache_size()
  generate(MODEL, PARAMS, [[2] * 30], max_tokens=5, seed=3)
  generate(MODEL, PARAMS, [[2] * 20], max_tokens=3, sampling=WARM)
  assert step._cache_size() == before


def test_a_text_ends_with_the_context():
  (row,) = generate(MODEL, PARAMS, [[1] * 597], max_tokens=50)
  assert len(row.tokens) == 3 and row.reason == 'length'


def test_repetition_is_penalized_per_row():
  rows = generate(
    MODEL, PARAMS, [[1, 2, 3], [4]], max_tokens=20, sampling=Sampling(repetition_penalty=1e6)
  )
  assert not {1, 2, 3} & set(rows[0].tokens) and 4 not in rows[1].tokens
  assert all(len(set(row.tokens)) == 20 for row in rows)
  assert generate(
    MODEL, PARAMS, [[4]], max_tokens=20, sampling=Sampling(repetition_penalty=1e6)
  ) == [rows[1]]


def test_no_prompts_give_no_texts():
  assert generate(MODEL, PARAMS, []) == []


@pytest.mark.parametrize(
  ('prompts', 'options', 'message'),
  [
    ([[1], []], {}, 'prompt 2 is empty; give it'),
    (
      [[1] * 600],
      {},
      'prompt 1 has 600 tokens, but the context of the model is 600; shorten it to',
    ),
    ([[1], [1, 40]], {}, 'prompt 2 has the token 40, but the vocabulary of the model has 40'),
    ([[-1]], {}, 'prompt 1 has the token -1'),
    ([[1]], {'max_tokens': 0}, 'max_tokens is 0'),
    ([[1]], {'seed': [1, 2]}, '2 seeds for 1 prompts'),
    ([[1]], {'stop': 'abc'}, "stop is 'abc'; it must be a list"),
    ([[1]], {'stop': ['']}, 'none of them empty'),
    ([[1]], {'stop': ['a']}, 'give the tokenizer'),
    ([[1]], {'sampling': Sampling(top_p=2)}, 'top_p is 2'),
  ],
)
def test_bad_input_is_refused_at_the_call(prompts, options, message):
  with pytest.raises(InputError, match=message) as error:
    stream(MODEL, PARAMS, prompts, **options)
  assert '\n' not in str(error.value)


def test_models_that_write_no_text_say_so():
  for config in (models.EncoderConfig(layers=1), models.DecoderConfig(layers=1, outputs=2)):
    with pytest.raises(InputError, match='goes on with no text'):
      stream(models.build(config), {}, [[1]])


@pytest.fixture(scope='module')
def tokenizer():
  """Byte-level: 256 tokens of a byte each, then two words, then a special token."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate([*alphabet, 'th', 'the'])}
  merges = [('t', 'h'), ('th', 'e')]
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(['<end>'])
  return made


def pieces_of(tokenizer, tokens, stop=()):
  """What `Text` gives out token by token, up to a stop."""
  text, out = Text(tokenizer, stop), []
  for token in tokens:
    out.append(text.add(token))
    if text.stopped:
      return out, True
  return [*out, text.finish()], False


@settings(deadline=None, max_examples=100)
@given(tokens=st.lists(st.integers(0, 270), max_size=12))  # the tokenizer has 259
def test_any_tokens_give_their_text_in_pieces(tokenizer, tokens):
  assert ''.join(pieces_of(tokenizer, tokens)[0]) == tokenizer.decode(tokens)


def sentencepiece():
  """Spaces are a part of tokens, but not at the beginning of a text; bytes are tokens as well."""
  vocabulary = {token: i for i, token in enumerate(['<unk>', '▁', 'a', '▁a', '▁b'])}
  vocabulary |= {f'<0x{byte:02X}>': 5 + i for i, byte in enumerate('é€'.encode())}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
  kinds = tokenizers.decoders
  steps = [kinds.Replace('▁', ' '), kinds.ByteFallback(), kinds.Fuse(), kinds.Strip(' ', 1, 0)]
  made.decoder = kinds.Sequence(steps)
  return made


@settings(deadline=None, max_examples=100)
@given(
  parts=st.lists(st.sampled_from([[1], [2], [3], [4], [5, 6], [7, 8, 9], [7]]), max_size=8),
)
def test_spaces_and_bytes_of_sentencepiece(parts):
  tokenizer = sentencepiece()
  tokens = [token for part in parts for token in part]
  text = ''.join(pieces_of(tokenizer, tokens)[0])
  # Of bytes that are no characters it depends on their neighbours what becomes of them.
  assert [7] in parts or text == tokenizer.decode(tokens)


@settings(deadline=None, max_examples=200)
@given(
  text=st.text('ab\n', max_size=12),
  stop=st.lists(st.text('ab\n', min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_the_first_stop_string(tokenizer, text, stop):
  out, stopped = pieces_of(tokenizer, tokenizer.encode(text).ids, stop)
  found = [text.find(s) for s in stop if s in text]
  assert stopped == bool(found)
  # Of two that begin apart, the one that is complete first ends the text.
  first = min((text.find(s) + len(s) for s in stop if s in text), default=len(text))
  want = min((at for s in stop if (at := text[:first].find(s)) >= 0), default=len(text))
  assert ''.join(out) == text[:want]


def test_characters_come_whole_and_no_piece_of_a_stop_string_comes(tokenizer):
  tokens = tokenizer.encode('é🎉 the theatre').ids
  out, stopped = pieces_of(tokenizer, tokens, ['thea'])
  assert stopped and ''.join(out) == 'é🎉 the '
  assert out[:6] == ['', 'é', '', '', '', '🎉']
  assert pieces_of(tokenizer, tokenizer.encode('🎉').ids[:3])[0][-1] == '�'


def test_stop_strings_end_rows_separately(tokenizer):
  model = models.decoder(
    models.DecoderConfig(vocabulary=259, width=16, hidden=24, layers=1, heads=2, init_scale=0.5)
  )
  params = model.init(jax.random.key(0))
  options = {'max_tokens': 24, 'tokenizer': tokenizer, 'sampling': WARM}
  full = generate(model, params, PROMPTS, **options)
  assert [row.text for row in full] == [tokenizer.decode(row.tokens) for row in full]
  stop = full[1].text[4:7]
  pieces = list(stream(model, params, PROMPTS, stop=[stop], **options))
  rows = generate(model, params, PROMPTS, stop=[stop], **options)
  assert rows[1].reason == 'stop' and rows[1].text == full[1].text[: full[1].text.find(stop)]
  assert len(rows[1].tokens) < 24
  for i, row in enumerate(rows):
    mine = [piece for piece in pieces if piece.row == i]
    assert ''.join(piece.text for piece in mine) == row.text
    assert [piece.reason for piece in mine[:-1]] == [None] * (len(mine) - 1)
    assert mine[-1].reason == row.reason
    if stop not in full[i].text:
      assert row == full[i]
