"""Adam with one second moment for a block of entries: an output neuron, a head, a tensor."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.optim.descent import descend
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import BIASES, DECAYED, EMBEDDINGS, HEADS, NORMS
from jaxtune.typing import InputError


class Blocks(NamedTuple):
  """Which entries of a leaf share one second moment.

  groups: into how many equal groups of neighbours each of the last axes is cut; None leaves every
    index by itself. The axes before them are one group, those of a stack of layers are always kept
    apart, and numbers for axes that a leaf does not have are dropped. For `[in, out]` weights:
    `()` is one block a tensor, `(None,)` one a column, which is an output neuron, `(heads,)` one a
    head, `(None, 1)` one a row, which is a token of an embedding, and `(None, None)` is Adam.
  """

  groups: tuple[int | None, ...] = ()


ADAM_MINI: Sequence[tuple[str, Blocks]] = (
  (BIASES, Blocks()),
  (NORMS, Blocks()),
  (EMBEDDINGS, Blocks((None, 1))),
  (HEADS, Blocks((None,))),
  (r'(?i)(^|[/_])(attn|attention|self_attn|cross|mlp)(/|$)', Blocks((None,))),
  (r'.*', Blocks()),
)
"""The partition of Adam-mini (Algorithm 3): a token of an embedding or head, an output neuron of
attention and MLP, and all else one block a tensor. Queries and keys go by output neuron too, which
is finer than the paper's heads: a weight does not tell how many it has, see `adam_mini_blocks`.
"""


def adam_mini_blocks(heads: int, kv_heads: int | None = None) -> Sequence[tuple[str, Blocks]]:
  """`ADAM_MINI` with one block for each head of the queries and keys.

  Args:
    heads: query heads.
    kv_heads: key heads; None is as many.

  Raises:
    InputError: a number below 1.
  """
  kv_heads = heads if kv_heads is None else kv_heads
  if min(heads, kv_heads) < 1:
    raise InputError(f'adam_mini_blocks has heads {heads} and kv_heads {kv_heads}; give at least 1')
  return (
    (r'/a$', Blocks((None,))),  # LoRA: the columns of A are ranks, those of B have the heads
    (r'(^|/)(attn|cross)/q$', Blocks((heads,))),
    (r'(^|/)(attn|cross)/k$', Blocks((kv_heads,))),
    *ADAM_MINI,
  )


class BlockwiseMomentsState(NamedTuple):
  """State of `scale_by_blockwise_moments`.

  step: int32, updates so far.
  mu: first moments, as the parameters.
  nu: second moments, with the axes of the parameters and one entry for each block.
  """

  step: jax.Array
  mu: Any
  nu: Any


def scale_by_blockwise_moments(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  blocks: Sequence[tuple[str, Blocks]] = ADAM_MINI,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam whose second moment is one number a block $b$.

  $m = \beta_1 m + (1-\beta_1)\, g$, $v_b = \beta_2 v_b + (1-\beta_2)\,\mathrm{mean}_b(g^2)$ and
  $u = \hat m / (\sqrt{\hat v_b} + \epsilon)$ with Adam's bias corrections (Zhang et al., arXiv
  2406.16793, Algorithm 1). State: 4 bytes a parameter and 4 a block.

  Args:
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    eps: keeps the division finite.
    blocks: `(pattern, Blocks)`, see `Blocks` and `ADAM_MINI`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.

  Raises:
    InputError: at `init`, a leaf that no rule covers or that its rule cannot cut.
  """

  def init(params):
    cuts, structure = _cuts(blocks, axes, params), jax.tree.structure(params)
    nu = [
      jnp.zeros([count for count, _ in cut], leaf.dtype)
      for cut, leaf in zip(cuts, jax.tree.leaves(params), strict=True)
    ]
    return BlockwiseMomentsState(
      jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), jax.tree.unflatten(structure, nu)
    )

  def update(updates, state, params=None, **extra):
    del params, extra
    cuts, structure = _cuts(blocks, axes, updates), jax.tree.structure(updates)
    step = optax.safe_increment(state.step)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    means = [
      _cut(g * g, cut).mean(axis=tuple(range(1, 2 * len(cut), 2)))
      for cut, g in zip(cuts, jax.tree.leaves(updates), strict=True)
    ]
    nu = optax.tree.update_moment(jax.tree.unflatten(structure, means), state.nu, b2, 1)
    moments = optax.tree.bias_correction(mu, b1, step), optax.tree.bias_correction(nu, b2, step)
    scaled = [
      (_cut(m, cut) / (_spread(jnp.sqrt(v)) + eps)).reshape(m.shape)
      for cut, m, v in zip(cuts, *map(jax.tree.leaves, moments), strict=True)
    ]
    return jax.tree.unflatten(structure, scaled), BlockwiseMomentsState(step, mu, nu)

  return in_precision(optax.GradientTransformationExtraArgs(init, update))


def adam_mini(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
  blocks: Sequence[tuple[str, Blocks]] = ADAM_MINI,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW with one second moment a block: half the state of Adam (Adam-mini).

  $\theta \leftarrow \theta - \alpha\,(u + \lambda\theta)$ with $u$ of `scale_by_blockwise_moments`
  (Zhang et al., arXiv 2406.16793, Algorithms 1 to 3). All hyperparameters as for AdamW. The
  authors' package keeps all of Adam's second moments for embeddings and heads, and one number a
  tensor for values, outputs and MLP; the blocks here are the paper's. For queries and keys by head
  pass `blocks=adam_mini_blocks(heads, kv_heads)`.

  Args:
    learning_rate: $\alpha$, a number or a function from the step to a number.
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    eps: keeps the division finite.
    weight_decay: $\lambda$, decoupled (arXiv 1711.05101).
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.
    blocks: `(pattern, Blocks)`, see `ADAM_MINI`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  direction = scale_by_blockwise_moments(b1, b2, eps, blocks=blocks, axes=axes)
  return descend(direction, learning_rate, weight_decay, mask)


def _cuts(blocks: Any, axes: Any, params: Any) -> list[list[tuple[int, int]]]:
  """`(number of groups, size of each)` of every axis of every leaf, in tree order."""
  routes = zip(tree.routing(blocks, params), tree.routing(axes, params), strict=True)
  return [_groups(route, stack.value) for route, stack in routes]


def _groups(route: tree.Route, stacked: int) -> list[tuple[int, int]]:
  own = len(route.shape) - stacked
  if own < 0:
    raise InputError(
      f'axes give {route.path!r} of shape {route.shape} {stacked} stacked axes; give fewer'
    )
  if not isinstance(route.value, Blocks):
    raise InputError(f'block rule {route.pattern!r} has the value {route.value!r}; give Blocks')
  groups = route.value.groups[max(len(route.value.groups) - own, 0) :]
  counts: list[int | None] = [None] * stacked + [1] * (own - len(groups)) + list(groups)
  cut = []
  for count, size in zip(counts, route.shape, strict=True):
    if count is not None and (count < 1 or size % count):
      raise InputError(
        f'block rule {route.pattern!r} cuts an axis of {route.path!r} of shape {route.shape} into '
        f'{count} groups; give a number that divides {size}'
      )
    cut.append((size, 1) if count is None else (count, size // count))
  return cut


def _cut(x: jax.Array, cut: list[tuple[int, int]]) -> jax.Array:
  """Each axis in two: the group, and the place in it."""
  return x.reshape([n for pair in cut for n in pair])


def _spread(x: jax.Array) -> jax.Array:
  """One entry a block, against the result of `_cut`."""
  return x.reshape([n for count in x.shape for n in (count, 1)])
