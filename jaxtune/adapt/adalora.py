"""AdaLoRA: a frozen weight plus an update in the form of a singular value decomposition.

Zhang et al. 2023, arXiv:2303.10512. `rank_budget.py` takes its triplets away in training.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtune import ops, tree
from jaxtune.adapt.adapted import HEAD, LINEAR, Adapted, Select, matrix_sides, wrap
from jaxtune.adapt.lora import check_alpha, check_rank, path_key
from jaxtune.typing import InputError, Key, Params


class Budget(NamedTuple):
  """How a leaf's triplets are taken away while it trains; `adalora` says what the numbers are."""

  target_rank: float
  warmup: int | float
  final: int | float
  interval: int
  beta1: float
  beta2: float
  orthogonality: float = 0.0

  def check(self) -> None:
    """Refuses numbers of the wrong kind; `adalora_budget` those that do not fit the steps."""
    for name in ('warmup', 'final'):
      value = getattr(self, name)
      if not 0 <= value or (isinstance(value, float) and not value < 1):
        raise InputError(
          f'adalora: {name} is {value}; give steps (an int) or the fraction of all steps (a float, '
          'at least 0 and below 1)'
        )
    if not isinstance(self.interval, int) or self.interval < 1:
      raise InputError(f'adalora: interval is {self.interval}; give a number of steps, at least 1')
    for name in ('beta1', 'beta2'):
      if not 0 < getattr(self, name) < 1:
        raise InputError(f'adalora: {name} is {getattr(self, name)}; it must be between 0 and 1')
    if not 0 <= self.orthogonality < float('inf'):
      raise InputError(
        f'adalora: orthogonality is {self.orthogonality}; give a weight, 0 for no penalty'
      )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaLoRA:
  r"""The weight $W + s\,A\,\mathrm{diag}(e)\,B$, never added up (equation 3).

  The paper's $P \Lambda Q$ for column vectors, transposed: A is $Q^\top$ and B is $P^\top$.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    a: `[..., in, R]`.
    e: `[..., R]`, the singular values; zero where the budget has taken a triplet away.
    b: `[..., R, out]`.
    scale: `[...]`.
    budget: what training shall do; None for an adapter whose ranks are settled.
  """

  base: Any
  a: jax.Array
  e: jax.Array
  b: jax.Array
  scale: jax.Array
  budget: Budget | None = dataclasses.field(default=None, metadata={'static': True})

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def _left(self) -> jax.Array:
    """`s A diag(e)`, `[..., in, R]`: in the factor it costs less than in the activations."""
    return self.a * (self.e * self.scale[..., None])[..., None, :]

  def materialize(self) -> jax.Array:
    base = ops.materialize(self.base)
    return base + (self._left() @ self.b).astype(base.dtype)

  def dot(self, x: jax.Array) -> jax.Array:
    low = ops.matmul(x, self._left().astype(x.dtype))
    return ops.dot(x, self.base) + ops.matmul(low, self.b.astype(x.dtype))

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    low = x @ self.b.T.astype(x.dtype)
    return ops.dot_transposed(x, self.base) + low @ self._left().T.astype(x.dtype)

  def take(self, ids: jax.Array) -> jax.Array:
    base = ops.take(self.base, ids)
    return base + (ops.take(self._left(), ids) @ self.b).astype(base.dtype)

  def axes(self, names: tuple[str | None, ...]) -> 'AdaLoRA':
    """Logical axes of the fields from those of the weight; the rank axis has none."""
    lead, (inside, outside) = names[:-2], names[-2:]
    base, e = ops.axes(self.base, names), (*lead, None)
    a, b = (*lead, inside, None), (*lead, None, outside)
    return AdaLoRA(base, a, e, b, lead, self.budget)  # type: ignore[arg-type]


