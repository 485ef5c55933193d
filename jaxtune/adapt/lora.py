"""LoRA: a frozen weight plus a trained product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685.
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops, tree
from jaxtune.adapt.adapted import (
  HEAD,
  LINEAR,
  Adapted,
  Select,
  is_adapter,
  matrix_sides,
  wrap,
)
from jaxtune.adapt.lora_starts import Start, begin, check_start
from jaxtune.typing import InputError, Key, Params


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
    low = ops.matmul(x, self.a.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot(x, self.base) + ops.matmul(low, self.b.astype(x.dtype))

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    low = (x @ self.b.T.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot_transposed(x, self.base) + low @ self.a.T.astype(x.dtype)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    return base + ((ops.take(self.a, ids) * self.scale) @ self.b).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'LoRA':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    base = ops.axes(self.base, names)
    return LoRA(base, (*lead, inside, None), (*lead, None, outside), lead)  # type: ignore[arg-type]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DroppedLoRA(LoRA):
  """LoRA that zeroes inputs of A at random while it has a key: `x W + scale * drop(x) A B`.

  Kept inputs are divided by `1 - dropout`, so the mean over keys is the product without dropout.
  Only `dot` drops: embeddings, and the head that is tied to them, do not, as in PEFT.

  Attributes:
    dropout: `[...]`, the probability.
    key: `[...]`, or None (evaluation, merging); `with_key` sets it.
  """

  dropout: jax.Array
  key: Key | None = None

  def dot(self, x: jax.Array) -> jax.Array:
    if self.key is None:
      return LoRA.dot(self, x)
    keep = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape)
    kept = jnp.where(keep, x / (1 - self.dropout).astype(x.dtype), jnp.zeros((), x.dtype))
    low = ops.matmul(kept, self.a.astype(x.dtype)) * self.scale.astype(x.dtype)
    return ops.dot(x, self.base) + ops.matmul(low, self.b.astype(x.dtype))

  def materialize(self) -> jax.Array:
    if self.key is not None:
      raise InputError(
        'the dropout of LoRA needs a built-in model, and this module takes whole matrices; set '
        'dropout to 0'
      )
    return LoRA.materialize(self)

  def keyed(self, key: Key) -> 'DroppedLoRA':
    """With a key of its own for every layer and expert."""
    return dataclasses.replace(self, key=jax.random.split(key, self.scale.shape))

  def axes(self, names: tuple[str | None, ...]) -> 'DroppedLoRA':
    plain = LoRA.axes(self, names)
    return DroppedLoRA(plain.base, plain.a, plain.b, plain.scale, plain.scale)


def with_key(params: Params, key: Key | None) -> Params:
  """The parameters with a key in every leaf that has dropout, each its own by its path.

  A train step calls it; without a key (None), as in evaluation, nothing is dropped.
  """
  if key is None:
    return params

  def fill(path: str, leaf: Any) -> Any:
    if not is_adapter(leaf):
      return leaf
    base = fill(f'{path}/base', leaf.base)
    leaf = leaf if base is leaf.base else dataclasses.replace(leaf, base=base)
    return leaf.keyed(path_key(key, path)) if hasattr(leaf, 'keyed') else leaf

  return tree.map_weights(fill, params)


def without_key(leaf: Any) -> Any:
  """A leaf as in an evaluation: what `with_key` put into it is taken out."""
  if not is_adapter(leaf):
    return leaf
  changes = {'base': without_key(leaf.base)} | ({'key': None} if hasattr(leaf, 'keyed') else {})
  return dataclasses.replace(leaf, **changes)


def path_key(key: Key, path: str) -> Key:
  """Each weight has its own stream, named by its path: adding a target changes no other."""
  return jax.random.fold_in(key, zlib.crc32(path.encode()))


def check_rank(rank: int, path: str, inputs: int, outputs: int, method: str = 'lora') -> None:
  """Refuses a rank that the matrix cannot have."""
  if not 1 <= rank <= min(inputs, outputs):
    raise InputError(
      f'{method}: rank is {rank}, but {path!r} is a {inputs}x{outputs} matrix: '
      f'choose a rank from 1 to {min(inputs, outputs)}'
    )


def check_alpha(alpha: float, method: str = 'lora') -> None:
  """Refuses an alpha that is no positive number."""
  if not 0 < alpha < float('inf'):
    raise InputError(f'{method}: alpha is {alpha}; it must be a positive number')


def check_dropout(dropout: float, method: str = 'lora') -> None:
  """Refuses what is no probability below one."""
  if not 0 <= dropout < 1:
    raise InputError(f'{method}: dropout is {dropout}; it must be from 0 to below 1')


def lora(
  key: Key,
  params: Params,
  rank: int = 16,
  alpha: float = 32.0,
  *,
  rslora: bool = False,
  start: str = 'kaiming',
  dropout: float = 0.0,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the chosen weights and trains their A and B.

  The first forward pass is the base model's. `start` says how:

  - 'kaiming': A uniform in `±1/sqrt(in)`, B zero.
  - 'gaussian': A normal with a standard deviation of `1/rank`, B zero (the paper's, section 4.1,
    which leaves the deviation open; this one is PEFT's).
  - 'pissa': A and B from the largest singular values of the weight, the base is what is left:
    `W = (W - scale A B) + scale A B` (arXiv:2404.02948). 'pissa_niter_4' finds them from a random
    sketch with four iterations, in a fraction of the time of an exact decomposition.
  - 'olora': A and B from the QR decomposition of the weight's transpose, the base is what is left
    (arXiv:2406.01775).
  - 'loftq': the base is quantized, A and B come nearest to what it misses, so the first pass is
    only about the base model's (arXiv:2310.08659). 'loftq_int4' or 'loftq_int8' in place of nf4.

  Where the base is changed, it is rounded to the base's dtype again. `adapt.quantize` after 'pissa'
  is QPiSSA. A start from data is `adapt.eva`.

  Args:
    key: for the A matrices.
    params: the parameters of the base.
    rank: R, from 1 to the smaller side of every chosen matrix.
    alpha: the product is scaled by `alpha / rank`. Held while the rank changes, it leaves the best
      learning rate nearly where it is (docs/adapt.md).
    rslora: scale by `alpha / sqrt(rank)`, so that large ranks learn as fast as small ones
      (Kalajdzievski 2023, arXiv:2312.03732).
    start: of A and B, see above.
    dropout: probability with which an input of A is zeroed in training; built-in models only.
    select: which weights, all matrices of the layers by default; a rule may set all of the above
      for its weights: `((r'attn/', {'rank': 8}), (r'mlp/', True), (r'', False))`.
    also: regular expression over parameters to train as they are, beside the adapter: by default a
      fresh head. None for nothing, as for a language model whose untied head is pretrained.

  Raises:
    InputError: a rank that does not fit, an alpha that is not positive, an unknown start or one
      that the weight cannot have, a dropout that is no probability, nothing chosen.
  """
  done: Start | None = None

  def make(
    path: str, weight: Any, rank: int, alpha: float, rslora: bool, start: str, dropout: float
  ) -> LoRA:
    nonlocal done
    lead, inputs, outputs = matrix_sides(path, weight, 'lora')
    check_rank(rank, path, inputs, outputs)
    check_alpha(alpha)
    check_dropout(dropout)
    check_start(start, path, weight)
    scale = alpha / (rank**0.5 if rslora else rank)
    begun = begin(start, path_key(key, path), weight, rank, scale, done)
    done = done if begun.base is weight else begun
    fields = (*begun, jnp.full(lead, scale, jnp.float32))
    return DroppedLoRA(*fields, jnp.full(lead, dropout, jnp.float32)) if dropout else LoRA(*fields)

  options = {'rank': rank, 'alpha': alpha, 'rslora': rslora, 'start': start, 'dropout': dropout}
  return wrap(params, select, 'lora', make, '[ab]', also, **options)
