"""Points between and among tuned models: interpolation with the start, and means of several."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import tree
from jaxtune.adapt.adapted import is_adapter
from jaxtune.adapt.lora import LoRA
from jaxtune.adapt.lora_starts import Residual
from jaxtune.typing import InputError, Params, is_weight


def interpolate(start: Params, tuned: Params, alpha: float | jax.Array) -> Params:
  """`(1 - alpha) start + alpha tuned`, weight by weight.

  WiSE-FT, Wortsman et al. 2021, arXiv:2109.01903: between a model and what fine-tuning made of it
  there often is one that keeps more of the first on other data and loses little on the new. Try
  alpha from 0 to 1 in tenths on held-out rows of both kinds; above 1 it goes on past the tuned one.
  The head is interpolated too, so it should be a trained one on both sides: that of a zero-shot
  classifier as in the paper, or a probe trained first.

  LoRA is interpolated in the weights that it stands for. On the plain base as `start` its product
  is scaled by alpha and costs nothing; between two adapters both products stay side by side, at the
  sum of the ranks. Other adapters have to be of one kind on both sides, and their fields are
  interpolated, which for most kinds is another path than that of their weights; `adapt.merge` both
  to walk that one. Arithmetic is float32, and types are those of `tuned`.

  Args:
    start: the parameters before: of the plain base, or as a method returned them.
    tuned: the parameters after; it says what trains in the result.
    alpha: 0 for the start, 1 for the tuned.

  Raises:
    InputError: another tree, adapters of different kinds, or an alpha that is no number.
  """
  if isinstance(alpha, int | float) and not math.isfinite(alpha):
    raise InputError(f'interpolate: alpha is {alpha}; give a number, mostly from 0 to 1')
  before = dict(tree.named_weights(start))
  _same_paths('interpolate', before, dict(tree.named_weights(tuned)))
  return tree.map_weights(
    lambda path, leaf: _between(path, before[path], leaf, jnp.asarray(alpha, jnp.float32)), tuned
  )


def soup(tuned: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
  """The mean of models that were tuned from one start.

  A model soup, Wortsman et al. 2022, arXiv:2203.05482: of runs with other seeds or learning rates,
  it costs no more than one of them and is often better than the best. Of the last checkpoints of
  one run, a few hundred steps apart, it is LAWA (Kaddour 2022, arXiv:2209.14981).

  Of plain weights: the mean of two `A` times the mean of two `B` is no mean of two LoRAs. Merge
  adapters first (`merge`), or with each other (`merge_adapters`).

  Args:
    tuned: parameters of one structure; leaves that all have in common are not touched.
    weights: of each, by default equal. They need not add up to one.

  Raises:
    InputError: none given, other trees, adapters that differ, or weights that do not fit.
  """
  if not tuned:
    raise InputError('soup: no models are given; give at least one')
  weights = [1 / len(tuned)] * len(tuned) if weights is None else list(weights)
  if len(weights) != len(tuned):
    raise InputError(f'soup: {len(weights)} weights for {len(tuned)} models; give one for each')
  found = [dict(tree.named_weights(params)) for params in tuned]
  for other in found[1:]:
    _same_paths('soup', found[0], other)

  def mean(path: str, leaf: Any) -> Any:
    leaves = [named[path] for named in found]
    if all(other is leaf for other in leaves):
      return leaf
    if any(is_adapter(other) for other in leaves):
      raise InputError(
        f'soup: {path!r} is a {type(leaf).__name__}, and means of its fields are no mean of the '
        'weights; adapt.merge each model first, or take adapt.merge_adapters'
      )
    return _linear('soup', path, leaves, weights)

  return tree.map_weights(mean, tuned[0])


def _same_paths(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
  for path in [*first, *second]:
    if path not in first or path not in second:
      raise InputError(f'{name}: only one of the models has {path!r}; both must be one model')
    if tuple(first[path].shape) != tuple(second[path].shape):
      raise InputError(
        f'{name}: {path!r} has the shapes {tuple(first[path].shape)} and '
        f'{tuple(second[path].shape)}; both must be one model'
      )


def _between(path: str, start: Any, tuned: Any, alpha: jax.Array) -> Any:
  if start is tuned:
    return tuned
  if isinstance(tuned, LoRA) and (isinstance(start, LoRA) or not is_adapter(start)):
    return _between_products(path, start, tuned, alpha)
  return _linear('interpolate', path, [start, tuned], [1 - alpha, alpha])


def _between_products(path: str, start: Any, tuned: LoRA, alpha: jax.Array) -> LoRA:
  """`(1 - alpha) s_0 A_0 B_0 + alpha s A B` in the form `s [A_0, A] [B_0'; B']`."""
  inner, residual = tuned.base, isinstance(tuned.base, Residual)
  if isinstance(inner, LoRA):
    below = start.base if isinstance(start, LoRA) else start
    inner = _between_products(path, below, inner, alpha)
  if isinstance(start, LoRA):
    first = (start.a, start.b, start.scale)
  elif residual:  # part of the base's own weight is in the adapter
    first = (tuned.base.a0, tuned.base.b0, tuned.scale)
  else:
    return dataclasses.replace(tuned, base=inner, scale=alpha * tuned.scale)
  a_0, b_0, scale_0 = (x.astype(jnp.float32) for x in first)
  share = ((1 - alpha) * scale_0 / tuned.scale)[..., None, None]
  return dataclasses.replace(
    tuned,
    base=inner,
    a=jnp.concatenate([a_0, tuned.a.astype(jnp.float32)], axis=-1),
    b=jnp.concatenate([share * b_0, alpha * tuned.b.astype(jnp.float32)], axis=-2),
  )


def _linear(name: str, path: str, leaves: Sequence[Any], weights: Sequence[Any]) -> Any:
  """The weighted sum of the fields; integers (codes) must be the same in all."""
  structures = {jax.tree.structure(leaf) for leaf in leaves}
  if len(structures) != 1:
    kinds = ' and a '.join(type(x).__name__ if is_weight(x) else 'plain array' for x in leaves[:2])
    raise InputError(
      f'{name}: {path!r} is a {kinds}, which have no common fields; adapt.merge each model first'
    )

  def one(*fields: jax.Array) -> jax.Array:
    last = fields[-1]
    if all(field is last for field in fields) or not jnp.issubdtype(last.dtype, jnp.inexact):
      return last
    total = sum(w * x.astype(jnp.float32) for w, x in zip(weights, fields, strict=True))
    return jnp.asarray(total, last.dtype)

  return jax.tree.map(one, *leaves)