def adalora(
  key: Key,
  params: Params,
  rank: int = 12,
  alpha: float = 32.0,
  target_rank: int | None = None,
  warmup: int | float = 0.1,
  final: int | float = 0.3,
  interval: int = 10,
  beta1: float = 0.85,
  beta2: float = 0.85,
  orthogonality: float = 0.5,
  *,
  select: Select = LINEAR,
  also: str | None = HEAD,
) -> Adapted:
  """Wraps the chosen weights and trains their triplets of A, e and B.

  e is zero, so the first forward pass is the base model's; A and B are normal with a deviation of
  0.02, PEFT's start. Pruning and the penalty happen where the parameters are trained: see
  `wrap_optimizer` and `training_penalty`; without them all triplets stay.

  Args:
    key: for A and B.
    params: the parameters of the base.
    rank: R, the triplets that each matrix starts with.
    alpha: the product is scaled by alpha / (rank + 1e-5), PEFT's scale to the bit, which stays
      while triplets go.
    target_rank: how many triplets a matrix has at the end, on the average over all of them; two
      thirds of `rank` by default, the paper's ratio.
    warmup: steps (an int) or the fraction of all steps (a float below 1) in which none goes.
    final: the same for the last steps, in which what is left is trained.
    interval: steps between two cuts in the time from one to the other.
    beta1, beta2: decay of the sensitivity and of its uncertainty.
    orthogonality: weight of the penalty, gamma in the paper.
    select: which weights, all matrices of the layers by default; a rule may set rank, alpha and
      target_rank.
    also: regular expression over parameters to train as they are, beside the adapter; see `lora`.

  Raises:
    InputError: numbers that do not fit, nothing chosen.
  """

  def make(
    path: str, weight: Any, rank: int, alpha: float, target_rank: int | None, **others: Any
  ) -> AdaLoRA:
    lead, inputs, outputs = matrix_sides(path, weight, 'adalora')
    check_rank(rank, path, inputs, outputs, 'adalora')
    check_alpha(alpha, 'adalora')
    target = math.ceil(rank * 2 / 3) if target_rank is None else target_rank
    if not 1 <= target <= rank:
      raise InputError(
        f'adalora: target_rank is {target}, but {path!r} starts with rank {rank}: choose one from '
        f'1 to {rank}'
      )
    budget = Budget(target, **others)
    budget.check()
    first, second = jax.random.split(path_key(key, path))
    return AdaLoRA(
      base=weight,
      a=0.02 * jax.random.normal(first, (*lead, inputs, rank)),
      e=jnp.zeros((*lead, rank)),
      b=0.02 * jax.random.normal(second, (*lead, rank, outputs)),
      scale=jnp.full(lead, alpha / (rank + 1e-5), jnp.float32),
      budget=budget,
    )

  options = {'rank': rank, 'alpha': alpha, 'target_rank': target_rank, 'warmup': warmup}
  options |= {'final': final, 'interval': interval, 'beta1': beta1, 'beta2': beta2}
  options['orthogonality'] = orthogonality
  return wrap(params, select, 'adalora', make, '[abe]', also, **options)


def adalora_leaves(params: Params) -> list[tuple[str, AdaLoRA]]:
  """`(path, leaf)` of every AdaLoRA weight whose triplets are there: not in frozen halves."""
  return [
    (path, leaf)
    for path, leaf in tree.named_weights(params)
    if isinstance(leaf, AdaLoRA) and leaf.e is not None
  ]


def orthogonality(params: Params) -> jax.Array:
  r"""How far the A and B of all AdaLoRA leaves are from orthonormal; 0 without such leaves.

  The mean over them of $\lVert A^\top A - I \rVert_F$ and $\lVert B B^\top - I \rVert_F$, as PEFT
  and the authors' program have it; equation 4 has the sum of squares, whose size depends on how
  many matrices there are.
  """
  norms = []
  with jax.default_matmul_precision('highest'):  # accelerators round to bf16 by default
    for _, leaf in adalora_leaves(params):
      a, b = leaf.a.astype(jnp.float32), leaf.b.astype(jnp.float32)
      for gram in (a.mT @ a, b @ b.mT):
        off = gram - jnp.eye(gram.shape[-1])[(None,) * (gram.ndim - 2)]
        norms.append(jnp.sqrt(jnp.sum(off * off, (-2, -1))).ravel())
  return jnp.mean(jnp.concatenate(norms)) if norms else jnp.zeros(())
