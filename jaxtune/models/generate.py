"""Text from a language model, token by token."""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxtune import ops
from jaxtune.models import virtual
from jaxtune.models.decoder import Cache
from jaxtune.models.sample import GREEDY, Sampling, sample
from jaxtune.models.spec import ModelSpec
from jaxtune.models.text import Text
from jaxtune.typing import InputError, Key, Params

Reason = Literal['eos', 'stop', 'length']

_READ = 512  # tokens of a prompt that are read at a time: scores take B * H * _READ * S floats
_TOKENS, _SLOTS = 16, 256  # the least that a short prompt is padded to, and that a cache holds
_FEW = 64  # the least where no more is needed: a step reads and writes the whole cache


class Piece(NamedTuple):
  """What a row has gained.

  row: which prompt it goes on from.
  tokens: the new ones, without one that ends the text.
  text: what they are sure to add to the text, empty without a tokenizer. It lags behind where a
    character takes several tokens, or where a stop string may have begun.
  reason: why nothing follows; None where more does.
  end: the token that ended the text; None where none did.
  """

  row: int
  tokens: tuple[int, ...]
  text: str
  reason: Reason | None
  end: int | None = None


class Generated(NamedTuple):
  """What followed a prompt: its pieces, together."""

  tokens: tuple[int, ...]
  text: str
  reason: Reason
  end: int | None = None


def generate(
  model: ModelSpec, params: Params, prompts: Sequence[Sequence[int]], **options: Any
) -> list[Generated]:
  """What follows each prompt; the arguments are those of `stream`."""
  rows: list[list[Piece]] = [[] for _ in prompts]
  for piece in stream(model, params, prompts, **options):
    rows[piece.row].append(piece)
  return [
    Generated(
      tuple(token for piece in row for token in piece.tokens),
      ''.join(piece.text for piece in row),
      row[-1].reason or 'length',
      row[-1].end,
    )
    for row in rows
  ]


def stream(
  model: ModelSpec,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int = 256,
  sampling: Sampling = GREEDY,
  seed: int | Sequence[int] = 0,
  eos: Collection[int] = (),
  stop: Sequence[str] = (),
  tokenizer: tokenizers.Tokenizer | None = None,
  dtype: Any = None,
) -> Iterator[Piece]:
  """What follows each prompt, as it comes; all arguments are checked at the call.

  The prompts are one batch, padded on the left. Keys and values of earlier tokens are kept, so a
  step computes one token a row. A row's tokens are those of the prompt alone with its seed, up to
  rounding. Lengths are rounded up, so few shapes compile.

  Args:
    model: a causal language model that is built in.
    params: its parameters; any weight may be a weight leaf.
    prompts: token ids, at least one each and fewer than the model's context.
    max_tokens: a row ends with that many new tokens, or where the model's context ends.
    sampling: how tokens are drawn; by default the most probable one is taken.
    seed: of the first row, whose next one has `seed + 1` and so on; or the seed of each row.
    eos: tokens any of which ends its row.
    stop: a row ends before the first of these strings in its new text.
    tokenizer: to decode with, special tokens left out; `stop` needs it.
    dtype: of the kept keys and values; None for the parameters' own.

  Raises:
    InputError: one line on the prompt, the option or the model that cannot be used.
  """
  sampling.check()
  check_prompts(model, prompts, params)
  _check(max_tokens, stop, tokenizer)
  seeds = seed if isinstance(seed, Sequence) else [seed + row for row in range(len(prompts))]
  if len(seeds) != len(prompts):
    raise InputError(f'{len(seeds)} seeds for {len(prompts)} prompts; give one each, or the first')
  if not prompts:
    return iter(())
  context = model.config.positions - sum(virtual.ahead(params))
  limits = [min(max_tokens, context - len(prompt)) for prompt in prompts]
  rows = [
    _Row(number, limit, Text(tokenizer, stop) if tokenizer else None)
    for number, limit in enumerate(limits)
  ]
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  tokens = _tokens(model, params, prompts, sampling, keys, dtype, max(limits))
  return _pieces(rows, tokens, frozenset(eos))


