"""Runs of different ranks in one shape: the smaller ones are filled up with zeros."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import adapt, tree
from jaxtune.sweep.lanes import BESIDE
from jaxtune.typing import InputError, Params, is_weight


def fit_ranks(params: Params, like: Params) -> adapt.Adapted:
  r"""The parameters with every adapter as large as that of `like`, filled up with zeros.

  Of a LoRA of rank r in one of rank R the last R - r columns of A and rows of B are zero. Each
  one's gradient is a product with the other, and so are zero too: under every rule that turns a
  gradient of zero into an update of zero and looks at no other entry than its own (AdamW), or whose
  directions keep a matrix's null space (Muon), the run is that of rank r.

  Args:
    params: what a method returned, with the run's own rank.
    like: the same method's with the largest rank, or their shapes.

  Raises:
    InputError: the two differ in more than the size of adapters.
  """

  def fitted(path: str, leaf: Any, wanted: Any) -> Any:
    if not adapt.is_adapter(leaf) and path.split('/')[0] not in BESIDE:
      return leaf

    def one(field: Any, x: jax.Array, larger: Any) -> jax.Array:
      gaps = [b - a for a, b in zip(x.shape, larger.shape, strict=True)]
      if min(gaps, default=0) < 0:
        raise InputError(
          f'{path!r}: {tree.path_name(field)} is {list(x.shape)}, which does not fit into '
          f'{list(larger.shape)}; give the largest rank for `like`'
        )
      return jnp.pad(x, [(0, gap) for gap in gaps]) if any(gaps) else x

    return jax.tree_util.tree_map_with_path(one, leaf, wanted)

  try:
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf, wanted: fitted(tree.path_name(path), leaf, wanted),
      params,
      like,
      is_leaf=is_weight,
    )
  except InputError:
    raise
  except ValueError as error:  # other structures
    raise _not_alike(error) from None


def cut_ranks(params: Params, like: Params) -> adapt.Adapted:
  """The inverse of `fit_ranks`: adapters as small as those of `like`, or their shapes.

  Raises:
    InputError: what is cut off is not zero.
  """

  def one(path: Any, x: jax.Array, smaller: Any) -> jax.Array:
    if x.shape == smaller.shape:
      return x
    own = x[tuple(slice(0, size) for size in smaller.shape)]
    if jnp.count_nonzero(own) != jnp.count_nonzero(x):
      raise InputError(
        f'{tree.path_name(path)!r} is not zero beyond {list(smaller.shape)}; the update rule moves '
        'what has no gradient, so give each rank a program of its own'
      )
    return own

  return jax.tree_util.tree_map_with_path(one, params, like)


def largest(runs: Sequence[Params]) -> Params:
  """The shapes of parameters into which all of these fit, for `fit_ranks`.

  Raises:
    InputError: they are not of one method on one model.
  """

  def shape(*leaves: Any) -> jax.ShapeDtypeStruct:
    sizes = zip(*(leaf.shape for leaf in leaves), strict=True)
    return jax.ShapeDtypeStruct(tuple(map(max, sizes)), leaves[0].dtype)

  try:
    return jax.tree.map(shape, *runs)
  except ValueError as error:
    raise _not_alike(error) from None


def _not_alike(error: ValueError) -> InputError:
  return InputError(
    f'the parameters are not those of one method on one model: {str(error).splitlines()[0]}'
  )
