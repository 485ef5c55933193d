"""What fine-tuning added to a model, as a vector: added, subtracted, and merged with others.

Ilharco et al. 2022, arXiv:2212.04089; TIES: Yadav et al. 2023, arXiv:2306.01708; DARE: Yu et al.
2023, arXiv:2311.03099.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops, tree
from jaxtune.adapt.adapted import is_adapter
from jaxtune.adapt.lora import path_key
from jaxtune.adapt.merge import merge
from jaxtune.typing import InputError, Key, Params, is_weight

METHODS = ('linear', 'magnitude_prune', 'ties', 'dare_linear', 'dare_ties')
SIGNS = ('total', 'frequency')

TaskVector = dict[str, jax.Array]


def task_vector(base: Params, tuned: Params) -> TaskVector:
  """`tuned - base` in float32, by path.

  Adapters of `tuned` are merged first. Parameters that only one of the two has are left out: a
  classifier's head, say. A plain dict: leave entries out, or scale some, as you like.

  Raises:
    InputError: nothing in common, or a parameter of another shape.
  """
  before, after = dict(tree.named_weights(base)), dict(tree.named_weights(_plain(tuned)))
  vector: TaskVector = {}
  for path, leaf in before.items():
    if path not in after:
      continue
    if tuple(leaf.shape) != tuple(after[path].shape):
      raise InputError(
        f'task_vector: {path!r} is {tuple(leaf.shape)} in the base and {tuple(after[path].shape)} '
        'in the tuned model; give the base that it was tuned from'
      )
    vector[path] = after[path].astype(jnp.float32) - ops.materialize(leaf).astype(jnp.float32)
  if not vector:
    raise InputError('task_vector: the two models have no parameter in common; give one model')
  return vector


def apply_task_vectors(
  base: Params,
  vectors: Sequence[TaskVector],
  weights: Sequence[float],
  method: str = 'linear',
  *,
  density: float | None = None,
  sign: str = 'total',
  key: Key | None = None,
) -> Params:
  """The base plus several task vectors, merged by `method`, see `merge_tensors`.

  One vector with a negative weight makes the model forget its task; several with weights of about
  0.3 to 1 are the tasks together. Choose weights on held-out rows, all alike at first.

  Pruning and signs are by matrix, each layer by itself, as PEFT and mergekit have them; the papers
  of TIES and DARE prune the whole vector at once, which takes more from matrices that changed less.

  Args:
    base: plain parameters; quantized ones come out dense.
    vectors: from `task_vector`; a parameter that a vector lacks is merged of the others.
    weights: of each vector.
    method: one of `linear`, `magnitude_prune`, `ties`, `dare_linear`, `dare_ties`.
    density: share of the entries that is kept, of all methods but `linear`.
    sign: how `ties` elects, see `merge_tensors`.
    key: of what DARE drops.

  Returns:
    Parameters in the types of `base`.

  Raises:
    InputError: weights that do not fit, a method, density or sign that is none, a vector of another
      model.
  """
  check_combination('apply_task_vectors', len(vectors), weights, method, density, sign, key)
  named = dict(tree.named_weights(base))
  for path, leaf in named.items():
    if is_adapter(leaf):
      raise InputError(
        f'apply_task_vectors: {path!r} of the base is a {type(leaf).__name__}; adapt.merge it first'
      )
  for vector in vectors:
    for path, value in vector.items():
      if path not in named or tuple(named[path].shape) != tuple(value.shape):
        found = 'has no such parameter' if path not in named else tuple(named[path].shape)
        raise InputError(
          f'apply_task_vectors: a vector has {path!r} of the shape {tuple(value.shape)}, and the '
          f'base {found}; give the base that it was taken from'
        )

  def add(path: str, leaf: Any) -> Any:
    given = [(v[path], w) for v, w in zip(vectors, weights, strict=True) if path in v]
    if not given:
      return leaf
    dense = ops.materialize(leaf)
    total = np.empty(dense.shape, np.float32)
    for at in matrices(path, dense.shape):
      own = None if key is None else jax.random.fold_in(path_key(key, path), _number(at, dense))
      values, shares = zip(*((value[at], share) for value, share in given), strict=True)
      total[at] = merge_tensors(values, shares, method, density, sign, own)
    return (dense.astype(jnp.float32) + total).astype(dense.dtype)

  return tree.map_weights(add, base)


def merge_tensors(
  tensors: Sequence[jax.Array],
  weights: Sequence[Any],
  method: str,
  density: float | None = None,
  sign: str = 'total',
  key: Key | None = None,
) -> jax.Array:
  """One tensor of several, float32; `w_i` their weights.

  - linear: `sum_i w_i t_i`.
  - magnitude_prune: likewise, of the `density` largest entries of each.
  - dare_linear: likewise, of a random `density` of the entries of each, divided by `density`.
  - ties, dare_ties: pruned like the two before; then the sign of an entry is elected by the sum of
    the tensors (`total`) or of their signs (`frequency`), and the mean is taken of `w_i t_i` over
    the tensors that have it. A tie elects plus. Weights do not vote, as in PEFT; the paper has one
    weight for all.
  """
  x = jnp.stack([jnp.asarray(t, jnp.float32) for t in tensors])
  if method in ('magnitude_prune', 'ties'):
    assert density is not None
    x = jnp.stack([_largest(t, density) for t in x])
  elif method in ('dare_linear', 'dare_ties'):
    assert density is not None and key is not None
    x = jnp.where(jax.random.bernoulli(key, density, x.shape), x / density, 0)
  shape = (-1, *[1] * (x.ndim - 1))
  weighted = jnp.asarray(weights, jnp.float32).reshape(shape) * x
  if not method.endswith('ties'):
    return weighted.sum(0)
  votes = x if sign == 'total' else jnp.sign(x)
  elected = jnp.where(votes.sum(0, keepdims=True) >= 0, 1.0, -1.0)
  agree = jnp.sign(x) == elected
  return (weighted * agree).sum(0) / jnp.maximum(agree.sum(0), 1)


def check_combination(
  name: str,
  count: int,
  weights: Sequence[float],
  method: str,
  density: float | None,
  sign: str,
  key: Key | None,
  methods: Sequence[str] = METHODS,
) -> None:
  """Refuses arguments that make no sense together."""
  if not count or len(weights) != count:
    raise InputError(f'{name}: {count} given with {len(weights)} weights; give a weight for each')
  if not all(np.isfinite(w) for w in weights):
    raise InputError(f'{name}: the weights are {list(weights)}; they must be finite numbers')
  if method not in methods:
    raise InputError(f'{name}: method is {method!r}; known: {", ".join(methods)}')
  if sign not in SIGNS:
    raise InputError(f'{name}: sign is {sign!r}; known: {", ".join(SIGNS)}')
  if 'ties' in method or 'dare' in method or 'prune' in method:
    if density is None or not 0 < density <= 1:
      raise InputError(
        f'{name}: density is {density}; {method} needs the share of entries to keep, above 0 and '
        'up to 1'
      )
  if 'dare' in method and key is None:
    raise InputError(f'{name}: {method} drops at random and needs a key, as jax.random.key(0)')


def matrices(path: str, shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
  """The place of every matrix, or vector, of a parameter: each layer and expert by itself."""
  stacked = int(tree.is_stacked(path))
  lead = shape[:-2] if len(shape) >= 2 + stacked else shape[:stacked]
  return np.ndindex(*lead)


def _number(at: tuple[int, ...], array: jax.Array) -> int:
  return int(np.ravel_multi_index(at, array.shape[: len(at)])) if at else 0


def _largest(x: jax.Array, density: float) -> jax.Array:
  """Of the entries the `density` with the largest magnitude, zero for the others."""
  count = int(density * x.size)
  if count == x.size:
    return x
  if not count:
    return jnp.zeros_like(x)
  size = np.abs(np.asarray(x))  # on the host: XLA would sort, where a partition is enough
  least = np.partition(size, x.size - count, axis=None)[x.size - count]
  return jnp.where(size >= least, x, 0)


def _plain(params: Params) -> Params:
  """Parameters without weight leaves, in float32 where there were any."""
  if not any(is_weight(leaf) for _, leaf in tree.named_weights(params)):
    return params

  def wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.inexact) else x

  return merge(jax.tree.map(wide, params))
