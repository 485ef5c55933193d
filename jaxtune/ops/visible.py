"""Which keys each query of attention looks at, as data that is linear in the tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

NOBODY, EVERYBODY = -1, -2  # in place of a key's segment: who sees it
FAR = np.int32(2**30)  # no limit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visible:
  """A query sees the keys of its own segment, up to so far behind and ahead of it.

  Attributes:
    queries: positions of the queries, int32 `[B or 1, T]`.
    keys: positions of the keys, int32 `[B or 1, S]`.
    query_segments: int32 `[B or 1, T]`, not negative; None where all belong together.
    key_segments: int32 `[B or 1, S]`, `NOBODY` for a key that is hidden and `EVERYBODY` for one
      that all segments see; None where all belong together.
    behind, ahead: how many positions before and after its own a query sees, int32 scalars.
    shared: whether there may be keys that `EVERYBODY` sees.
  """

  queries: jax.Array
  keys: jax.Array
  query_segments: jax.Array | None
  key_segments: jax.Array | None
  behind: jax.Array | np.int32
  ahead: jax.Array | np.int32
  shared: bool = dataclasses.field(default=False, metadata={'static': True})


def visible(
  mask: jax.Array | None,
  segments: jax.Array | None,
  causal: bool,
  length: int,
  window: int = 0,
) -> Visible | None:
  """What each token of a row sees of the others; None when every token sees every other.

  Args:
    mask: `[B, T]` bool, real tokens; others are never looked at.
    segments: `[B, T]` int, tokens look only at tokens of their own segment; not negative.
    causal: whether tokens look only backwards.
    length: `T`.
    window: how far a token looks: at the `window` latest tokens, itself among them, when causal,
      else at `window` tokens on either side of it; 0 for no limit.
  """
  if mask is None and segments is None and not causal and not window:
    return None
  positions = jnp.arange(length, dtype=jnp.int32)[None]
  keys = segments
  if mask is not None:
    segments = jnp.zeros((1, length), jnp.int32) if segments is None else segments
    keys = jnp.where(mask, segments, NOBODY)
  return Visible(positions, positions, segments, keys, *reach(causal, window))


def reach(causal: bool, window: int = 0) -> tuple[np.int32, np.int32]:
  """How many positions a token looks behind and ahead, see `visible`."""
  behind = np.int32(window - causal) if window else FAR
  return behind, np.int32(0) if causal else behind


def allowed(visible: Visible) -> jax.Array:
  """Whether a query sees a key, bool `[B or 1, T, S]`."""
  distance = visible.queries[:, :, None] - visible.keys[:, None, :]
  seen = (distance <= visible.behind) & (-distance <= visible.ahead)
  if visible.key_segments is None or visible.query_segments is None:
    return seen
  owner = visible.key_segments[:, None, :]
  return seen & ((owner == visible.query_segments[:, :, None]) | (owner == EVERYBODY))


def hidden(allowed: jax.Array) -> jax.Array:
  """What is added to the scores: 0 where a query may look, a large negative number elsewhere.

  In float32, and finite, so that a row that may look nowhere (padding) is uniform instead of NaN.
  """
  return jnp.where(allowed, 0.0, -1e30).astype(jnp.float32)
