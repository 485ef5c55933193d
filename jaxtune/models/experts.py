"""A mixture of experts in place of the MLP: who goes where, and the experts' products."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxtune import ops, shard
from jaxtune.models.layers import activation, matrix


class Router(nn.Module):
  """The experts of each token and their weights: `[..., D] -> [..., k] float32, [..., k] int32`.

  `softmax(x W)` over all experts, of which the largest k are kept (Shazeer et al. 2017,
  arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088, normalizes the k to sum to one).
  """

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    c = self.config
    scores = ops.dot(x, matrix(self, 'dense', c.init_scale, c.width, c.experts))
    gates, chosen = lax.top_k(
      jax.nn.softmax(scores.astype(jnp.float32), axis=-1), c.experts_per_token
    )
    if c.normalize_gates:
      gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    return gates, chosen


class Experts(nn.Module):
  """`sum_k gate_k * expert_k(x)`, gated MLPs as experts, `[..., D] -> [..., D]`; drops no token.

  The tokens of each expert are laid out in blocks of rows, the last one filled up, and each block
  is multiplied with the matrices of its expert; shapes do not depend on who goes where. Devices
  along the mesh axis `expert` have some experts each: they gather their tokens, compute what their
  own experts make of them, and scatter the sums.
  """

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array, gates: jax.Array, chosen: jax.Array) -> jax.Array:
    c = self.config
    shapes = {
      'gate': (c.width, c.expert_hidden),
      'up': (c.width, c.expert_hidden),
      'down': (c.expert_hidden, c.width),
    }
    experts = {n: matrix(self, n, c.init_scale, c.experts, *size) for n, size in shapes.items()}

    def own(experts: Any, x: jax.Array, gates: jax.Array, chosen: jax.Array) -> jax.Array:
      rows = [y.reshape(-1, y.shape[-1]) for y in (x, gates, chosen)]
      rows = [shard.all_gather(y, 0, 'expert') for y in rows]
      return shard.reduce_scatter(_mixture(c, experts, *rows), 0, 'expert').reshape(x.shape)

    whole = {n: ops.axes(w, ('experts', None, None)) for n, w in experts.items()}
    names = (*('rows', 'length')[: x.ndim - 1], None)
    return shard.locally(own, (experts, x, gates, chosen), (whole, names, names, names), names)


def _mixture(c: Any, experts: Any, x: jax.Array, gates: jax.Array, chosen: jax.Array) -> jax.Array:
  """What the experts that are here make of tokens `[N, D]`, weighted and summed, `[N, D]`."""
  here = jax.tree.leaves(experts)[0].shape[0]
  plan = _blocks(chosen.reshape(-1) - shard.index('expert') * here, here, c.experts)
  dot = functools.partial(_blocks_dot, owners=plan.owners, live=plan.live)
  y = jnp.zeros((len(plan.owners) * plan.rows, c.width), x.dtype)
  y = y.at[plan.slots].set(jnp.repeat(x, c.experts_per_token, axis=0), mode='drop')
  y = y.reshape(len(plan.owners), plan.rows, c.width)
  y = activation(c.activation)(dot(y, experts['gate'])) * dot(y, experts['up'])
  y = dot(y, experts['down']).reshape(-1, c.width)
  y = y.at[plan.slots].get(mode='fill', fill_value=0).reshape(*gates.shape, c.width)
  return jnp.sum(y * gates.astype(x.dtype)[:, :, None], axis=1)


class Blocks(NamedTuple):
  """Blocks of rows, each for one expert.

  slots: the row of each of the pairs of a token and its expert, among those of all blocks; behind
    the last for a pair whose expert is not here.
  owners: the expert of each block.
  live: whether any pair is in it.
  rows: of a block.
  """

  slots: jax.Array
  owners: jax.Array
  live: jax.Array
  rows: int


def _blocks(chosen: jax.Array, here: int, experts: int) -> Blocks:
  """The blocks of `here` experts, counted from 0, of all `experts`, which N pairs have chosen."""
  count = len(chosen)
  rows = max(1, min(128, count // experts))
  blocks = (count + min(here, count) * (rows - 1)) // rows
  chosen = jnp.where((chosen >= 0) & (chosen < here), chosen, here)
  sizes = jnp.bincount(chosen, length=here + 1)
  filled = -(-sizes[:here] // rows)  # blocks of each
  ends = jnp.cumsum(filled)
  starts = jnp.append(ends - filled, blocks)
  order = jnp.argsort(chosen)
  rank = jnp.arange(count) - (jnp.cumsum(sizes) - sizes)[chosen[order]]
  slots = jnp.zeros_like(chosen).at[order].set(starts[chosen[order]] * rows + rank)
  number = jnp.arange(blocks)
  owners = jnp.minimum(jnp.searchsorted(ends, number, side='right'), here - 1)
  return Blocks(slots, owners, number < ends[-1], rows)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Learned:
  """Which fields of a weight have a gradient."""

  fields: tuple[bool, ...]


def _blocks_dot(x: jax.Array, w: Any, owners: jax.Array, live: jax.Array) -> jax.Array:
  """`x[i] @ w[owners[i]]` of each live block, zeros of others: `[n, r, in] -> [n, r, out]`.

  One matrix is read at a time, never copied; the backward pass adds into one gradient in place,
  and only of fields that have one.
  """
  fields, structure = jax.tree.flatten(w)

  def product(x: jax.Array, fields: Any) -> jax.Array:
    return ops.dot(x, jax.tree.unflatten(structure, fields))

  def where(on: jax.Array, live: Any, dead: Any, *given: Any) -> Any:
    # Devices that are cut along `tensor` talk in a product, for which all of them must compute it;
    # rows of a block that is not live are zeros.
    return live(*given) if shard.size('tensor') > 1 else lax.cond(on, live, dead, *given)

  out = jax.eval_shape(lambda: product(x[0], [field[0] for field in fields]))

  @jax.custom_vjp
  def run(x: jax.Array, fields: Any, owners: jax.Array, live: jax.Array) -> jax.Array:
    def one(_: None, block: Any) -> tuple[None, jax.Array]:
      x, owner, on = block
      fill = jnp.zeros(out.shape, out.dtype)
      return None, where(on, lambda: product(x, [f[owner] for f in fields]), lambda: fill)

    return lax.scan(one, None, (x, owners, live))[1]

  def forward(x: Any, fields: Any, owners: Any, live: Any) -> Any:
    values = [f.value for f in fields]
    learned = _Learned(tuple(f.perturbed for f in fields))
    kept = (x.value, values, owners.value, live.value, learned)
    return run(*kept[:4]), kept

  def backward(kept: Any, cotangent: jax.Array) -> Any:
    x, fields, owners, live, learned = kept
    moving = [i for i, own in enumerate(learned.fields) if own]

    def one(sums: list[jax.Array], block: Any) -> Any:
      x, cotangent, owner, on = block
      mine = [f[owner] for f in fields]

      def pull(sums: list[jax.Array]) -> Any:
        def moved(x: jax.Array, some: list[jax.Array]) -> jax.Array:
          given = dict(zip(moving, some, strict=True))
          return product(x, [given.get(i, f) for i, f in enumerate(mine)])

        back, found = jax.vjp(moved, x, [mine[i] for i in moving])[1](cotangent)
        return [s.at[owner].add(g) for s, g in zip(sums, found, strict=True)], back

      return where(on, pull, lambda sums: (sums, jnp.zeros_like(x)), sums)

    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
      return None, None, None, None
    zeros = [jnp.zeros_like(fields[i]) for i in moving]
    sums, back = lax.scan(one, zeros, (x, cotangent, owners, live))
    found = dict(zip(moving, sums, strict=True))
    return back, [found.get(i) for i in range(len(fields))], None, None

  run.defvjp(forward, backward, symbolic_zeros=True)
  return checkpoint_name(run(x, fields, owners, live), 'product')
