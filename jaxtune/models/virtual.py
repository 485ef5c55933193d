"""Virtual tokens that a method trains before a text: a prompt's, or a prefix of every layer.

A prompt is rows of the embedding that no word has, `params['prompt']['tokens']` `[P, D]`, and goes
through the layers as tokens do (arXiv:2104.08691). A prefix is keys and values that stand before
those of the text in every layer, `params['prefix']['keys']` and `['values']` `[L, P, G*K]`, keys as
they are after their norm and rotation (arXiv:2101.00190). The text's positions go on behind both.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.models import stack
from jaxtune.typing import InputError, Params

AXES = (
  (r'(^|/)prompt/tokens$', (None, 'embed')),
  (r'(^|/)prefix/(keys|values)$', ('layers', None, 'kv_heads')),
)


class Ahead(NamedTuple):
  """How many virtual tokens stand before a text.

  prefix: keys and values in every layer, which come first.
  prompt: tokens that go through the layers.
  """

  prefix: int = 0
  prompt: int = 0


def ahead(params: Params) -> Ahead:
  """What these parameters put before a text."""
  prefix = params['prefix']['keys'].shape[1] if 'prefix' in params else 0
  return Ahead(prefix, params['prompt']['tokens'].shape[0] if 'prompt' in params else 0)


def check_room(before: Ahead, length: int, positions: int) -> None:
  """Refuses rows for which the model has too few positions.

  Raises:
    InputError: with both numbers.
  """
  if sum(before) + length > positions:
    more = f' and {sum(before)} virtual ones' if sum(before) else ''
    raise InputError(
      f'{length} tokens a row{more}, but the model has {positions} positions; cut the texts'
    )


def prompt(params: Params) -> jax.Array | None:
  """The prompt `[P, D]`, if there is one."""
  return ops.materialize(params['prompt']['tokens']) if 'prompt' in params else None


def prepend(x: jax.Array, prompt: jax.Array | None) -> jax.Array:
  """Rows of the embedding `[B, T, D] -> [B, P+T, D]`, the prompt's before those of the text."""
  if prompt is None:
    return x
  prompt = jnp.broadcast_to(prompt.astype(x.dtype), (len(x), *prompt.shape))
  return jnp.concatenate([prompt, x], axis=1)


def positions(before: Ahead, own: jax.Array) -> jax.Array:
  """Positions `[B, T]` of a text's tokens, counted from 0, as those of the prompt and the text."""
  own = jnp.asarray(own)
  first = jnp.arange(before.prefix, sum(before), dtype=own.dtype)
  first = jnp.broadcast_to(first, (len(own), before.prompt))
  return jnp.concatenate([first, own + sum(before)], axis=1)


def pad(before: Ahead, values: jax.Array, fill: Any) -> jax.Array:
  """Something of every token, `[B, T] -> [B, P+T]`, with a value for those of the prompt."""
  return jnp.pad(values, ((0, 0), (before.prompt, 0)), constant_values=fill)


def layers(params: Params, name: str) -> Params:
  """The stack of that name, each layer's attention with the keys and values of its prefix."""
  if 'prefix' not in params:
    return params[name]
  found = {}
  for segment, held in params[name].items():
    part = slice(*stack.bounds(segment))
    own = {kind: ops.materialize(values)[part] for kind, values in params['prefix'].items()}
    found[segment] = {**held, 'attn': {**held['attn'], 'prefix': own}}
  return found


def join_prefix(prefix: Params, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Keys and values `[B, T, G, K]` behind those of the layer's prefix, `[P, G*K]` each."""

  def join(own: jax.Array, x: jax.Array) -> jax.Array:
    own = own.astype(x.dtype).reshape(1, -1, *x.shape[2:])
    return jnp.concatenate([jnp.broadcast_to(own, (len(x), *own.shape[1:])), x], axis=1)

  return join(prefix['keys'], k), join(prefix['values'], v)


def visible(
  before: Ahead,
  mask: jax.Array | None,
  segments: jax.Array | None,
  causal: bool,
  length: int,
  window: int = 0,
) -> ops.Visible | None:
  """`ops.visible` with virtual tokens ahead, which belong to every segment.

  Args:
    before: how many there are.
    mask: of the text's tokens, as the others.
    segments, causal, length, window: see there. A window counts real tokens of a segment.

  Returns:
    P+T queries with P tokens of the prompt, and S keys: prefix, prompt, text; None when all see
    all.
  """
  count = sum(before)
  whole = ops.visible(mask, segments, causal, length, window)
  if not count or whole is None:
    return whole

  def padded(values: jax.Array | None, fill: int) -> jax.Array | None:
    if values is None:
      return None
    return jnp.pad(values, ((0, 0), (count, 0)), constant_values=fill)

  ahead = 0 if segments is None else ops.EVERYBODY
  own = padded(whole.query_segments, ahead)
  places = positions(Ahead(0, count), _places(mask, segments, length))
  return dataclasses.replace(
    whole,
    queries=places[:, before.prefix :],
    keys=places,
    query_segments=None if own is None else own[:, before.prefix :],
    key_segments=padded(whole.key_segments, ahead),
    shared=segments is not None,
  )


def _places(mask: jax.Array | None, segments: jax.Array | None, length: int) -> jax.Array:
  """Where each token stands in its segment, or among the real ones of its row, `[B or 1, T]`."""
  index = jnp.arange(length, dtype=jnp.int32)[None]
  if segments is not None:
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - lax.cummax(jnp.where(first, index, 0), axis=1)
  return index if mask is None else jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
