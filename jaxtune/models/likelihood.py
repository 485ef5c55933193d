"""How likely a language model finds given text: of whole rows, and of words that may follow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.models import virtual
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import Batch, InputError, Params


class Likelihood(NamedTuple):
  """Of each row `[B]`.

  nats: `log p` of its supervised tokens, at most 0, float32.
  tokens: how many they are, int32.
  correct: how many of them have the largest logit of their place, int32: greedy decoding writes
    all of them where this is `tokens`.
  """

  nats: jax.Array
  tokens: jax.Array
  correct: jax.Array


def log_likelihood(
  model: ModelSpec, params: Params, batch: Batch, *, chunk: int = 256
) -> Likelihood:
  """`sum over supervised t of log p(token_t | tokens before t)` of each row, in nats.

  Logits are computed of the supervised tokens only, in float32, `[chunk, V]` at a time. The first
  token of a row, and of a packed document, has no predictor and is never scored. Padding may be on
  either side.

  Args:
    model: a causal language model.
    params: its parameters.
    batch: `tokens` int32 `[B, T]`; `mask`, `supervised` bool and `segments`, `positions` int32
      `[B, T]` if present. Without `supervised` every token is scored.
    chunk: predictions whose logits are held at a time.
  """
  tokens, segments = batch['tokens'], batch.get('segments')
  rows, length = tokens.shape
  mask = batch.get('mask')
  mask = jnp.ones((rows, length), bool) if mask is None else mask
  positions = batch.get('positions')
  if positions is None:  # counted from the first real token
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
  features = model.features(params, tokens, mask, positions=positions, segments=segments)
  scored = mask[:, 1:] & mask[:, :-1] & batch.get('supervised', mask)[:, 1:]
  if segments is not None:
    scored &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  scored = jnp.pad(scored, ((0, 0), (0, 1)))  # token t + 1 from the features of t
  chunk = min(chunk, rows * length)
  # What is scored comes first, so that whole chunks at the end need no logits.
  order = jnp.argsort(~scored.reshape(-1), stable=True)
  order = jnp.pad(order, (0, -order.size % chunk)).reshape(-1, chunk)
  start = jnp.arange(order.shape[0]) * chunk
  flat, targets = features.reshape(-1, features.shape[-1]), jnp.roll(tokens, -1, axis=1).reshape(-1)
  count = scored.sum()

  def score(at: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = model.head(params, flat[at]).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[at][:, None], axis=1)[:, 0]
    return picked - jax.nn.logsumexp(logits, axis=1), picked >= logits.max(axis=1)

  def skip(at: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(chunk), jnp.zeros(chunk, bool)

  def one(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
    return None, lax.cond(xs[1] < count, score, skip, xs[0])

  _, (nats, largest) = lax.scan(one, None, (order, start))
  order, real = order.reshape(-1), jnp.arange(order.size) < count
  # Sums over the tokens of each row; what is not scored adds zero.
  row = order // length
  total = jnp.zeros(rows).at[row].add(jnp.where(real, nats.reshape(-1), 0.0))
  correct = jnp.zeros(rows, jnp.int32).at[row].add(real & largest.reshape(-1))
  return Likelihood(total, scored.sum(axis=1, dtype=jnp.int32), correct)


def remember(model: ModelSpec, params: Params, tokens: jax.Array, size: int) -> Any:
  """A cache of one row that holds `tokens` int32 `[P]`, with room for `size` tokens in all.

  Raises:
    InputError: the model keeps none, for it is no causal language model.
  """
  start, extend = _memory(model)
  cache = start(params, 1, size)
  return extend(params, tokens[None], cache)[1] if tokens.size else cache


def word_likelihood(
  model: ModelSpec,
  params: Params,
  cache: Any,
  tokens: jax.Array,
  mask: jax.Array,
  words: jax.Array,
  word_mask: jax.Array,
) -> jax.Array:
  """`log p(word | cache, row)` in nats, of every word behind every row: float32 `[B, C]`.

  A row passes through the model once, whatever the number of words, and what all rows begin with
  not at all: it is in the cache.

  Args:
    model: a causal language model.
    params: its parameters.
    cache: from `remember`, with room for a row and a word; it serves all rows.
    tokens: int32 `[B, T]`, the rows, with padding on either side.
    mask: bool `[B, T]`, true for real tokens, of which a row has at least one.
    words: int32 `[C, W]`, with padding on the right.
    word_mask: bool `[C, W]`.
  """
  start, extend = _memory(model)
  rows = tokens.shape[0]
  cache = jax.tree.map(
    lambda one, many: jnp.broadcast_to(one, many.shape),
    cache,
    jax.eval_shape(lambda: start(params, rows, cache.mask.shape[1] - sum(virtual.ahead(params)))),
  )
  features, cache = extend(params, tokens, cache, mask)

  def log_p(features: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(model.head(params, features).astype(jnp.float32), axis=-1)

  first = log_p(ops.pool(features, mask, 'last'))[:, words[:, 0]]  # [B, C]
  if words.shape[1] == 1:
    return first

  def rest(word: tuple[jax.Array, jax.Array]) -> jax.Array:
    ids, real = word
    given = jnp.broadcast_to(ids[None, :-1], (rows, ids.size - 1))
    features, _ = extend(params, given, cache)
    scores = log_p(features.reshape(-1, features.shape[-1])).reshape(rows, ids.size - 1, -1)
    picked = jnp.take_along_axis(
      scores, jnp.broadcast_to(ids[None, 1:, None], (*given.shape, 1)), 2
    )
    return jnp.sum(jnp.where(real[None, 1:], picked[..., 0], 0.0), axis=1)

  return first + lax.map(rest, (words, word_mask)).T


def _memory(model: ModelSpec) -> tuple[Callable[..., Any], Callable[..., Any]]:
  if model.start_cache is None or model.extend is None:
    raise InputError(
      f'a model of the family {model.family} for {model.task} keeps no cache; take a causal '
      'language model'
    )
  return model.start_cache, model.extend
