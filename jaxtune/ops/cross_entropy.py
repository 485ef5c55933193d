"""Cross-entropy in nats, whole or in chunks that never hold all logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune.options import is_on

Head = Callable[[Any, jax.Array], jax.Array]


class CrossEntropy(NamedTuple):
  """Weighted sums over the rows; divide by the sum of the weights for means.

  Attributes:
    nats: of `-log p(target)`.
    correct: of the rows whose target has the largest logit.
    loss: of what is minimized: the nats unless an option changes it.
  """

  nats: jax.Array
  correct: jax.Array
  loss: jax.Array


def cross_entropy(
  logits: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  dft: bool = False,
) -> CrossEntropy:
  """`sum_n w_n (log Z_n - logits_n[target_n])` with `log Z = logsumexp(logits)`, in float32.

  The options change `loss` alone, of each row, in this order:

  - label smoothing: `(1 - e) (-log p[target]) + e/V sum_v (-log p[v])` (Szegedy et al. 2015,
    arXiv:1512.00567, section 7), as torch has it;
  - DFT: times p[target], which is not differentiated (Wu et al. 2025, arXiv:2508.05629, eq. 8):
    tokens that the model finds improbable no longer have the largest gradients;
  - z-loss: plus `z_loss (log Z)^2`, which holds logits near zero (PaLM, arXiv:2204.02311,
    section 5, with 1e-4).

  Args:
    logits: `[N, V]`.
    targets: `[N]` int.
    weights: `[N]`.
    label_smoothing: e, from 0 to below 1.
    z_loss: factor of `(log Z)^2`.
    dft: whether each row is weighted by its probability.
  """
  logits = logits.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nats = log_z - picked
  loss = nats
  if is_on(label_smoothing):
    loss = loss + label_smoothing * (picked - jnp.mean(logits, axis=-1))
  if dft:
    loss = loss * lax.stop_gradient(jnp.exp(-nats))
  if is_on(z_loss):
    loss = loss + z_loss * log_z * log_z
  # Not argmax, which XLA reduces slowly. A tie counts as its share: all-equal logits get 1/V.
  largest = jnp.max(logits, axis=-1)
  correct = (picked >= largest) / jnp.sum(logits >= largest[:, None], axis=-1)
  return CrossEntropy(jnp.sum(nats * weights), jnp.sum(correct * weights), jnp.sum(loss * weights))


def chunked_cross_entropy(
  features: jax.Array,
  head: Head,
  params: Any,
  targets: jax.Array,
  weights: jax.Array,
  chunk: int | None = None,
  **options: Any,
) -> CrossEntropy:
  """`cross_entropy(head(params, features), ...)` with `[chunk, V]` logits alive at a time.

  Only `loss` has a gradient, which is computed beside it while a chunk's logits are there, so that
  no logits are computed twice: of the features, `[N, D]`, and of those parameters that train. A
  chunk without any weight, as of padding, costs nothing.

  Args:
    features: `[N, D]`.
    head: `(params, [n, D]) -> [n, V]`; what it closes over is taken for constant.
    params: of the head.
    targets: `[N]` int.
    weights: `[N]`; not differentiated.
    chunk: rows at a time; the last chunk is padded with rows of weight zero. None for
      `automatic_chunk`.
    **options: of `cross_entropy`.
  """
  rows = features.shape[0]
  chunk = min(rows, chunk or automatic_chunk(head, params, features))
  fill = -rows % chunk

  def cut(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])

  leaves, structure = jax.tree.flatten(params)

  def run(leaves: list[Any], rows: jax.Array) -> jax.Array:
    return head(jax.tree.unflatten(structure, leaves), rows)

  numbers = {name: x for name, x in options.items() if isinstance(x, jax.Array)}  # a lane's own
  fixed = tuple((name, x) for name, x in options.items() if name not in numbers)
  return _chunked(run, fixed, cut(features), leaves, cut(targets), cut(weights), numbers)


def automatic_chunk(head: Head, params: Any, features: jax.Array) -> int:
  """Rows of features whose float32 logits take 8 MB, but at least 256.

  On CPU fewer logits are faster too, since they stay in the cache; with fewer rows reading the
  head's matrix would take the time.
  """
  vocabulary = jax.eval_shape(head, params, features[:1]).shape[-1]
  return max(256, 2**21 // vocabulary)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
  head: Head,
  options: tuple[tuple[str, Any], ...],
  features: jax.Array,
  params: list[Any],
  targets: jax.Array,
  weights: jax.Array,
  numbers: dict[str, jax.Array],
) -> CrossEntropy:
  """Of `[C, n, D]` features."""

  def one(total: CrossEntropy, xs: tuple[jax.Array, ...]) -> tuple[CrossEntropy, None]:
    def add() -> CrossEntropy:
      given: dict[str, Any] = {**dict(options), **numbers}
      part = cross_entropy(head(params, xs[0]), xs[1], xs[2], **given)
      return jax.tree.map(jnp.add, total, part)

    return lax.cond(jnp.any(xs[2] != 0), add, lambda: total), None

  return _scan(one, _zero(), (features, targets, weights))[0]


def _chunked_forward(head, options, features, params, targets, weights, numbers):
  """What `_chunked` does, and the gradients of the features and of the parameters that train."""
  trains = [leaf.perturbed for leaf in params]
  held = [leaf.value for leaf in params]
  options = dict(options) | {name: x.value for name, x in numbers.items()}

  def run(own: list[jax.Array], rows: jax.Array) -> jax.Array:
    rest = iter(own)
    return head([next(rest) if t else x for t, x in zip(trains, held, strict=True)], rows)

  own = [x for t, x in zip(trains, held, strict=True) if t]

  def one(state: Any, xs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
    rows, aims, shares = xs

    def add() -> tuple[Any, jax.Array]:
      logits, back = jax.vjp(run, own, rows)
      part, slope = _with_slope(logits, aims, shares, **options)
      d_own, d_rows = back(slope)
      return jax.tree.map(jnp.add, state, (part, d_own)), d_rows

    return lax.cond(jnp.any(shares != 0), add, lambda: (state, jnp.zeros_like(rows)))

  zeros = (_zero(), [jnp.zeros(x.shape, jnp.float32) for x in own])
  xs = (features.value, targets.value, weights.value)
  (total, d_own), d_features = _scan(one, zeros, xs)
  rest = iter(d_own)
  d_params = [next(rest).astype(x.dtype) if t else None for t, x in zip(trains, held, strict=True)]
  return total, (d_features if features.perturbed else None, d_params)


def _chunked_backward(head, options, kept, slopes):
  del head, options
  slope = slopes.loss
  if isinstance(slope, jax.custom_derivatives.SymbolicZero):
    slope = jnp.zeros(())
  features, params = jax.tree.map(lambda x: x * slope.astype(x.dtype), kept)
  return features, params, None, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _with_slope(
  logits: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  label_smoothing: Any = 0.0,
  z_loss: Any = 0.0,
  dft: bool = False,
) -> tuple[CrossEntropy, jax.Array]:
  """`cross_entropy` and the gradient of its loss, `[n, V]`.

  With s = p[target] under DFT, else 1, and P = softmax(logits):
  `w (s + 2 z log Z) P - w s ((1 - e) onehot(target) + e / V)`.
  """
  found = cross_entropy(
    logits, targets, weights, label_smoothing=label_smoothing, z_loss=z_loss, dft=dft
  )
  wide, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
  log_z = jax.nn.logsumexp(wide, axis=-1)
  scale = weights
  if dft:
    picked = jnp.take_along_axis(wide, targets[:, None], axis=-1)[:, 0]
    scale = weights * jnp.exp(picked - log_z)
  slope = jnp.exp(wide - log_z[:, None]) * (scale + 2 * z_loss * log_z * weights)[:, None]
  aim = jnp.arange(logits.shape[-1])[None] == targets[:, None]
  slope -= jnp.where(aim, (scale * (1 - label_smoothing))[:, None], 0.0)
  slope -= (scale * label_smoothing / logits.shape[-1])[:, None]
  return found, slope.astype(logits.dtype)


def _zero() -> CrossEntropy:
  return CrossEntropy(*[jnp.zeros((), jnp.float32)] * 3)


def _scan(body: Callable[..., Any], start: Any, xs: Any) -> Any:
  """`lax.scan`, without a loop where there is one chunk."""
  if len(jax.tree.leaves(xs)[0]) > 1:
    return lax.scan(body, start, xs)
  state, y = body(start, jax.tree.map(lambda x: x[0], xs))
  return state, jax.tree.map(lambda x: x[None], y)