class _Row(NamedTuple):
  """A row that goes on: which, the most new tokens it may have, and its text."""

  number: int
  limit: int
  text: Text | None


def _pieces(rows: list[_Row], steps: Iterator[jax.Array], eos: Collection[int]) -> Iterator[Piece]:
  for count, step in enumerate(steps, 1):
    tokens = np.asarray(step)
    pieces = [_piece(row, int(tokens[row.number]), count, eos) for row in rows]
    yield from pieces
    rows = [row for row, piece in zip(rows, pieces, strict=True) if piece.reason is None]
    if not rows:
      return


def _piece(row: _Row, token: int, count: int, eos: Collection[int]) -> Piece:
  ended = token in eos
  text = '' if ended or row.text is None else row.text.add(token)
  reason: Reason | None = 'eos' if ended else 'length' if count == row.limit else None
  if row.text is not None and row.text.stopped:
    reason = 'stop'
  elif row.text is not None and reason:
    text += row.text.finish()
  return Piece(row.number, () if ended else (token,), text, reason, token if ended else None)


class _State(NamedTuple):
  """What a step hands to the next.

  cache: keys and values of all tokens but the newest.
  keys: one a row.
  seen: see `sample`.
  """

  cache: Cache
  keys: Key
  seen: jax.Array | None


def _tokens(
  model: ModelSpec,
  params: Params,
  prompts: Sequence[Sequence[int]],
  sampling: Sampling,
  keys: Key,
  dtype: Any,
  limit: int,
) -> Iterator[jax.Array]:
  """The next token of each row, int32 `[B]`, without end."""
  if dtype is None:
    dtype = jax.eval_shape(
      lambda embed: ops.take(embed, jnp.zeros((1, 1), int)), params['embed']['tokens']
    ).dtype
  # Of several rows that go on from one prompt, it is read once, all but its last token.
  numbers: dict[tuple[int, ...], int] = {}
  copies = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
  tokens, mask = _padded([prompt[:-1] for prompt in numbers])
  used = tokens.shape[1]
  size = min(_rounded(used + 1, _SLOTS), _rounded(used + limit, _FEW))
  cache = _start(model, params, len(numbers), size, dtype)
  for start in range(0, used, _READ):
    part = slice(start, start + _READ)
    cache = _read(model, params, tokens[:, part], mask[:, part], cache)
  if len(numbers) < len(prompts):
    cache = _copied(cache, jnp.array(copies))
  state = _State(cache, keys, _seen(model, prompts) if sampling.repetition_penalty != 1 else None)
  new = jnp.array([prompt[-1] for prompt in prompts], jnp.int32)
  for number in itertools.count():
    if used == size:
      state = state._replace(cache=_grown(state.cache, size))
      size *= 2
    new, state = _step(model, params, new[:, None], state, sampling, number)
    used += 1
    yield new


@functools.partial(jax.jit, static_argnames=('model', 'rows', 'size', 'dtype'))
def _start(model: ModelSpec, params: Params, rows: int, size: int, dtype: Any) -> Cache:
  """The cache before the first token."""
  assert model.start_cache is not None
  return model.start_cache(params, rows, size, dtype)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='cache')
def _read(
  model: ModelSpec, params: Params, tokens: jax.Array, mask: jax.Array, cache: Cache
) -> Cache:
  """The cache with these tokens, too, `[B, T]`."""
  assert model.extend is not None
  return model.extend(params, tokens, cache, mask)[1]


