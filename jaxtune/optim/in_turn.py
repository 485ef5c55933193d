"""Decompositions one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def after(x: Any, done: Any) -> Any:
  """`x`, but not before `done` (None for at once) has been computed.

  On CPU a batched decomposition holds a thread of XLA until its batch is through. In JAX 0.10 two
  that run at once, beside products of matrices, can hold all threads and wait for ever; only a real
  dependence keeps them apart there, since barriers are gone before kernels are scheduled.
  """
  if done is None:
    return x
  first = jax.tree.leaves(done)[0]
  nothing = jnp.where(first[(0,) * first.ndim] == jnp.inf, 1, 0)
  return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), x)


def in_turn(
  function: Callable[..., Any],
  tree: Any,
  *rest: Any,
  is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
  """`jax.tree.map` of a function with a decomposition, one leaf after the other."""
  leaves, structure = jax.tree.flatten(tree, is_leaf)
  others = [jax.tree.leaves(x, is_leaf=is_leaf) for x in rest]
  results: list[Any] = []
  for leaf, *arguments in zip(leaves, *others, strict=True):
    previous = results[-1] if results else None
    results.append(function(after(leaf, previous), *arguments))
  return jax.tree.unflatten(structure, results)
