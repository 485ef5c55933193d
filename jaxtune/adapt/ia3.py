"""IA3: frozen weights whose inputs or outputs are scaled by trained vectors.

Liu et al. 2022, arXiv:2205.05638, section 3.3.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, Adapted, Select, matrix_sides, wrap
from jaxtune.typing import InputError, Key, Params

INSIDE = r'(^|/)(mlp|experts)/down$'
_SELECT = rf'(^|/)(attn|cross)/[kv]$|{INSIDE}'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IA3:
  """The weight `W diag(l)`, or `diag(l) W` inside, and its bias as `diag(l) bias` or as it is.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    l: `[..., out]`, or `[..., in]` inside.
    inside: whether the input is scaled and not the output.
  """

  base: Any
  l: jax.Array  # noqa: E741 (the paper's name, and PEFT's)
  inside: bool = dataclasses.field(default=False, metadata={'static': True})

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    base = ops.materialize(self.base)
    return (base * jnp.expand_dims(self.l, -1 if self.inside else -2)).astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    return (
      ops.dot(self._scaled(x), self.base) if self.inside else self._scaled(ops.dot(x, self.base))
    )

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    if self.inside:
      return self._scaled(ops.dot_transposed(x, self.base))
    return ops.dot_transposed(self._scaled(x), self.base)

  def take(self, ids: jax.Array) -> jax.Array:
    rows = ops.take(self.base, ids)
    return (rows * self.l[ids][..., None]).astype(rows.dtype) if self.inside else self._scaled(rows)

  def scale_bias(self, bias: jax.Array) -> jax.Array:
    """The bias `[..., out]` beside the weight: `(x W + bias) * l` is what the paper scales."""
    bias = ops.scaled_bias(self.base, bias)
    return bias if self.inside else (bias * self.l).astype(bias.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'IA3':
    """Logical axes of the fields from those of the weight."""
    own = names[:-1] if self.inside else (*names[:-2], names[-1])
    return IA3(ops.axes(self.base, names), own, self.inside)  # type: ignore[arg-type]

  def _scaled(self, x: jax.Array) -> jax.Array:
    # In the type of l: bfloat16 has no number between 1 and 1.0078, where l starts.
    return (x * jnp.expand_dims(self.l, range(x.ndim - 1))).astype(x.dtype)


def ia3(
  key: Key,
  params: Params,
  *,
  select: Select = _SELECT,
  inside: str = INSIDE,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the chosen weights and trains a vector of each, which starts at one.

  The first forward pass is the base model's. By default, as in the paper, keys and values are
  scaled and the activations between the two layers of the MLP: the input of its last matrix. Biases
  are scaled with the outputs, as PEFT does; the paper's T5 has none.

  Args:
    key: unused: nothing is random.
    params: the parameters of the base.
    select: which weights; a rule may set `inside`.
    inside: regular expression over the paths of those that are scaled on their inputs, of the
      chosen; the others are scaled on their outputs.
    also: see `lora`.

  Raises:
    InputError: nothing chosen, no matrix, or `inside` is no regular expression.
  """
  del key

  def make(path: str, weight: Any, inside: str) -> IA3:
    lead, inputs, outputs = matrix_sides(path, weight, 'ia3')
    at_inputs = _search(inside, path)
    return IA3(weight, jnp.ones((*lead, inputs if at_inputs else outputs)), at_inputs)

  return wrap(params, select, 'ia3', make, 'l', also, inside=inside)


def _search(pattern: str, path: str) -> bool:
  try:
    return re.search(pattern, path) is not None
  except (re.error, TypeError):
    raise InputError(
      f'ia3: inside is {pattern!r}; it must be a regular expression over paths, as {INSIDE!r}'
    ) from None
