"""QK-clip: query and key weights of heads whose attention logits grew too large are scaled down."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune import tree
from jaxtune.optim.matrices import MATRICES, Matrix
from jaxtune.optim.muon import muon
from jaxtune.optim.orthogonalize import Coefficients
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAYED
from jaxtune.typing import InputError, is_weight

QUERY_KEY: Sequence[tuple[str, str | None]] = (
  (r'(^|/)attn/q(_bias)?$', 'query'),
  (r'(^|/)attn/k(_bias)?$', 'key'),
  (r'.*', None),
)
"""Which leaves are queries and keys of the attention block that is the parent of their path."""


def qk_clip(
  threshold: float = 100.0,
  *,
  queries_and_keys: Sequence[tuple[str, str | None]] = QUERY_KEY,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Scales queries and keys so that no attention logit of a head stays above a threshold $\tau$.

  With $S_h$ the largest logit $q^\top k / \sqrt{K}$ of head $h$ before the softmax, and
  $\gamma_h = \min(1, \tau / S_h)$, the weights *after* the update become
  $W^q_h \leftarrow \sqrt{\gamma_h}\, W^q_h$ and $W^k_h \leftarrow \sqrt{\gamma_h}\, W^k_h$, so the
  update $u$ of $\theta$ becomes $\gamma (\theta + u) - \theta$; biases likewise (Kimi Team, arXiv
  2507.20534, section 2.1 and Algorithm 1). It goes last, after the learning rate. No state.

  A key that several query heads share (grouped heads) is left alone and the queries take the whole
  $\gamma_h$, as the paper does with the rotary key that its heads share. $S_h$ belongs to the
  weights before the update, as in the paper; a maximum that is not finite clips nothing.

  `update` needs the extra argument `query_key_maxima`: for the path of each attention block, such
  as `decoder/0-11/attn`, the maxima over the batch, `[L, H]` in a stack and `[H]` elsewhere.
  `jaxtune.models.query_key_maxima(model, params, batch)` gives them.

  Args:
    threshold: $\tau$, > 0.
    queries_and_keys: `(pattern, 'query', 'key' or None)`, see `QUERY_KEY`. Their last axis holds
      the heads one after another.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.

  Raises:
    InputError: at `init`, a block without its queries or keys, or with an adapter in their place;
      at `update`, maxima that are not there or do not fit.
  """

  def init(params):
    for path, leaf in tree.named_weights(params):
      if is_weight(leaf) and tree.match(queries_and_keys, {path: jnp.zeros(())})[path]:
        raise InputError(
          f'qk_clip scales whole weights, and {path!r} is a {type(leaf).__name__}; '
          'leave queries and keys out of the adapter, or use the rule without the clip'
        )
    for block, routes in _blocks(queries_and_keys, params).items():
      if len({route.value for route in routes}) < 2:
        raise InputError(
          f'qk_clip needs the queries and the keys of {block!r}, but only its {routes[0].value} is '
          'trained; train both or neither'
        )
    return optax.EmptyState()

  def update(updates, state, params=None, *, query_key_maxima=None, **extra):
    del extra
    blocks = _blocks(queries_and_keys, updates)
    if not blocks:
      return updates, state
    if params is None:
      raise InputError('qk_clip needs the parameters; call update(gradients, state, params)')
    factors: dict[str, jax.Array] = {}
    for block, routes in blocks.items():
      maxima = _maxima(block, query_key_maxima)
      gamma = jnp.where(jnp.isfinite(maxima), threshold / jnp.maximum(maxima, threshold), 1.0)
      factors |= _factors(block, routes, gamma, axes)

    def clip(path, u, p):
      factor = factors.get(tree.path_name(path))
      if factor is None:
        return u
      factor = factor.astype(u.dtype)
      return factor * u - (1 - factor) * p  # where nothing is clipped, exactly u

    return jax.tree_util.tree_map_with_path(clip, updates, params), state

  return in_precision(optax.GradientTransformationExtraArgs(init, update))


