"""What a rule keeps for which parameter, where it lies, and whether a state fits; nothing runs."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune import tree
from jaxtune.typing import InputError


def describe(tx: Any, params: Any) -> str:
  """A table: each parameter, its shape, its bytes of state, and the states that hold it.

  A state's name is its path: `matrices/trace` for a matrix of Muon, `rest/mu` for what Adam takes.

  Args:
    tx: an optax transformation.
    params: arrays or their shapes.
  """
  state = jax.eval_shape(tx.init, params)
  held: dict[int | None, list[tuple[str, Any]]] = {}
  for leaf, owner, path in zip(
    jax.tree.leaves(state), tree.owners(state, params), tree.paths(state), strict=True
  ):
    name = path if owner is None else f'{owner.state} {owner.field}'.strip()
    held.setdefault(owner and owner.position, []).append((name, leaf))

  def row(name: str, elements: int, shape: str, leaves: list[tuple[str, Any]]) -> list[str]:
    total = tree.size([leaf for _, leaf in leaves])
    states = ', '.join(f'{name} {leaf.dtype}' for name, leaf in leaves)
    return [
      name,
      shape,
      f'{total:,}',
      f'{total / elements:.2f}' if elements else '-',
      states or '-',
    ]

  rows = [['parameter', 'shape', 'bytes', 'each', 'states']]
  for i, (path, leaf) in enumerate(zip(tree.paths(params), jax.tree.leaves(params), strict=True)):
    shape = 'x'.join(map(str, leaf.shape)) or '-'
    rows.append(row(path, leaf.size, shape, held.get(i, [])))
  rows.append(row('(of no parameter)', 0, '', held.get(None, [])))
  everything = row('total', tree.count(params), '', [('', x) for x in jax.tree.leaves(state)])
  rows.append([*everything[:-1], ''])
  return tree.aligned(rows, right=(2, 3))


def state_bytes(tx: Any, params: Any) -> int:
  """Bytes of the state that `tx` keeps for `params` (arrays or their shapes)."""
  return tree.size(jax.eval_shape(tx.init, params))


def state_sharding(tx: Any, params: Any, param_sharding: Any) -> Any:
  """The shardings of the state of `tx`, as `jax.jit(tx.init, out_shardings=...)` takes them.

  Moments, codes and scales lie like their parameter, all else is replicated: see
  `tree.state_shardings`.

  Args:
    tx: an optax transformation.
    params: arrays or their shapes.
    param_sharding: a tree of `NamedSharding`, one for each parameter.

  Raises:
    InputError: no sharding, or one that is not a `NamedSharding`.
  """
  shardings = jax.tree.leaves(param_sharding)
  wrong = [s for s in shardings if not isinstance(s, NamedSharding)]
  if wrong or not shardings:
    raise InputError(
      f'param_sharding holds {wrong[0] if wrong else "nothing"}; give a NamedSharding for each '
      'parameter'
    )
  replicated = NamedSharding(shardings[0].mesh, PartitionSpec())
  state = jax.eval_shape(tx.init, params)
  return tree.state_shardings(state, params, param_sharding, replicated)


def check_state(tx: Any, params: Any, state: Any) -> None:
  """Checks that `state` is one that `tx` makes for `params`: for states read from somewhere.

  Raises:
    InputError: it is that of another rule or tree; the first leaf that differs is named.
  """
  found = tree.difference(jax.eval_shape(tx.init, params), state)
  if found:
    raise InputError(
      f'the optimizer state comes from a different rule or tree: {found}; '
      'use the rule, the hyperparameters and the parameters that it was made with'
    )