@functools.partial(jax.jit, static_argnames='model', donate_argnames='state')
def _step(
  model: ModelSpec,
  params: Params,
  tokens: jax.Array,
  state: _State,
  sampling: Sampling,
  number: jax.typing.ArrayLike,
) -> tuple[jax.Array, _State]:
  """The next token of each row `[B]`, that of this number, behind these `[B, 1]`."""
  assert model.extend is not None
  features, cache = model.extend(params, tokens, state.cache)
  keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, number)
  new = sample(keys, model.head(params, features[:, -1]), sampling, state.seen)
  seen = state.seen
  if seen is not None:
    seen = seen.at[jnp.arange(len(new)), new].set(True)
  return new, _State(cache, state.keys, seen)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Prompts in one rectangle with padding on the left, and which tokens are real, `[B, P]`."""
  longest = max(map(len, prompts))
  length = _rounded(longest, _TOKENS) if longest <= _READ else -(-longest // _READ) * _READ
  tokens = np.zeros((len(prompts), length), np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, prompt in enumerate(prompts):
    tokens[row, length - len(prompt) :] = prompt
    mask[row, length - len(prompt) :] = True
  return tokens, mask


def _rounded(count: int, least: int) -> int:
  """The next power of two, and at least `least`."""
  return max(least, 1 << (count - 1).bit_length())


@jax.jit
def _copied(cache: Cache, rows: jax.Array) -> Cache:
  """The cache of these rows."""
  return cache._replace(
    keys=cache.keys[:, rows],
    values=cache.values[:, rows],
    mask=cache.mask[rows],
    positions=cache.positions[rows],
  )


def _grown(cache: Cache, more: int) -> Cache:
  """The cache with `more` slots behind those that it has."""
  slots = ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))
  return cache._replace(
    keys=jnp.pad(cache.keys, slots),
    values=jnp.pad(cache.values, slots),
    mask=jnp.pad(cache.mask, slots[1:3]),
  )


def _seen(model: ModelSpec, prompts: Sequence[Sequence[int]]) -> jax.Array:
  """Which tokens each prompt has, bool `[B, V]`."""
  seen = np.zeros((len(prompts), model.config.vocabulary), bool)
  for row, prompt in enumerate(prompts):
    seen[row, list(prompt)] = True
  return jnp.asarray(seen)


def _check(max_tokens: int, stop: Sequence[str], tokenizer: tokenizers.Tokenizer | None) -> None:
  if max_tokens < 1:
    raise InputError(f'max_tokens is {max_tokens}; it must be at least 1')
  if isinstance(stop, str) or not all(stop):
    raise InputError(f'stop is {stop!r}; it must be a list of strings, none of them empty')
  if stop and tokenizer is None:
    raise InputError('stop strings are looked for in decoded text; give the tokenizer, too')


def check_prompts(
  model: ModelSpec, prompts: Sequence[Sequence[int]], params: Params | None = None
) -> None:
  """Refuses what the model cannot go on from.

  Args:
    model: whatever it is.
    prompts: token ids.
    params: of the model; virtual tokens of theirs take places of the context.

  Raises:
    InputError: the first prompt, counted from 1, that is empty, fills the context or has a token
      outside the vocabulary; or a model that writes no text.
  """
  if model.extend is None or model.task != 'causal_lm':
    raise InputError(
      f'a model of the family {model.family} for {model.task} goes on with no text; take a decoder '
      'that is a language model'
    )
  context, vocabulary = model.config.positions, model.config.vocabulary
  context -= 0 if params is None else sum(virtual.ahead(params))
  for number, prompt in enumerate(prompts, 1):
    if not len(prompt):
      raise InputError(
        f'prompt {number} is empty; give it at least one token, such as the one that begins texts'
      )
    if len(prompt) >= context:
      raise InputError(
        f'prompt {number} has {len(prompt):,} tokens, but the context of the model is {context:,}; '
        f'shorten it to {context - 1:,} or fewer, so that one more fits'
      )
    outside = min(prompt) if min(prompt) < 0 else max(prompt)
    if not 0 <= outside < vocabulary:
      raise InputError(
        f'prompt {number} has the token {outside}, but the vocabulary of the model has '
        f'{vocabulary:,}; use the tokenizer of the model'
      )
