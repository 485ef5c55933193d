"""Attention in blocks whose scores are never held together, forwards or backwards.

Dao 2023, arXiv:2307.08691: a softmax whose maximum and sum are corrected from block to block, and a
backward pass that computes each block's scores again from the row's log-sum-exp. Memory is linear
in the tokens. Blocks in which no query sees a key cost nothing: the future's, another document's,
those beyond a window.

Blocks are stacked on a first axis `N` (of queries) or `M` (of keys); `P` query heads share one of
the `G` heads of keys.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxtune.ops.visible import EVERYBODY, NOBODY, Visible, allowed

QUERIES, KEYS = 128, 128  # tokens of a block: what is alive fits the cache of a CPU
_LOW = -1e30


class _Blocks(NamedTuple):
  """Who sees whom in blocks, and which blocks are worth a look.

  visible: fields `[N, B or 1, q]` of queries and `[M, B or 1, k]` of keys.
  first, last: of each block of queries the first block of keys with one that it sees, and the one
    behind the last, int32 `[N]`.
  """

  visible: Visible
  first: jax.Array
  last: jax.Array


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible, scale: float, cap: float
) -> jax.Array:
  """`ops.attention` for long rows. A query that sees nothing gets zeros.

  Args:
    q: `[B, T, H, K]`.
    k: `[B, S, G, K]`.
    v: `[B, S, G, K]`.
    visible: which keys each query looks at.
    scale: of the scores.
    cap: see `ops.attention`.
  """
  batch, length, heads, width = q.shape
  share = heads // k.shape[2]
  rows, columns = min(QUERIES, length), min(KEYS, k.shape[1])
  q = _cut(q * scale, rows).reshape(-1, batch, rows, heads // share, share, width)
  q = q.transpose(0, 1, 3, 4, 2, 5)  # [N, B, G, P, q, K]
  k, v = (_cut(x, columns).transpose(0, 1, 3, 2, 4) for x in (k, v))  # [M, B, G, k, K]
  y = _flash(cap, q, k, v, _blocks(visible, rows, columns))
  return y.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, width)[:, :length]


def _cut(x: jax.Array, size: int, fill: int | None = None) -> jax.Array:
  """Blocks of the second axis, the last one filled up: `[B, T, ...] -> [N, B, size, ...]`."""
  spare = -x.shape[1] % size
  if spare:
    widths = [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths, constant_values=fill or 0)
  return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _blocks(visible: Visible, rows: int, columns: int) -> _Blocks:
  """See `_Blocks`. A block is looked at unless positions or segments of all in it are too far."""
  queries, keys = _cut(visible.queries, rows), _cut(visible.keys, columns)
  own, owner = visible.query_segments, visible.key_segments
  own = jnp.zeros_like(visible.queries) if own is None else own
  owner = jnp.zeros_like(visible.keys) if owner is None else owner
  own, owner = _cut(own, rows), _cut(owner, columns, NOBODY)
  cut = Visible(queries, keys, own, owner, visible.behind, visible.ahead)

  def ends(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    low, high = jnp.min(x, axis=-1), jnp.max(x, axis=-1)
    return jnp.expand_dims(low, axis), jnp.expand_dims(high, axis)

  (low, high), (near, far) = ends(queries, 1), ends(keys, 0)  # [N, 1, B], [1, M, B]
  seen = (near - high <= visible.ahead) & (low - far <= visible.behind)
  (low, high), (_, far) = ends(own, 1), ends(owner, 0)
  near = jnp.min(jnp.where(owner < 0, np.iinfo(np.int32).max, owner), axis=-1)[None]
  seen &= ((near <= high) & (far >= low)) | jnp.any(owner == EVERYBODY, axis=-1)[None]
  some = jnp.any(seen, axis=-1)  # [N, M]
  count = some.shape[1]
  first = jnp.argmax(some, axis=1).astype(jnp.int32)
  last = count - jnp.argmax(some[:, ::-1], axis=1).astype(jnp.int32)
  return _Blocks(cut, first, jnp.where(jnp.any(some, axis=1), last, first))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(cap: float, q: jax.Array, k: jax.Array, v: jax.Array, blocks: _Blocks) -> jax.Array:
  return _forward(cap, q, k, v, blocks)[0]


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _scores(
  cap: float, q: jax.Array, k: jax.Array, blocks: _Blocks, i: jax.Array, j: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Capped scores of a block of queries and one of keys, `[B, G, P, q, k]`, and who is seen."""
  scores = _product('bgpqd,bgkd->bgpqk', q, k)
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  c = blocks.visible
  assert c.query_segments is not None and c.key_segments is not None
  part = (c.queries[i], c.keys[j], c.query_segments[i], c.key_segments[j], c.behind, c.ahead)
  return scores, allowed(Visible(*part))[:, None, None]


