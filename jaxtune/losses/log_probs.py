"""How likely a language model finds the tokens of a batch: what losses on whole answers share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops, shard, tree
from jaxtune.typing import Batch, Key, Params


def learned_tokens(part: Batch) -> jax.Array:
  """The tokens that have a log-probability to learn from, bool `[B, T]`.

  Those that are `supervised`, real (`mask`), and of one document (`segments`) with the token
  before, which predicts them; all three if present. The first token of a row never is.
  """
  tokens, mask, segments = part['tokens'], part.get('mask'), part.get('segments')
  real = jnp.ones(tokens.shape, bool) if mask is None else mask
  if segments is not None:
    real = real & (segments > 0)
  learned = real[:, 1:] & real[:, :-1]
  if 'supervised' in part:
    learned = learned & part['supervised'][:, 1:]
  if segments is not None:
    learned = learned & (segments[:, 1:] == segments[:, :-1])
  return jnp.pad(learned, ((0, 0), (1, 0)))


def around(params: Params) -> Params:
  """The parameters but for stacks of layers: all that a head reads."""
  stacked = {path.split('/')[0] for path in tree.paths(params) if tree.is_stacked(path)}
  return {name: part for name, part in params.items() if name not in stacked}


def features_of(model: Any, params: Params, part: Batch, key: Key | None) -> jax.Array:
  """The hidden states of a part's tokens, `[B, T, D]`, of packed documents each by itself."""
  return model.features(
    params,
    part['tokens'],
    part.get('mask'),
    positions=part.get('positions'),
    segments=part.get('segments'),
    key=key,
  )


def token_log_probs(
  model: Any,
  params: Params,
  part: Batch,
  chunk: int | None = None,
  key: Key | None = None,
  temperature: float = 1.0,
) -> jax.Array:
  """`log softmax(logits_{t-1} / temperature)[token_t]` in nats, float32 `[B, T]`; 0 if not learned.

  Entry t is that of token t. Sum over T for the log-probability of a completion.

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    params: its parameters.
    part: `tokens` int32 `[B, T]`, and what `learned_tokens` reads; `positions` if present.
    chunk: predictions whose logits are held at a time, in the backward pass too; None for
      `ops.automatic_chunk`.
    key: switches dropout on.
    temperature: of the distribution that the tokens were drawn from.
  """

  def score(params: Params, features: jax.Array, targets: jax.Array) -> jax.Array:
    logits = model.head(params, features).astype(jnp.float32) / temperature
    return _picked(logits, targets) - jax.nn.logsumexp(logits, axis=-1)

  return _over_tokens(model, score, part, chunk, params, features_of(model, params, part, key))


def log_probs(
  model: Any, params: Params, part: Batch, *, chunk: int | None = None, key: Key | None = None
) -> tuple[jax.Array, jax.Array]:
  """`log p(completion | prompt)` of each row in nats, and of how many tokens: float32 `[B]`.

  `sum over learned t of log p(token_t | tokens before t)`, see `learned_tokens`; at most 0.
  Arguments: as of `token_log_probs`.
  """
  nats = token_log_probs(model, params, part, chunk, key)
  return nats.sum(axis=1), learned_tokens(part).sum(axis=1, dtype=jnp.float32)


class Compared(NamedTuple):
  """Of each learned token, float32 `[B, T]` in nats; 0 elsewhere.

  policy: `log p(token)` under the policy; it has a gradient.
  reference: the same under the reference; it has none.
  kl: `KL(policy || reference)` of the distributions that the token was taken from, at least 0 but
    for rounding, exact over the vocabulary.
  """

  policy: jax.Array
  reference: jax.Array
  kl: jax.Array


def compared(
  model: Any,
  policy: Params,
  reference: Params,
  part: Batch,
  *,
  chunk: int | None = None,
  key: Key | None = None,
) -> Compared:
  """A policy beside its reference, whose pass has no backward pass and no dropout.

  Two passes through the body, and one over the logits of both. As two lanes of one `vmap` the
  reference would get a backward pass too, which is slower (docs/objectives.md).

  Args:
    model: a `ModelSpec` whose task is `causal_lm`.
    policy: its parameters.
    reference: others.
    part: as of `token_log_probs`.
    chunk: predictions whose logits are held at a time, of both; None for `ops.automatic_chunk`.
    key: switches dropout of the policy on.
  """
  reference = lax.stop_gradient(reference)

  def score(
    params: tuple[Params, Params], own: jax.Array, other: jax.Array, targets: jax.Array
  ) -> Compared:
    logits = model.head(params[0], own).astype(jnp.float32)
    others = model.head(params[1], other).astype(jnp.float32)
    log_p, log_q = jax.nn.log_softmax(logits), lax.stop_gradient(jax.nn.log_softmax(others))
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return Compared(_picked(log_p, targets), _picked(log_q, targets), kl)

  return _over_tokens(
    model,
    score,
    part,
    chunk,
    (policy, reference),
    features_of(model, policy, part, key),
    lax.stop_gradient(features_of(model, reference, part, None)),
  )


def _picked(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


def _over_tokens(
  model: Any,
  score: Callable[..., Any],
  part: Batch,
  chunk: int | None,
  params: Any,
  *features: jax.Array,
) -> Any:
  """`score(params, *features [n, D], targets [n])` of every token `[B, T]`, `chunk` at a time.

  Features are `[B, T, D]`; parameters one model's or several models'.
  """
  tokens, learned = part['tokens'], learned_tokens(part)

  def own(params: Any, targets: jax.Array, *features: jax.Array) -> Any:
    # Targets are shifted, features are not: [B*T, D] stays one contiguous array.
    rows = (*(x.reshape(-1, x.shape[-1]) for x in features), targets.reshape(-1))
    count = targets.size
    head = params[0] if isinstance(params, tuple) else params
    size = chunk or ops.automatic_chunk(model.head, head, rows[0])
    if size >= count:
      found = score(params, *rows)
      return jax.tree.map(lambda x: x.reshape(targets.shape), found)
    fill = -count % size

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(xs: tuple[jax.Array, ...]) -> Any:
      return score(params, *xs)

    def cut(x: jax.Array) -> jax.Array:
      x = jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
      return x.reshape(-1, size, *x.shape[1:])

    found = lax.map(one, tuple(map(cut, rows)))
    return jax.tree.map(lambda x: x.reshape(-1)[:count].reshape(targets.shape), found)

  # Each device goes through the tokens that it has: chunks of them all would have to be moved.
  names = ('rows', 'length')
  heads = tuple(map(around, params)) if isinstance(params, tuple) else around(params)
  given = (heads, jnp.roll(tokens, -1, axis=1), *features)
  found = shard.locally(own, given, (None, names, *[(*names, None)] * len(features)), names)

  def place(x: jax.Array) -> jax.Array:  # token t is predicted at t - 1
    return jnp.where(learned, jnp.roll(x, 1, axis=1), 0.0)

  return jax.tree.map(place, found)
