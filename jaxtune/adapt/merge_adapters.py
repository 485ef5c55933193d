"""Several LoRA adapters of one base as one adapter."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.adapt.adapted import Adapted, is_adapter, rules_of
from jaxtune.adapt.lora import DroppedLoRA, LoRA, path_key
from jaxtune.adapt.task_vectors import METHODS, check_combination, merge_tensors
from jaxtune.typing import InputError, Key, Params

ON_FACTORS = METHODS
ON_PRODUCTS = ('svd', *(f'{name}_svd' for name in METHODS if name != 'linear'))


def merge_adapters(
  adapters: Sequence[Params],
  weights: Sequence[float],
  method: str = 'linear',
  *,
  rank: int | None = None,
  density: float | None = None,
  sign: str = 'total',
  key: Key | None = None,
) -> Adapted:
  """One LoRA of several that are on the same weights of the same base, as PEFT merges them.

  With `c_i = w_i s_i` (the weight times the scale of the adapter):

  - cat: `[c_1 A_1, c_2 A_2, ...] [B_1; B_2; ...]`, exactly the weighted sum of the products, at the
    sum of the ranks.
  - svd: the matrix of `rank` nearest to that sum (Eckart & Young 1936), from the factors alone.
  - ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd: the products themselves are
    merged as task vectors (`merge_tensors`), and the nearest matrix of `rank` taken. The dense
    products of one layer at a time are held.
  - linear, ties, dare_linear, dare_ties, magnitude_prune: the A are merged with each other with the
    weights `sign(c_i) sqrt(|c_i|)`, and the B with `sqrt(|c_i|)`. Cheap, and of the same rank, but
    with cross terms `A_1 B_2`: rough unless the adapters come from one another.

  PEFT's `add_weighted_adapter` to the letter, but for its noise in DARE, and for what it lets pass:
  adapters on different weights, of which it merges what there is.

  Args:
    adapters: parameters under LoRA each, of one base.
    weights: of each adapter; a negative one takes it away.
    method: as above.
    rank: of the methods that end in svd; by default the largest of the adapters'.
    density: share of the entries kept, of ties, dare and magnitude_prune.
    sign: how ties elects, see `merge_tensors`.
    key: of what dare drops.

  Returns:
    The first adapter's parameters with the merged factors, and a scale of one.

  Raises:
    InputError: adapters that cannot be merged, and why; or as `apply_task_vectors`.
  """
  methods = ('cat', *ON_FACTORS, *ON_PRODUCTS)
  check_combination('merge_adapters', len(adapters), weights, method, density, sign, key, methods)
  if rank is not None and method not in ON_PRODUCTS:
    raise InputError(f'merge_adapters: {method} has no rank to choose; leave rank out, or take svd')
  rules = rules_of(adapters[0])
  found = [dict(tree.named_weights(params)) for params in adapters]
  _check(adapters, found, method)

  def one(path: str, leaf: Any) -> Any:
    if not isinstance(leaf, LoRA):
      return leaf
    own = None if key is None else path_key(key, path)
    leaves = [named[path] for named in found]
    with jax.default_matmul_precision('highest'):
      a, b = _merged(path, leaves, weights, method, rank, density, sign, own)
    return dataclasses.replace(leaf, a=a, b=b, scale=jnp.ones_like(leaf.scale))

  return Adapted(tree.map_weights(one, dict(adapters[0])), rules)


def _merged(
  path: str,
  leaves: Sequence[LoRA],
  weights: Sequence[float],
  method: str,
  rank: int | None,
  density: float | None,
  sign: str,
  key: Key | None,
) -> tuple[jax.Array, jax.Array]:
  """The factors of one parameter, matrix by matrix."""
  wanted = max(leaf.a.shape[-1] for leaf in leaves) if rank is None else rank
  *_, inputs, outputs = leaves[0].shape
  if method in ON_PRODUCTS:
    most = min(inputs, outputs)
    if method == 'svd':
      most = min(most, sum(leaf.a.shape[-1] for leaf in leaves))
    if not 1 <= wanted <= most:
      raise InputError(
        f'merge_adapters: rank is {wanted}, and the sum of the adapters on {path!r} has at most '
        f'{most}; choose a rank from 1 to {most}'
      )
  lead = leaves[0].scale.shape
  made = []
  for number, at in enumerate(np.ndindex(*lead)):
    a = [leaf.a[at].astype(jnp.float32) for leaf in leaves]
    b = [leaf.b[at].astype(jnp.float32) for leaf in leaves]
    c = [w * float(leaf.scale[at]) for w, leaf in zip(weights, leaves, strict=True)]
    own = None if key is None else jax.random.fold_in(key, number)
    if method in ON_FACTORS:
      roots = [math.sqrt(abs(x)) for x in c]
      signed = [math.copysign(root, x) for root, x in zip(roots, c, strict=True)]
      keys = (None, None) if own is None else jax.random.split(own)
      made.append(
        (
          merge_tensors(a, signed, method, density, sign, keys[0]),
          merge_tensors(b, roots, method, density, sign, keys[1]),
        )
      )
      continue
    side_by_side = jnp.concatenate([x * y for x, y in zip(c, a, strict=True)], axis=1)
    if method == 'cat':
      made.append((side_by_side, jnp.concatenate(b)))
    elif method == 'svd':
      made.append(_nearest(side_by_side, jnp.concatenate(b), wanted))
    else:
      products = [s * (x @ y) for s, x, y in zip((float(o.scale[at]) for o in leaves), a, b,
                                                 strict=True)]  # fmt: skip
      dense = merge_tensors(products, weights, method.removesuffix('_svd'), density, sign, own)
      u, s, vt = jnp.linalg.svd(dense, full_matrices=False)
      made.append((u[:, :wanted], s[:wanted, None] * vt[:wanted]))
  left, right = (jnp.stack(x).reshape(*lead, *x[0].shape) for x in zip(*made, strict=True))
  return left.astype(leaves[0].a.dtype), right.astype(leaves[0].b.dtype)


def _nearest(u: jax.Array, v: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """Factors of the matrix of `rank` nearest to `u v`, without ever making that."""
  q, r = jnp.linalg.qr(u)
  p, t = jnp.linalg.qr(v.T)
  left, s, right = jnp.linalg.svd(r @ t.T, full_matrices=False)
  return q @ left[:, :rank], s[:rank, None] * (right[:rank] @ p.T)


def _check(adapters: Sequence[Params], found: Sequence[dict[str, Any]], method: str) -> None:
  """Says in one line why adapters cannot be merged."""
  targets = [{path for path, leaf in named.items() if is_adapter(leaf)} for named in found]
  for number, (named, own) in enumerate(zip(found, targets, strict=True), 1):
    if not own:
      raise InputError(f'merge_adapters: adapter {number} has no LoRA; give parameters under lora')
    for path in sorted(own):
      leaf = named[path]
      if not isinstance(leaf, LoRA):
        raise InputError(
          f'merge_adapters: {path!r} of adapter {number} is a {type(leaf).__name__}, and only LoRA '
          'has factors to merge; use adapt.task_vector on each model instead'
        )
      if is_adapter(leaf.base):
        raise InputError(
          f'merge_adapters: under the LoRA on {path!r} of adapter {number} lies a '
          f'{type(leaf.base).__name__}, so that the base itself differs; use adapt.task_vector, or '
          'save_peft and load_peft, which make one plain LoRA of both'
        )
  first = found[0]
  for number, (named, own) in enumerate(zip(found[1:], targets[1:], strict=True), 2):
    for path in sorted(own ^ targets[0]):
      has, lacks = (1, number) if path in targets[0] else (number, 1)
      raise InputError(
        f'merge_adapters: adapter {has} is on {path!r} and adapter {lacks} is not; they must have '
        'the same targets'
      )
    if named.keys() != first.keys():
      path = sorted(named.keys() ^ first.keys())[0]
      raise InputError(f'merge_adapters: only one of adapters 1 and {number} has {path!r}')
    for path, leaf in first.items():
      _check_pair(path, leaf, named[path], number, method, path in targets[0], adapters)


def _check_pair(
  path: str,
  first: Any,
  other: Any,
  number: int,
  method: str,
  adapted: bool,
  adapters: Sequence[Params],
) -> None:
  if adapted and _kind(first) is not _kind(other):
    raise InputError(
      f'merge_adapters: {path!r} is a {_kind(first).__name__} in adapter 1 and a '
      f'{_kind(other).__name__} in adapter {number}; only adapters of one kind can be merged'
    )
  if adapted and method in ON_FACTORS and first.a.shape[-1] != other.a.shape[-1]:
    raise InputError(
      f'merge_adapters: on {path!r} adapter 1 has rank {first.a.shape[-1]} and adapter {number} '
      f'rank {other.a.shape[-1]}; {method} needs equal ranks, take svd or cat'
    )
  if adapted and not _same(first.base, other.base):
    raise InputError(
      f'merge_adapters: the weights under {path!r} of adapters 1 and {number} differ; only '
      'adapters of one base can be merged'
    )
  if adapted or _same(first, other):
    return
  trained = any(
    route.value
    for params in (adapters[0], adapters[number - 1])
    if isinstance(params, Adapted)
    for route in tree.routing(params.rules, {path: first})
  )
  raise InputError(
    f'merge_adapters: {path!r} differs between adapters 1 and {number}'
    + (
      ', which trained it whole, and that cannot be merged; give the same in all, as in '
      'adapters[1]["head"] = adapters[0]["head"]'
      if trained
      else '; only adapters of one base can be merged'
    )
  )


def _kind(leaf: LoRA) -> type:
  """Dropout in training makes no other kind."""
  return LoRA if isinstance(leaf, DroppedLoRA) else type(leaf)


def _same(x: Any, y: Any) -> bool:
  """Whether two weights are equal, at once where they are one array."""
  if x is y:
    return True
  if len({jax.tree.structure(x), jax.tree.structure(y)}) > 1:
    return False
  return all(
    a is b or (a.shape == b.shape and a.dtype == b.dtype and bool(jnp.array_equal(a, b)))
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  )