def _forward(
  cap: float, q: jax.Array, k: jax.Array, v: jax.Array, blocks: _Blocks
) -> tuple[jax.Array, jax.Array]:
  """The output as `q` and the log-sum-exp of the scores of each query, `[N, B, G, P, q]`."""

  def row(i: jax.Array) -> tuple[jax.Array, jax.Array]:
    def column(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
      top, total, y = state
      scores, seen = _scores(cap, q[i], k[j], blocks, i, j)
      new = jnp.maximum(top, jnp.max(jnp.where(seen, scores, _LOW), axis=-1))
      p = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
      shrunk = jnp.exp(top - new)
      part = _product('bgpqk,bgkd->bgpqd', p.astype(v.dtype), v[j])
      return new, total * shrunk + jnp.sum(p, axis=-1), y * shrunk[..., None] + part

    zero = jnp.zeros(q.shape[1:-1], jnp.float32)
    state = (zero + _LOW, zero, jnp.zeros(q.shape[1:], jnp.float32))
    top, total, y = lax.fori_loop(blocks.first[i], blocks.last[i], column, state)
    total = jnp.where(total > 0, total, 1.0)
    return (y / total[..., None]).astype(q.dtype), top + jnp.log(total)

  y, log_z = lax.map(row, jnp.arange(len(q)))
  # Kept by the policies of `models.stack`, so that the backward pass does not come here again.
  return checkpoint_name(y, 'product'), checkpoint_name(log_z, 'product')


def _flash_forward(cap, q, k, v, blocks):
  y, log_z = _forward(cap, q, k, v, blocks)
  return y, (q, k, v, blocks, y, log_z)


def _flash_backward(cap, kept, dy):
  q, k, v, blocks, y, log_z = kept
  delta = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)

  def row(sums: tuple[jax.Array, jax.Array], i: jax.Array):
    def column(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
      dq, dk, dv = state
      scores, seen = _scores(cap, q[i], k[j], blocks, i, j)
      p = jnp.where(seen, jnp.exp(scores - log_z[i][..., None]), 0.0)
      dp = _product('bgpqd,bgkd->bgpqk', dy[i], v[j])
      ds = p * (dp - delta[i][..., None])
      if cap:
        ds = ds * (1.0 - jnp.square(scores / cap))
      p, ds = p.astype(q.dtype), ds.astype(q.dtype)
      dq = dq + _product('bgpqk,bgkd->bgpqd', ds, k[j])
      dk = dk.at[j].add(_product('bgpqk,bgpqd->bgkd', ds, q[i]))
      dv = dv.at[j].add(_product('bgpqk,bgpqd->bgkd', p, dy[i]))
      return dq, dk, dv

    state = (jnp.zeros(q.shape[1:], jnp.float32), *sums)
    dq, *sums = lax.fori_loop(blocks.first[i], blocks.last[i], column, state)
    return tuple(sums), dq.astype(q.dtype)

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  (dk, dv), dq = lax.scan(row, zeros, jnp.arange(len(q)))
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_flash.defvjp(_flash_forward, _flash_backward)
