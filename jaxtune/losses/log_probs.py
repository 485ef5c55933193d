"""How likely a language model finds the tokens of a batch: what losses on whole answers share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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
    chunk: predictions whose logits are held at a time, in the backward pass too; None for all, as
      `[B*T, V]`.
    key: switches dropout on.
    temperature: of the distribution that the tokens were drawn from.
  """
  tokens = part['tokens']
  features = model.features(
    params,
    tokens,
    part.get('mask'),
    positions=part.get('positions'),
    segments=part.get('segments'),
    key=key,
  )
  # Targets are shifted, features are not: [B*T, D] stays one contiguous array.
  flat, targets = features.reshape(-1, features.shape[-1]), jnp.roll(tokens, -1, axis=1).reshape(-1)

  def score(features: jax.Array, targets: jax.Array) -> jax.Array:
    logits = model.head(params, features).astype(jnp.float32) / temperature
    picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)

  rows = targets.size
  if chunk is None or chunk >= rows:
    nats = score(flat, targets)
  else:
    fill = -rows % chunk

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
      return score(*xs)

    cut = (
      jnp.pad(flat, ((0, fill), (0, 0))).reshape(-1, chunk, flat.shape[-1]),
      jnp.pad(targets, (0, fill)).reshape(-1, chunk),
    )
    nats = lax.map(one, cut).reshape(-1)[:rows]
  shifted = jnp.roll(nats.reshape(tokens.shape), 1, axis=1)
  return jnp.where(learned_tokens(part), shifted, 0.0)


def log_probs(
  model: Any, params: Params, part: Batch, *, chunk: int | None = None, key: Key | None = None
) -> tuple[jax.Array, jax.Array]:
  """`log p(completion | prompt)` of each row in nats, and how many tokens it sums over: float32 `[B]`.

  `sum over learned t of log p(token_t | tokens before t)`, see `learned_tokens`; at most 0.
  Arguments: as of `token_log_probs`.
  """
  nats = token_log_probs(model, params, part, chunk, key)
  return nats.sum(axis=1), learned_tokens(part).sum(axis=1, dtype=jnp.float32)
