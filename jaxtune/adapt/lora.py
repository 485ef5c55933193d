"""LoRA: a frozen weight plus a trained product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685.
"""

import dataclasses
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops, tree
from jaxtune.adapt.method import HEAD, Adapted
from jaxtune.typing import InputError, Key, Params

# Every matrix of a built-in model's layers; attention alone loses (docs/adapt.md).
LINEAR = r'(^|/)((attn|cross)/[qkvo]|(mlp|experts)/(gate|up|down)|pooler/dense)$'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRA:
  """The weight `W + scale * A B`, never added up in the forward pass.

  The paper writes `W_0 + B A` for column vectors; weights here are `[in, out]`, so A is `[in, R]`.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    a: `[..., in, R]`.
    b: `[..., R, out]`.
    scale: `[...]`, alpha / rank.
  """

  base: Any
  a: jax.Array
  b: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    delta = self.scale[..., None, None] * (self.a @ self.b)
    base = ops.materialize(self.base)
    return base + delta.astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    low = (x @ self.a.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot(x, self.base) + low @ self.b.astype(x.dtype)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    low = (x @ self.b.T.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot_transposed(x, self.base) + low @ self.a.T.astype(x.dtype)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    return base + ((ops.take(self.a, ids) * self.scale) @ self.b).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'LoRA':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    base = self.base.axes(names) if hasattr(self.base, 'axes') else names
    return LoRA(base, (*lead, inside, None), (*lead, None, outside), lead)  # type: ignore[arg-type]


def _wrap(key: Key, path: str, weight: Any, rank: int, alpha: float) -> LoRA:
  shape = weight.shape
  if len(shape) < 2 + tree.is_stacked(path):
    raise InputError(f'LoRA needs a matrix, and {path!r} has the shape {shape}; narrow the targets')
  *lead, inputs, outputs = shape
  if rank > min(inputs, outputs):
    raise InputError(
      f'method.rank is {rank}, but {path!r} is a {inputs}x{outputs} matrix: '
      f'choose a rank from 1 to {min(inputs, outputs)}'
    )
  # Each weight has its own stream, named by its path, so that adding a target changes no other.
  key = jax.random.fold_in(key, zlib.crc32(path.encode()))
  bound = inputs**-0.5  # PEFT's start: Kaiming uniform with a = sqrt(5)
  return LoRA(
    base=weight,
    a=jax.random.uniform(key, (*lead, inputs, rank), minval=-bound, maxval=bound),
    b=jnp.zeros((*lead, rank, outputs)),
    scale=jnp.full(tuple(lead), alpha / rank, jnp.float32),
  )


def lora(
  key: Key,
  params: Params,
  rank: int,
  alpha: float = 32.0,
  *,
  targets: str = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the targeted weights and trains their A and B.

  A is uniform in `±1/sqrt(in)`, B zero, so the first forward pass is the base model's.

  Args:
    key: for the A matrices.
    params: the parameters of the base.
    rank: R, from 1 to the smaller side of every targeted matrix.
    alpha: the product is scaled by `alpha / rank`. Held while the rank changes, it leaves the best
      learning rate nearly where it is (docs/adapt.md).
    targets: regular expression over weight paths; all matrices of the layers by default.
    also: regular expression over parameters to train as they are, beside the adapter: by default a
      fresh head. None for nothing, as for a language model whose untied head is pretrained.

  Raises:
    InputError: a rank that does not fit, an alpha that is not positive, targets without a match.
  """
  if rank < 1:
    raise InputError(f'method.rank is {rank}; it must be at least 1')
  if not 0 < alpha < float('inf'):
    raise InputError(f'method.alpha is {alpha}; it must be a positive number')
  paths = [path for path, _ in tree.named_weights(params) if re.search(targets, path)]
  if not paths:
    matrices = [path for path, leaf in tree.named_weights(params) if len(leaf.shape) > 1]
    raise InputError(
      f'LoRA targets {targets!r} match no parameter; the matrices are {", ".join(matrices)}'
    )
  adapted = tree.map_weights(
    lambda path, leaf: _wrap(key, path, leaf, rank, alpha) if path in paths else leaf, params
  )
  rules: list[tuple[str, bool]] = []
  for path in map(re.escape, paths):
    rules += [(rf'^{path}/[ab]$', True), (rf'^{path}/', False)]
  if also is not None:
    rules.append((also, True))
  return Adapted(adapted, (*rules, (r'', False)))


def merge(params: Params) -> Params:
  """Adds every adapter into its base, in float32: the tree that the base model had."""

  def add(path: str, leaf: Any) -> Any:
    if not isinstance(leaf, LoRA):
      return leaf
    base = ops.materialize(leaf.base)
    wide = LoRA(base.astype(jnp.float32), leaf.a, leaf.b, leaf.scale)
    with jax.default_matmul_precision('highest'):  # accelerators round A and B to bf16 by default
      return wide.materialize().astype(base.dtype)

  return tree.map_weights(add, params)