def muonclip(
  learning_rate: optax.ScalarOrSchedule,
  threshold: float = 100.0,
  momentum: float = 0.95,
  *,
  nesterov: bool = False,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  sharding: NamedSharding | PartitionSpec | None = None,
  weight_decay: float = 0.1,
  mask: Any = DECAYED,
  rest: optax.GradientTransformation | None = None,
  queries_and_keys: Sequence[tuple[str, str | None]] = QUERY_KEY,
  matrices: Sequence[tuple[str, bool | Matrix]] = MATRICES,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Muon whose query and key weights are scaled down where attention logits grow too large.

  `muon` with an RMS of 0.2, as Adam's, then `qk_clip` (Kimi Team, arXiv 2507.20534, Algorithm 1).
  `update` needs `query_key_maxima`, see `qk_clip`, where the parameters have queries and keys. The
  clip is no step: it scales weights at a rate of zero too.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    threshold: $\tau$, the largest logit of a head that is left alone, > 0.
    momentum: $\mu$, in [0, 1).
    nesterov: whether the present gradient counts once more; not so in the paper.
    steps: Newton-Schulz iterations.
    coefficients: of these, see `newton_schulz`.
    dtype: of the factors of their products; None is float32.
    sharding: how whole matrices are divided over devices, see `bucket_by_shape`.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    rest: the direction of everything that is no matrix; None is `optax.scale_by_adam()`.
    queries_and_keys: which leaves are queries and keys, see `QUERY_KEY`.
    matrices: which leaves are matrices, see `MATRICES`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  rule = muon(
    learning_rate,
    momentum,
    nesterov=nesterov,
    steps=steps,
    coefficients=coefficients,
    dtype=dtype,
    sharding=sharding,
    weight_decay=weight_decay,
    mask=mask,
    rest=rest,
    matrices=matrices,
    axes=axes,
  )
  return optax.chain(rule, qk_clip(threshold, queries_and_keys=queries_and_keys, axes=axes))


def _blocks(rules: Any, params: Any) -> dict[str, list[tree.Route]]:
  """The queries and keys of each attention block, by its path."""
  blocks: dict[str, list[tree.Route]] = {}
  for route in tree.routing(rules, params):
    if route.value is not None:
      blocks.setdefault(route.path.rpartition('/')[0], []).append(route)
  return blocks


def _maxima(block: str, given: Mapping[str, jax.Array] | None) -> jax.Array:
  if given is None or block not in given:
    what = 'is missing' if given is None else f'has no {block!r}, only {", ".join(given)}'
    raise InputError(
      f'query_key_maxima {what}; qk_clip needs update(..., query_key_maxima=maxima) with the '
      f'largest attention logits of each head of {block!r}; '
      'models.query_key_maxima(model, params, batch) gives them'
    )
  return jnp.asarray(given[block], jnp.promote_types(given[block].dtype, jnp.float32))


def _factors(block: str, routes: Any, gamma: jax.Array, axes: Any) -> dict[str, jax.Array]:
  """What each query and key is multiplied by, from `[..., H]`, with the axes of the leaf."""
  *lead, heads = gamma.shape
  widths = {route.value: route.shape[-1] for route in routes}
  width, rest = divmod(widths['query'], heads)
  kv_heads, uneven = divmod(widths['key'], max(width, 1))
  stacked = [tree.match(axes, {route.path: gamma})[route.path] for route in routes]
  fits = all(
    route.shape[:n] == tuple(lead) and widths[route.value] == route.shape[-1]
    for route, n in zip(routes, stacked, strict=True)
  )
  if not fits or rest or uneven or heads % max(kv_heads, 1):
    shapes = ', '.join(f'{route.path} {route.shape}' for route in routes)
    raise InputError(
      f'query_key_maxima of {block!r} has shape {gamma.shape}, which does not fit {shapes}; give '
      'one number for each layer and query head'
    )
  shared = kv_heads < heads
  factors = {}
  for route in routes:
    if not shared:
      factor = jnp.repeat(jnp.sqrt(gamma), width, axis=-1)
    elif route.value == 'query':
      factor = jnp.repeat(gamma, width, axis=-1)
    else:
      continue
    between = (1,) * (len(route.shape) - gamma.ndim)
    factors[route.path] = factor.reshape(*lead, *between, heads * width)
  return factors
